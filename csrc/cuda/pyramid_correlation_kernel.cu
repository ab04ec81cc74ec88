// Pyramid correlation filtering in CUDA C++: checks, memory and launches of pyramid_launch.cuh's kernels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <optional>
#include <string>
#include <tuple>

#include "launch.cuh"
#include "pyramid_launch.cuh"

namespace cmx {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Calls f with an element of the features' type.
template <class F>
void with_element(const Tensor& features, const F& f) {
  switch (features.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::BFloat16:
      return f(__nv_bfloat16{});
    case ScalarType::Half:
      return f(__half{});
    default:
      STD_TORCH_CHECK(false, "features must be float32, bfloat16 or float16");
  }
}

// A dimension of one has no neighbours, whatever its stride says.
Strides strides_of(const Tensor& features) {
  const auto stride = [&](int64_t dimension) { return features.size(dimension) == 1 ? 0 : features.stride(dimension); };
  return {stride(0), stride(1), stride(2), stride(3), stride(4)};
}

Pyramid pyramid_of(const Tensor& features, int64_t levels) {
  STD_TORCH_CHECK(features.dim() == 5, "features must have shape (B, C, T, H, W), got ", features.dim(), " dimensions");
  STD_TORCH_CHECK(levels >= 1 && levels <= 3, "levels must be 1 to 3, got ", levels);
  const int64_t positions = features.size(2) * features.size(3) * features.size(4);
  STD_TORCH_CHECK(positions <= std::numeric_limits<int32_t>::max() / 2,
                  "features must have fewer than 2^30 positions per sample, got ", positions);
  return {int(features.size(2)), int(features.size(3)), int(features.size(4)), int(levels)};
}

template <class Element>
Problem<Element> problem_of(const Tensor& features, const Tensor& filters, const Pyramid& pyramid) {
  return {static_cast<const Element*>(features.data_ptr()),
          static_cast<const float*>(filters.data_ptr()),
          strides_of(features),
          pyramid,
          int(features.size(0)),
          int(features.size(1))};
}

// (B, C) float32 without gaps, on the features' device.
Tensor checked_filters(const Tensor& features, const Tensor& filters) {
  STD_TORCH_CHECK(filters.dim() == 2 && filters.size(0) == features.size(0) && filters.size(1) == features.size(1) &&
                      filters.scalar_type() == ScalarType::Float,
                  "filters must be (B, C) float32");
  STD_TORCH_CHECK(filters.get_device_index() == features.get_device_index(),
                  "filters and features must be on one device");
  return torch::stable::contiguous(filters);
}

Norm norm_of(const std::string& norm) {
  STD_TORCH_CHECK(norm == "cosine" || norm == "softmax" || norm == "none", "norm must be cosine, softmax or none, got ",
                  norm);
  return norm == "cosine" ? Norm::kCosine : norm == "softmax" ? Norm::kSoftmax : Norm::kNone;
}

float* floats(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

// The map less the prediction if there is one, its losses, and every window's cosine and inverse norm.
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& features, const Tensor& unchecked_filters,
                                                   const std::optional<Tensor>& prediction, int64_t levels,
                                                   const std::string& name) {
  const Pyramid pyramid = pyramid_of(features, levels);
  const Norm norm = norm_of(name);
  const Tensor filters = checked_filters(features, unchecked_filters);
  const int64_t batch = features.size(0), cells = pyramid.cells();
  const Tensor map = torch::stable::new_empty(filters, {batch, features.size(2), features.size(3), features.size(4)});
  const Tensor losses = torch::stable::new_empty(filters, {prediction ? batch : 0});
  const Tensor values = torch::stable::new_empty(filters, {batch, cells});
  const Tensor inverse_norms = torch::stable::new_empty(filters, {batch, norm == Norm::kCosine ? cells : 0});
  if (batch) {
    const Launch launch(features);
    with_element(features, [&](auto element) {
      correlate(launch, problem_of<decltype(element)>(features, filters, pyramid), floats(values),
                norm == Norm::kCosine ? floats(inverse_norms) : nullptr);
    });
    make_map(launch, floats(values), prediction ? floats(*prediction) : nullptr, floats(map),
             prediction ? floats(losses) : nullptr, pyramid, int(batch), norm);
  }
  // Plain products are not kept.
  const Tensor cosines = norm == Norm::kCosine ? values : torch::stable::new_empty(filters, {batch, 0});
  return {map, losses, cosines, inverse_norms};
}

std::tuple<Tensor, Tensor, Tensor> pyramid_correlation_fwd(Tensor features, Tensor filters, int64_t levels,
                                                           std::string norm) {
  auto [map, losses, cosines, inverse_norms] = forward(features, filters, std::nullopt, levels, norm);
  return {map, cosines, inverse_norms};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_consistency_fwd(Tensor features, Tensor filters, Tensor prediction,
                                                                     int64_t levels, std::string norm) {
  STD_TORCH_CHECK(prediction.scalar_type() == ScalarType::Float, "prediction must be float32");
  auto [difference, losses, cosines, inverse_norms] =
      forward(features, filters, torch::stable::contiguous(prediction), levels, norm);
  return {losses, difference, cosines, inverse_norms};
}

std::tuple<Tensor, Tensor> pyramid_correlation_bwd(Tensor grad_map, Tensor features, Tensor filters, Tensor map,
                                                   Tensor cosines, Tensor inverse_norms, int64_t levels,
                                                   std::string name) {
  const Pyramid pyramid = pyramid_of(features, levels);
  const Norm norm = norm_of(name);
  filters = checked_filters(features, filters);
  grad_map = torch::stable::contiguous(grad_map);
  map = torch::stable::contiguous(map);
  const bool cosine = norm == Norm::kCosine;
  const int64_t batch = features.size(0), cells = pyramid.cells();
  const Tensor dfeatures = torch::stable::empty_like(features), dfilters = torch::stable::empty_like(filters);
  if (!batch) return {dfeatures, dfilters};
  const Tensor filter_factors = torch::stable::new_empty(filters, {batch, cells});
  const Tensor window_factors = torch::stable::new_empty(filters, {cosine ? batch : 0, cells});
  const Tensor radial = torch::stable::new_empty(filters, {cosine ? batch : 0, window_blocks(pyramid)});
  float* const window_cells = cosine ? floats(window_factors) : nullptr;
  const Launch launch(features);
  with_element(features, [&](auto element) {
    using Element = decltype(element);
    const auto problem = problem_of<Element>(features, filters, pyramid);
    window_gradients(launch, problem, floats(grad_map), floats(map), floats(cosines), floats(inverse_norms), norm,
                     floats(filter_factors), window_cells, floats(radial));
    feature_gradients(launch, problem, floats(filter_factors), window_cells, floats(radial),
                      static_cast<Element*>(dfeatures.data_ptr()), strides_of(dfeatures), floats(dfilters));
  });
  return {dfeatures, dfilters};
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CUDA, m) {
  m.impl("pyramid_correlation_cuda_fwd", TORCH_BOX(&cmx::pyramid_correlation_fwd));
  m.impl("pyramid_correlation_cuda_bwd", TORCH_BOX(&cmx::pyramid_correlation_bwd));
  m.impl("attention_consistency_cuda_fwd", TORCH_BOX(&cmx::attention_consistency_fwd));
}
