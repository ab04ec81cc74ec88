// The kernels of pyramid correlation in the emulator, for ctypes: raw pointers in, a message out if something is wrong.
#include "cuda/pyramid_launch.cuh"

namespace cmx {
alignas(16) float shared[emulator::kSharedFloats];
}

namespace {

using cmx::Norm;

thread_local std::string message;

template <class F>
const char* reported(const F& f) {
  try {
    f();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

// tests/support/emulated_cuda.py has enums of the same names for these and for cmx::Norm.
enum ElementType { kFloat32, kBFloat16, kFloat16 };

struct Arguments {
  const void* features;
  const float* filters;
  int64_t sizes[5], strides[5];
  int type, levels, norm;  // an ElementType and a Norm
};

// Calls f with the problem of the elements' type.
template <class F>
void with_problem(const Arguments& arguments, const F& f) {
  const auto call = [&](auto element) {
    using Element = decltype(element);
    const auto size = [&](int i) { return int(arguments.sizes[i]); };
    const int64_t* const s = arguments.strides;
    f(cmx::Problem<Element>{static_cast<const Element*>(arguments.features),
                            arguments.filters,
                            {s[0], s[1], s[2], s[3], s[4]},
                            {size(2), size(3), size(4), arguments.levels},
                            size(0),
                            size(1)});
  };
  if (arguments.type == kFloat32) return call(float{});
  if (arguments.type == kBFloat16) return call(__nv_bfloat16{});
  call(__half{});
}

}  // namespace

extern "C" {

void set_order(int backward) { emulator::order = backward ? emulator::Order::kBackward : emulator::Order::kForward; }
int launched() { return std::exchange(emulator::launches, 0); }

// Which kernels a layout gets: neighbours in a chunk, or minus that with channels last.
int layout(const Arguments* arguments) {
  int neighbours = 0;
  with_problem(*arguments, [&](const auto& problem) {
    cmx::with_patch(problem, decltype(problem.features)(nullptr), problem.strides, [&](auto patch) {
      using P = decltype(patch);
      neighbours = int(sizeof(typename P::Vector) / sizeof(typename P::Element)) * (P::kChannelsLast ? -1 : 1);
    });
  });
  return neighbours;
}

const char* forward(const Arguments* arguments, const float* prediction, float* map, float* losses, float* values,
                    float* inverse_norms) {
  return reported([&] {
    with_problem(*arguments, [&](const auto& problem) {
      cmx::correlate(emulator::Launch(), problem, values, inverse_norms);
      cmx::make_map(emulator::Launch(), values, prediction, map, losses, problem.pyramid, problem.batch,
                    Norm(arguments->norm));
    });
  });
}

int radial_parts(int t, int h, int w, int levels) { return cmx::window_blocks({t, h, w, levels}); }

const char* backward(const Arguments* arguments, const float* gradient, const float* map, const float* cosines,
                     const float* inverse_norms, float* filter_factors, float* window_factors, float* radial,
                     void* dfeatures, const int64_t* strides, float* dfilters) {
  return reported([&] {
    with_problem(*arguments, [&](const auto& problem) {
      using Element = std::remove_const_t<std::remove_pointer_t<decltype(problem.features)>>;
      const cmx::Strides out{strides[0], strides[1], strides[2], strides[3], strides[4]};
      cmx::window_gradients(emulator::Launch(), problem, gradient, map, cosines, inverse_norms, Norm(arguments->norm),
                            filter_factors, window_factors, radial);
      cmx::feature_gradients(emulator::Launch(), problem, filter_factors, window_factors, radial,
                             static_cast<Element*>(dfeatures), out, dfilters);
    });
  });
}
}
