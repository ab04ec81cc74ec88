// The scales of a pyramid over (T, H, W) maps: windows of 2^level x 2^level within a frame, partial ones at the far
// edges, and the bilinear enlargement back, with half-pixel centres. A sample's windows of all levels are its cells,
// level after level. `gather` is the transpose of `enlarge`: both visit the same taps with the same shares, in double.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "cpu/tiles/planes.h"

namespace cmx {

class Pyramid {
 public:
  Pyramid(int64_t t, int64_t h, int64_t w, int64_t levels);

  int64_t levels() const { return int64_t(scales_.size()); }
  // The windows of a level (of level 0: the positions), and where they begin among those of all levels.
  Frames frames(int64_t level) const { return scales_[level].frames; }
  int64_t offset(int64_t level) const { return scales_[level].offset; }
  int64_t positions() const { return scales_[0].frames.positions(); }
  int64_t cells() const { return cells_; }
  // Positions in each window of a frame, (h, w) of the level.
  const double* counts(int64_t level) const { return scales_[level].counts.data(); }

  // map (positions) = mean over the levels of the cells' values, enlarged.
  void enlarge(const double* cells, double* map) const;
  // The other way, for gradients.
  void gather(const double* map, double* cells) const;

 private:
  // Where a position lies between two windows of a level, along one axis.
  struct Tap {
    int64_t low, high;
    double share;  // of `high`
  };
  struct Scale {
    Frames frames;
    int64_t offset;
    std::vector<double> counts;
    std::array<std::vector<Tap>, 2> taps;  // by row, by column
  };
  template <class F>
  void for_taps(int64_t level, const F& f) const;

  std::vector<Scale> scales_;
  int64_t cells_ = 0;
};

}  // namespace cmx
