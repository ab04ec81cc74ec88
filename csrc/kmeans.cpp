// Schemas of the k-means pass; cmx_fast/ops/kmeans.py says what it computes. x is (B, P, D) with any strides. The step
// of the second name is csrc/cuda's, beside the Triton kernels of the first; its positions are neighbours in memory.
#include <torch/csrc/stable/library.h>

#include <string>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def("kmeans_assign(Tensor x, Tensor centroids, str metric, bool normalize) -> (Tensor labels, Tensor distance)");
  for (const std::string own : {"", "_cuda"}) {
    m.def(("kmeans" + own +
           "_step(Tensor x, Tensor centroids, Tensor? weight, str metric, bool normalize) -> "
           "(Tensor labels, Tensor sums, Tensor counts, Tensor inertia)")
              .c_str());
  }
}
