#include "cuda_call.h"
#include "device_plans.h"

namespace ps3 {

namespace {

__global__ void __launch_bounds__(ops::kScoreThreads) project_kernel(const __grid_constant__ ops::ScoreLaunch launch) {
  __shared__ float shared[ops::kScoreSharedBytes / 4];
  ops::project_block(ops::GpuBlock{}, launch, shared);
}
__global__ void __launch_bounds__(ops::kScoreThreads) cosine_kernel(const __grid_constant__ ops::ScoreLaunch launch) {
  __shared__ float shared[ops::kScoreSharedBytes / 4];
  ops::cosine_block(ops::GpuBlock{}, launch, shared);
}
__global__ void __launch_bounds__(ops::kScoreThreads) probability_kernel(const __grid_constant__ ops::ScoreLaunch launch) {
  ops::probability_block(ops::GpuBlock{}, launch);
}

}  // namespace

Status score(Cuda cuda, Span<const float> features, int grid, int width, Span<const float> prompt, const ScoreView& view,
             Span<float> prob) noexcept {
  ops::ScoreLaunch g;
  Status status = ops::plan_score(cuda, features, grid, width, prompt, view, prob, g);
  if (status.ok()) status = ops::check_gpu("score");
  const auto reach = [&](const char* name, const void* at, std::size_t size) {
    if (status.ok()) status = ops::check_reachable("score", name, at, size);
  };
  reach("the workspace", cuda.workspace, 1);
  reach("features", g.features, features.size());
  reach("prompt", g.prompt, prompt.size());
  reach("view features", view.features.data(), view.features.size());
  reach("view weight", view.weight.data(), view.features.empty() ? 0 : view.weight.size());
  reach("view bias", view.bias.data(), view.features.empty() ? 0 : view.bias.size());
  reach("prob", g.prob, prob.size());
  if (!status.ok()) return status;
  const cudaStream_t stream = static_cast<cudaStream_t>(cuda.stream);
  if (g.view_features != nullptr) project_kernel<<<ops::score_blocks(g.view_width), ops::kScoreThreads, 0, stream>>>(g);
  cosine_kernel<<<ops::cosine_blocks(g), ops::kScoreThreads, 0, stream>>>(g);
  probability_kernel<<<(grid * grid + ops::kScoreThreads - 1) / ops::kScoreThreads, ops::kScoreThreads, 0, stream>>>(g);
  return ops::launched("score");
}

}  // namespace ps3
