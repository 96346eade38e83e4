#include "cuda_call.h"
#include "device_plans.h"

namespace ps3 {

namespace {

__global__ void __launch_bounds__(ops::kScatterThreads) place_kernel(const __grid_constant__ ops::ScatterLaunch launch) {
  const int k = static_cast<int>(blockIdx.x) * ops::kScatterThreads + static_cast<int>(threadIdx.x);
  if (k < launch.num_ids) ops::place_token(ops::GpuBlock{}, launch, k);
}
__global__ void __launch_bounds__(ops::kScatterThreads) scatter_kernel(const __grid_constant__ ops::ScatterLaunch launch) {
  __shared__ float shared[ops::kScatterSharedBytes / 4];
  ops::scatter_block(ops::GpuBlock{}, launch, shared);
}

}  // namespace

Status scatter(Cuda cuda, Span<const float> tokens, int channels, Span<const std::int32_t> ids, int rows, int cols, Span<float> map) noexcept {
  ops::ScatterLaunch g;
  Status status = ops::plan_scatter(cuda, tokens, channels, ids, rows, cols, map, g);
  if (status.ok()) status = ops::check_gpu("scatter");
  if (status.ok()) status = ops::check_reachable("scatter", "the workspace", cuda.workspace, 1);
  if (status.ok()) status = ops::check_reachable("scatter", "tokens", g.tokens, tokens.size());
  if (status.ok()) status = ops::check_reachable("scatter", "ids", g.ids, ids.size());
  if (status.ok()) status = ops::check_reachable("scatter", "map", g.map, 1);
  if (!status.ok()) return status;
  const cudaStream_t stream = static_cast<cudaStream_t>(cuda.stream);
  status = ops::failed("scatter", cudaMemsetAsync(g.token_at, 0xff, static_cast<std::size_t>(g.places) * 4, stream));
  if (!status.ok()) return status;
  if (g.num_ids > 0) place_kernel<<<(g.num_ids + ops::kScatterThreads - 1) / ops::kScatterThreads, ops::kScatterThreads, 0, stream>>>(g);
  const dim3 blocks(static_cast<unsigned>((g.places + ops::kTile - 1) / ops::kTile), static_cast<unsigned>((channels + ops::kTile - 1) / ops::kTile));
  scatter_kernel<<<blocks, ops::kScatterThreads, 0, stream>>>(g);
  return ops::launched("scatter");
}

}  // namespace ps3
