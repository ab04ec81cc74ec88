// Features channel by channel, as tasks of a pass over them: some channels of some whole frames of a sample. Whole
// frames, because a pyramid's windows lie within a frame: a task then has every window's positions.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/parallel.h"
#include "cpu/simd/elements.h"
#include "cpu/tensors/buffer.h"
#include "cpu/tiles/planes.h"
#include "cpu/tiles/pyramid.h"

namespace cmx {

using torch::stable::Tensor;

// A contiguous (B, C, T, H, W) tensor as tasks.
template <class T>
class Planes {
 public:
  static constexpr int64_t kPositionsPerBlock = 4096;  // what a channel's maps take lies in the first-level cache
  static constexpr int64_t kChannelsPerTask = 128;
  static constexpr int64_t kMostLoaded = 8;

  Planes(const Tensor& features, int64_t levels)
      : pyramid(features.size(2), features.size(3), features.size(4), levels),
        batch(features.size(0)),
        channels(features.size(1)),
        frames_per_block(std::clamp<int64_t>(kPositionsPerBlock / std::max<int64_t>(1, frame_size()), 1,
                                             std::max<int64_t>(1, pyramid.frames(0).count))),
        blocks(ceil_div(pyramid.frames(0).count, frames_per_block)),
        groups(ceil_div(channels, kChannelsPerTask)),
        type(features.scalar_type()),
        elements_(features.data_ptr()) {}

  int64_t frame_size() const { return pyramid.frames(0).h * pyramid.frames(0).w; }
  int64_t tasks() const { return batch * blocks * groups; }
  // The windows of a level in a block, and its first frame.
  int64_t first_frame(int64_t block) const { return block * frames_per_block; }
  Frames frames(int64_t block, int64_t level) const {
    Frames frames = pyramid.frames(level);
    frames.count = std::min(frames_per_block, frames.count - first_frame(block));
    return frames;
  }
  // Where a block's windows of a level begin among a sample's of all levels.
  int64_t begin(int64_t block, int64_t level) const {
    return pyramid.offset(level) + first_frame(block) * pyramid.frames(level).h * pyramid.frames(level).w;
  }
  int64_t offset(int64_t b, int64_t c, int64_t block) const {
    return (b * channels + c) * pyramid.positions() + first_frame(block) * frame_size();
  }

  // `count` channels of a block, at most kMostLoaded, `stride` apart: in the tensor, or converted in the buffer.
  const T* load(int64_t b, int64_t c, int64_t count, int64_t block, Buffer<T>& buffer, int64_t* stride) const {
    const T* loaded = nullptr;
    with_elements(type, elements_, [&](auto* elements) {
      elements += offset(b, c, block);
      if constexpr (std::is_same_v<std::remove_pointer_t<decltype(elements)>, T>) {
        *stride = pyramid.positions();
        loaded = elements;
      } else {
        const int64_t n = frames(block, 0).positions();
        buffer.resize(kMostLoaded * frames_per_block * frame_size());
        for (int64_t i = 0; i < count; ++i)
          for (int64_t p = 0; p < n; ++p)
            buffer.data()[i * n + p] = static_cast<T>(elements[i * pyramid.positions() + p]);
        *stride = n;
        loaded = buffer.data();
      }
    });
    return loaded;
  }

  const Pyramid pyramid;
  const int64_t batch, channels, frames_per_block, blocks, groups;
  const torch::headeronly::ScalarType type;
  const PlaneKernels<T>& kernels = best_plane_kernels<T>();

 private:
  void* elements_;
};

// Working memory of a pass: a value for every window of every level of a block, and rows of them in pairs.
template <class T>
struct Windows {
  Buffer<T> loaded, row_pairs;
  std::vector<Buffer<T>> levels;
  explicit Windows(const Planes<T>& planes) : levels(planes.pyramid.levels()) {
    row_pairs.resize(planes.frames_per_block * planes.pyramid.frames(0).row_pairs().positions());
    for (int64_t level = 0; level < planes.pyramid.levels(); ++level)
      levels[level].resize(planes.frames(0, level).positions());
  }
};

}  // namespace cmx
