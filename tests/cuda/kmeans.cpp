// The kernels of the k-means step in the emulator, for ctypes: raw pointers in, a message out if something is wrong.
#include "cuda/kmeans_launch.cuh"

namespace cmx {
alignas(16) float shared[emulator::kSharedFloats];
}

namespace {

thread_local std::string message;

template <class Element>
cmx::Plan run(const void* x, const int64_t* sizes, const int64_t* strides, const float* centroids, int clusters,
              const float* weight, cmx::Metric metric, const cmx::StepResults& results) {
  const emulator::Launch launch;
  const cmx::Vectors<Element> vectors{
      static_cast<const Element*>(x), strides[0], strides[1], sizes[0], int(sizes[1]), int(sizes[2])};
  const cmx::Plan plan = cmx::plan_step(launch, vectors, clusters, weight || metric.unit);
  // A row more than there are: a write beyond shows.
  const int columns = cmx::columns_of(clusters, vectors.width);
  std::vector<float> prepared(cmx::prepared_floats<Element>(clusters, vectors.width) + 4, NAN);
  std::vector<float> partials((plan.rows + 1) * columns, NAN);
  float* const aligned = prepared.data() + (16 - reinterpret_cast<uintptr_t>(prepared.data()) % 16) % 16 / 4;
  cmx::run_step(launch, plan, vectors, centroids, weight, clusters, metric, aligned, partials.data(), results);
  for (int i = 0; i < columns; ++i)
    if (!std::isnan(partials[plan.rows * columns + i])) throw std::runtime_error("a row of sums too many");
  return plan;
}

}  // namespace

extern "C" {

void set_order(int backward) { emulator::order = backward ? emulator::Order::kBackward : emulator::Order::kForward; }
void set_resident(int blocks) { emulator::resident_blocks = blocks; }
int launched() { return std::exchange(emulator::launches, 0); }

// x (B, P, D) with strides of its first and last dimension; `plan` receives blocks and rows.
const char* step(const void* x, const int64_t* sizes, const int64_t* strides, int half, const float* centroids,
                 int clusters, const float* weight, int unit, int strict, int64_t* labels, float* sums, int64_t* counts,
                 double* weights, double* inertia, int64_t* plan) {
  try {
    const cmx::StepResults results{labels, sums, counts, weights, inertia};
    const cmx::Metric metric{unit != 0, strict != 0};
#ifdef ONLY_BFLOAT16
    if (half) throw std::invalid_argument("compiled without float16");
    const auto chosen = run<__nv_bfloat16>(x, sizes, strides, centroids, clusters, weight, metric, results);
#else
    const auto chosen = half ? run<__half>(x, sizes, strides, centroids, clusters, weight, metric, results)
                             : run<__nv_bfloat16>(x, sizes, strides, centroids, clusters, weight, metric, results);
#endif
    plan[0] = chosen.blocks;
    plan[1] = chosen.rows;
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
}
