// Frames to a network's input on the CPU: a task is one frame of one clip.
//
// Algorithm: where outputs lie between pixels is found once per clip and side. A row of the frame is interpolated
// across once per channel and kept while outputs lie beside it: consecutive outputs need rows y and y + 1, one even and
// one odd, so two rows per channel suffice. A change of contrast needs the whole view's mean grey, so the view, 3 x H x
// W floats, waits for it in the cache; without one each output row is written as it is made.
//
// Why it is right: places are clamped to the outermost pixel centres in double before they are indices, and a NaN
// becomes 0, so no read leaves the frame. The mean grey is summed row by row in double.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/parallel.h"
#include "cpu/simd/element_runs.h"
#include "cpu/tensors/buffer.h"
#include "cpu/tiles/frames.h"

namespace cmx {
namespace {

using torch::headeronly::ScalarType;

// Along one axis of a view: the pixels between which each output lies.
struct Axis {
  int32_t step;
  std::vector<int32_t> first;
  std::vector<float> share;
};

// n outputs over `length` pixels from `start` on, of a frame whose first `end` pixels are its own.
Axis place(double start, double length, int64_t n, bool mirrored, int64_t end) {
  Axis axis{end > 1, std::vector<int32_t>(round_up(n, kRowUnit)), std::vector<float>(round_up(n, kRowUnit))};
  for (int64_t i = 0; i < n; ++i) {
    const double along = (i + 0.5) / n, x = start + length * (mirrored ? 1 - along : along) - 0.5;
    // In this order a NaN is 0 and not an address.
    const double inside = std::min(std::max(0.0, x), end - 1.0);
    axis.first[i] = static_cast<int32_t>(std::min<int64_t>(inside, std::max<int64_t>(end - 2, 0)));
    axis.share[i] = static_cast<float>(inside - axis.first[i]);
  }
  std::fill(axis.first.begin() + n, axis.first.end(), axis.first[n - 1]);
  std::fill(axis.share.begin() + n, axis.share.end(), axis.share[n - 1]);
  return axis;
}

// Columns and rows of a view, shared by the frames of a clip. Points into itself.
struct Clip {
  Axis across, down;
  std::vector<int32_t> begin, picks;
  Columns columns;
};

void locate(Clip& clip, int64_t n, int64_t width) {
  clip.begin.resize(clip.across.first.size());
  clip.picks.resize(clip.across.first.size());
  clip.columns = {n,
                  width,
                  clip.across.step,
                  clip.across.first.data(),
                  clip.across.share.data(),
                  clip.begin.data(),
                  clip.picks.data()};
  best_frame_kernels().locate(clip.columns);
}

// uint8 (B, T, 3, h, w) of any strides, but pixels of a row next to each other.
struct Frames {
  const uint8_t* data;
  int64_t clips, count, height, width, of_clip, of_frame, of_channel, of_row;
  explicit Frames(const Tensor& frames)
      : data(static_cast<const uint8_t*>(frames.data_ptr())),
        clips(frames.size(0)),
        count(frames.size(1)),
        height(frames.size(3)),
        width(frames.size(4)),
        of_clip(frames.stride(0)),
        of_frame(frames.stride(1)),
        of_channel(frames.stride(2)),
        of_row(frames.stride(3)) {}
};

// The rows of one frame at the columns of its view: of each channel the last even one and the last odd one.
class Rows {
 public:
  Rows(const Frames& frames, const uint8_t* frame, const Columns& columns)
      : frames_(frames),
        frame_(frame),
        columns_(columns),
        length_(round_up(columns.n, kRowUnit)),
        values_(6 * length_) {}

  // The three channels' row; the next of the other parity leaves it where it is.
  void get(int64_t row, const float* channels[3]) {
    const int64_t parity = row & 1;
    for (int64_t c = 0; c < 3; ++c) {
      float* const values = values_.data() + (2 * c + parity) * length_;
      if (held_[parity] != row)
        kernels_.interpolate(frame_ + c * frames_.of_channel + row * frames_.of_row, columns_, values);
      channels[c] = values;
    }
    held_[parity] = row;
  }

 private:
  const FrameKernels& kernels_ = best_frame_kernels();
  const Frames& frames_;
  const uint8_t* frame_;
  const Columns& columns_;
  int64_t length_, held_[2] = {-1, -1};
  Buffer<float> values_;
};

// Writes the rows of one view, n elements of each of the channels, as the result has them.
class Output {
 public:
  Output(const Elements& result, bool channels_last, int64_t begin, int64_t of_channel, int64_t n)
      : result_(result),
        channels_last_(channels_last),
        floats_(result.type == ScalarType::Float),
        begin_(begin),
        of_channel_(of_channel),
        n_(n),
        buffer_(channels_last || !floats_ ? 6 * n : 0) {}

  // f(rows) computes a row of each channel.
  template <class F>
  void row(int64_t y, const F& f) {
    const int64_t begin = begin_ + y * n_ * (channels_last_ ? 3 : 1);
    const bool direct = floats_ && !channels_last_;
    float* rows[3];
    for (int64_t c = 0; c < 3; ++c)
      rows[c] = direct ? static_cast<float*>(result_.data) + begin + c * of_channel_ : buffer_.data() + c * n_;
    f(rows);
    if (channels_last_) {
      float* const triples = floats_ ? static_cast<float*>(result_.data) + begin : buffer_.data() + 3 * n_;
      kernels_.interleave(rows, n_, triples);
      convert(triples, 3 * n_, begin);
    } else {
      for (int64_t c = 0; c < 3; ++c) convert(rows[c], n_, begin + c * of_channel_);
    }
  }

