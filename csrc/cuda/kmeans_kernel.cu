// The k-means step in CUDA C++: checks, memory and launches of kmeans_launch.cuh's kernels. The shapes, types and
// strides that the kernels rely on are checked here, for calls past the Python function.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <tuple>

#include "kmeans_launch.cuh"
#include "launch.cuh"

namespace cmx {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The public function refuses the same and names the remedy.
void check(const Tensor& x, const Tensor& centroids, const std::optional<Tensor>& weight, const std::string& metric) {
  STD_TORCH_CHECK(x.dim() == 3, "x must have shape (B, P, D), got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16 || x.scalar_type() == ScalarType::Half,
                  "x must be bfloat16 or float16");
  STD_TORCH_CHECK(x.size(1) <= 1 || x.stride(1) == 1, "x must have neighbouring positions, got a stride of ",
                  x.stride(1));
  STD_TORCH_CHECK(x.size(1) < int64_t(1) << 30, "x must have fewer than 2^30 positions per sample, got ", x.size(1));
  STD_TORCH_CHECK(x.size(2) % kDepth == 0 && x.size(2) >= kDepth && x.size(2) <= kMostWidth,
                  "x must have a multiple of 16 features, at most 128, got ", x.size(2));
  STD_TORCH_CHECK(
      centroids.dim() == 2 && centroids.size(1) == x.size(2) && centroids.scalar_type() == ScalarType::Float,
      "centroids must be (K, D) float32");
  STD_TORCH_CHECK(centroids.size(0) >= 1 && centroids.size(0) <= kMostClusters, "centroids must be 1 to 64, got ",
                  centroids.size(0));
  STD_TORCH_CHECK(centroids.get_device_index() == x.get_device_index(), "centroids and x must be on one device");
  if (weight) {
    STD_TORCH_CHECK(weight->dim() == 2 && weight->size(0) == x.size(0) && weight->size(1) == x.size(1) &&
                        weight->scalar_type() == ScalarType::Float,
                    "weight must be (B, P) float32");
    STD_TORCH_CHECK(weight->get_device_index() == x.get_device_index(), "weight and x must be on one device");
  }
  STD_TORCH_CHECK(metric == "l2" || metric == "cosine", "metric must be l2 or cosine, got ", metric);
}

template <class T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <class Element>
std::tuple<Tensor, Tensor, Tensor, Tensor> step(const Tensor& x, const Tensor& centroids,
                                                const std::optional<Tensor>& weight, Metric metric) {
  const int clusters = int(centroids.size(0)), width = int(x.size(2));
  // One sample has no next.
  const Vectors<Element> vectors{
      pointer<Element>(x), x.size(0) == 1 ? 0 : x.stride(0), x.stride(2), x.size(0), int(x.size(1)), width};
  const Launch launch(x);
  const Plan plan = plan_step(launch, vectors, clusters, weight || metric.unit);
  const auto empty = [&](std::initializer_list<int64_t> size, ScalarType type) {
    return torch::stable::new_empty(centroids, size, type);
  };
  const Tensor labels = empty({x.size(0), x.size(1)}, ScalarType::Long);
  const Tensor sums = empty({clusters, width}, ScalarType::Float);
  const Tensor counts = empty({clusters}, weight ? ScalarType::Double : ScalarType::Long);
  const Tensor inertia = empty({}, ScalarType::Double);
  const Tensor prepared = empty({prepared_floats<Element>(clusters, width)}, ScalarType::Float);
  const Tensor partials = empty({plan.rows, columns_of(clusters, width)}, ScalarType::Float);
  const StepResults results{pointer<int64_t>(labels), pointer<float>(sums), weight ? nullptr : pointer<int64_t>(counts),
                            weight ? pointer<double>(counts) : nullptr, pointer<double>(inertia)};
  run_step(launch, plan, vectors, pointer<const float>(centroids), weight ? pointer<const float>(*weight) : nullptr,
           clusters, metric, pointer<float>(prepared), pointer<float>(partials), results);
  return {labels, sums, counts, inertia};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> kmeans_step(Tensor x, Tensor centroids, std::optional<Tensor> weight,
                                                       std::string metric, bool normalize) {
  check(x, centroids, weight, metric);
  centroids = torch::stable::contiguous(centroids);
  if (weight) weight = torch::stable::contiguous(*weight);
  const bool strict = metric == "cosine";
  const Metric as{normalize || strict, strict};
  if (x.scalar_type() == ScalarType::Half) return step<__half>(x, centroids, weight, as);
  return step<__nv_bfloat16>(x, centroids, weight, as);
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CUDA, m) { m.impl("kmeans_cuda_step", TORCH_BOX(&cmx::kmeans_step)); }
