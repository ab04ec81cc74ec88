// Every layout, element size, level and norm on memory that ends where the tensors end, for a build with sanitizers: a
// read or write beyond them, an unaligned vector or an overflow ends the program.
#include <cstdio>

#include "cuda/pyramid_launch.cuh"

namespace cmx {
alignas(16) float shared[emulator::kSharedFloats];
}

namespace {

using namespace cmx;

struct Sizes {
  int b, c, t, h, w;
  int64_t elements() const { return int64_t(b) * c * t * h * w; }
};

// Channels first, channels last, and every other column of channels first.
Strides strides_of(const Sizes& s, int layout) {
  const int64_t step = layout == 2 ? 2 : 1, plane = int64_t(s.t) * s.h * s.w;
  if (layout == 1) return {s.c * plane, 1, int64_t(s.h) * s.w * s.c, int64_t(s.w) * s.c, s.c};
  return {step * s.c * plane, step * plane, step * s.h * s.w, step * s.w, step};
}

template <class Element>
void run(const Sizes& s, int layout, int offset, int levels, Norm norm) {
  const Pyramid pyramid{s.t, s.h, s.w, levels};
  const int64_t span = s.elements() * (layout == 2 ? 2 : 1) - (layout == 2) + offset;
  const std::vector<Element> features(span);
  const std::vector<float> filters(s.b * s.c, 1.f);
  std::vector<Element> dfeatures(span);
  std::vector<float> dfilters(s.b * s.c), map(s.b * pyramid.positions()), losses(s.b);
  std::vector<float> values(s.b * pyramid.cells()), inverse_norms(values), filter_factors(values),
      window_factors(values);
  std::vector<float> radial(s.b * window_blocks(pyramid));
  const Strides strides = strides_of(s, layout);
  const Problem<Element> problem{features.data() + offset, filters.data(), strides, pyramid, s.b, s.c};
  const bool cosine = norm == Norm::kCosine;
  const emulator::Launch launch;
  correlate(launch, problem, values.data(), cosine ? inverse_norms.data() : nullptr);
  for (const float* prediction : {static_cast<const float*>(nullptr), static_cast<const float*>(map.data())})
    make_map(launch, values.data(), prediction, map.data(), losses.data(), pyramid, s.b, norm);
  window_gradients(launch, problem, map.data(), map.data(), values.data(), inverse_norms.data(), norm,
                   filter_factors.data(), cosine ? window_factors.data() : nullptr, radial.data());
  feature_gradients(launch, problem, filter_factors.data(), cosine ? window_factors.data() : nullptr, radial.data(),
                    dfeatures.data() + offset, strides, dfilters.data());
}

}  // namespace

int main() {
  int runs = 0;
  for (const Sizes& s : {Sizes{1, 3, 1, 1, 1}, Sizes{1, 5, 2, 7, 9}, Sizes{2, 16, 1, 5, 16}, Sizes{1, 8, 1, 3, 6}})
    for (int layout = 0; layout < 3; ++layout)
      for (int offset = 0; offset < 2; ++offset)
        for (int levels = 1; levels <= 3; ++levels)
          for (const Norm norm : {Norm::kCosine, Norm::kSoftmax}) {
            run<float>(s, layout, offset, levels, norm);
            run<__nv_bfloat16>(s, layout, offset, levels, norm);
            runs += 2;
          }
  std::printf("%d runs\n", runs);
}