 private:
  void convert(const float* row, int64_t n, int64_t begin) {
    if (result_.type == ScalarType::BFloat16)
      kernels_.round_to_bfloat16(row, n, static_cast<uint16_t*>(result_.data) + begin);
    else
      write_run(result_, begin, n, row);
  }

  const FrameKernels& kernels_ = best_frame_kernels();
  const Elements& result_;
  bool channels_last_, floats_;
  int64_t begin_, of_channel_, n_;
  Buffer<float> buffer_;
};

// factors: brightness, contrast and saturation, or null.
void prepare(const Frames& frames, const uint8_t* frame, const Clip& clip, const float* factors, const double mean[3],
             const double std[3], int64_t height, Output& out) {
  const FrameKernels& kernels = best_frame_kernels();
  const int64_t n = clip.columns.n, stride = round_up(n, kRowUnit);
  const double white = factors ? 1 : 255;  // of what the last step gets
  float centre[3], scale[3];
  for (int c = 0; c < 3; ++c) {
    centre[c] = static_cast<float>(white * mean[c]);
    scale[c] = static_cast<float>(1 / (white * std[c]));
  }
  Rows rows(frames, frame, clip.columns);
  const float *upper[3], *lower[3];
  const auto get = [&](int64_t y) {
    rows.get(clip.down.first[y], upper);
    rows.get(clip.down.first[y] + clip.down.step, lower);
    return clip.down.share[y];
  };
  if (!factors) {
    for (int64_t y = 0; y < height; ++y) {
      const float share = get(y);
      out.row(y, [&](float* const to[3]) {
        for (int c = 0; c < 3; ++c) kernels.normalise(upper[c], lower[c], share, centre[c], scale[c], n, to[c]);
      });
    }
    return;
  }
  Buffer<float> view(3 * height * stride);
  double grey = 0;
  for (int64_t y = 0; y < height; ++y) {
    const float share = get(y);
    grey += kernels.brighten(upper, lower, share, factors[0] / 255, n, view.data() + 3 * y * stride, stride);
  }
  const Colours colours{factors[1], static_cast<float>(grey / (height * n)), factors[2]};
  for (int64_t y = 0; y < height; ++y)
    out.row(y, [&](float* const to[3]) {
      kernels.recolour(view.data() + 3 * y * stride, stride, colours, centre, scale, n, to);
    });
}

template <class T>
const T* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->data_ptr()) : nullptr;
}

Tensor prepare_frames(Tensor frames, Tensor windows, std::optional<Tensor> sizes, std::optional<Tensor> mirrored,
                      std::optional<Tensor> factors, std::vector<int64_t> size, std::vector<double> mean,
                      std::vector<double> std, ScalarType dtype, bool channels_last) {
  if (frames.stride(4) != 1) frames = torch::stable::contiguous(frames);
  windows = torch::stable::contiguous(windows);
  sizes = contiguous_if_any(sizes), mirrored = contiguous_if_any(mirrored), factors = contiguous_if_any(factors);
  const Frames from(frames);
  const int64_t height = size[0], width = size[1], pixels = height * width;
  const std::vector<int64_t> shape = channels_last ? std::vector<int64_t>{from.clips, from.count, height, width, 3}
                                                   : std::vector<int64_t>{from.clips, 3, from.count, height, width};
  const Tensor out = empty_in_workspace(torch::stable::new_empty(windows, shape, dtype));
  const Elements result(out);

  std::vector<Clip> clips(from.clips);
  run_tasks(from.clips, [&](int64_t b) {
    const float* window = static_cast<const float*>(windows.data_ptr()) + 4 * b;
    int64_t high = from.height, wide = from.width;
    if (const int32_t* own = data_of<int32_t>(sizes)) {
      high = std::clamp<int64_t>(own[2 * b], 1, from.height);
      wide = std::clamp<int64_t>(own[2 * b + 1], 1, from.width);
    }
    const bool* turned = data_of<bool>(mirrored);
    clips[b].across = place(window[0], window[2], width, turned && turned[b], wide);
    clips[b].down = place(window[1], window[3], height, false, high);
    locate(clips[b], width, from.width);
  });
  run_tasks(from.clips * from.count, [&](int64_t task) {
    const int64_t b = task / from.count, t = task % from.count;
    const int64_t begin = (channels_last ? task : 3 * b * from.count + t) * pixels * (channels_last ? 3 : 1);
    Output to(result, channels_last, begin, from.count * pixels, width);
    const float* colours = data_of<float>(factors);
    prepare(from, from.data + b * from.of_clip + t * from.of_frame, clips[b], colours ? colours + 3 * b : nullptr,
            mean.data(), std.data(), height, to);
  });
  return out;
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CPU, m) { m.impl("prepare_frames", TORCH_BOX(&cmx::prepare_frames)); }
