// K-means steps on memory that ends where the tensors end, for a build with sanitizers: a read or write beyond them, an
// unaligned vector or an overflow ends the program.
#include <cstdio>

#include "cuda/kmeans_launch.cuh"

namespace cmx {
alignas(16) float shared[emulator::kSharedFloats];
}

namespace {

using namespace cmx;

using Element = __nv_bfloat16;  // float16 lies no other way

void run(int64_t batch, int positions, int width, int clusters, int offset, bool weighted, Metric metric) {
  // Channels of an even or odd number of elements, or of whole vectors; the last ends with its positions.
  const int64_t channel = positions + offset, sample = channel * width;
  const std::vector<Element> x(batch * sample);
  const Vectors<Element> vectors{x.data() + offset, sample, channel, batch, positions, width};
  const std::vector<float> centroids(clusters * width, 1.f), weight(batch * positions, 1.f);
  std::vector<int64_t> labels(batch * positions), counts(clusters);
  std::vector<float> sums(clusters * width), prepared(prepared_floats<Element>(clusters, width));
  std::vector<double> weights(clusters), inertia(1);
  const emulator::Launch launch;
  const Plan plan = plan_step(launch, vectors, clusters, weighted || metric.unit);
  std::vector<float> partials(plan.rows * columns_of(clusters, width));
  run_step(launch, plan, vectors, centroids.data(), weighted ? weight.data() : nullptr, clusters, metric,
           prepared.data(), partials.data(),
           {labels.data(), sums.data(), weighted ? nullptr : counts.data(), weighted ? weights.data() : nullptr,
            inertia.data()});
}

}  // namespace

int main() {
  int runs = 0;
  emulator::resident_blocks = 2;
  for (const int positions : {1, 49, 130})
    for (const int offset : {0, 1, 2, 8})
      for (const int clusters : {27, 40})
        for (const bool weighted : {false, true}) {
          const Metric metric{weighted, weighted && clusters == 27};
          const int width = clusters == 27 ? 48 : 16;
          run(2, positions, width, clusters, offset, weighted, metric);
          ++runs;
        }
  std::printf("%d runs\n", runs);
}
