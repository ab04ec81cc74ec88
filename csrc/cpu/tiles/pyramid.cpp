#include "cpu/tiles/pyramid.h"

#include <algorithm>

namespace cmx {

Pyramid::Pyramid(int64_t t, int64_t h, int64_t w, int64_t levels) {
  Frames frames{t, h, w};
  for (int64_t level = 0; level < levels; ++level, frames = frames.halved()) {
    Scale scale{frames, cells_, {}, {}};
    cells_ += frames.positions();
    const int64_t side = int64_t(1) << level;
    for (int64_t i = 0; i < frames.h; ++i)
      for (int64_t j = 0; j < frames.w; ++j)
        scale.counts.push_back(double(std::min(side, h - i * side) * std::min(side, w - j * side)));
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t size = axis ? w : h, last = (axis ? frames.w : frames.h) - 1;
      for (int64_t p = 0; p < size; ++p) {
        const double source = std::max((p + 0.5) / side - 0.5, 0.0);
        const int64_t low = int64_t(source);
        scale.taps[axis].push_back({low, std::min(low + 1, last), source - low});
      }
    }
    scales_.push_back(std::move(scale));
  }
}

// f(position, cell, share) for each window that a position lies between, with the positions in their order.
template <class F>
void Pyramid::for_taps(int64_t level, const F& f) const {
  const Scale& scale = scales_[level];
  const int64_t h = frames(0).h, w = frames(0).w;
  for (int64_t t = 0; t < frames(0).count; ++t)
    for (int64_t i = 0; i < h; ++i) {
      const Tap& row = scale.taps[0][i];
      const int64_t top = scale.offset + (t * scale.frames.h + row.low) * scale.frames.w;
      const int64_t bottom = scale.offset + (t * scale.frames.h + row.high) * scale.frames.w;
      for (int64_t j = 0; j < w; ++j) {
        const Tap& column = scale.taps[1][j];
        const int64_t p = (t * h + i) * w + j;
        f(p, top + column.low, (1 - row.share) * (1 - column.share));
        f(p, top + column.high, (1 - row.share) * column.share);
        f(p, bottom + column.low, row.share * (1 - column.share));
        f(p, bottom + column.high, row.share * column.share);
      }
    }
}

void Pyramid::enlarge(const double* cells, double* map) const {
  const int64_t n = positions();
  std::copy_n(cells, n, map);
  for (int64_t level = 1; level < levels(); ++level)
    for_taps(level, [&](int64_t p, int64_t cell, double share) { map[p] += share * cells[cell]; });
  for (int64_t p = 0; p < n; ++p) map[p] /= double(levels());
}

void Pyramid::gather(const double* map, double* cells) const {
  const int64_t n = positions();
  std::fill_n(cells, cells_, 0.0);
  for (int64_t p = 0; p < n; ++p) cells[p] = map[p] / double(levels());
  for (int64_t level = 1; level < levels(); ++level)
    for_taps(level, [&](int64_t p, int64_t cell, double share) { cells[cell] += share * cells[p]; });
}

}  // namespace cmx
