// Schemas of the k-means pass; cmx_fast/ops/kmeans.py says what it computes. x is (B, P, D) with any strides.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def("kmeans_assign(Tensor x, Tensor centroids, str metric, bool normalize) -> (Tensor labels, Tensor distance)");
  m.def(
      "kmeans_step(Tensor x, Tensor centroids, Tensor? weight, str metric, bool normalize) -> "
      "(Tensor labels, Tensor sums, Tensor counts, Tensor inertia)");
}
