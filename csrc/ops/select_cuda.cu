#include "cuda_call.h"
#include "device_plans.h"

namespace ps3 {

namespace {

__global__ void __launch_bounds__(ops::kCellThreads) free_kernel(const __grid_constant__ ops::SelectLaunch launch) {
  __shared__ std::int32_t shared[ops::kCellThreads];
  ops::free_block(ops::GpuBlock{}, launch, shared);
}
__global__ void __launch_bounds__(ops::kCellThreads) rank_kernel(const __grid_constant__ ops::SelectLaunch launch) {
  __shared__ std::int32_t shared[2 * ops::kCellThreads];
  ops::rank_block(ops::GpuBlock{}, launch, shared);
}
__global__ void __launch_bounds__(ops::kPickThreads) count_kernel(const __grid_constant__ ops::SelectLaunch launch) {
  __shared__ std::int32_t shared[ops::kPickThreads];
  ops::count_block(ops::GpuBlock{}, launch, shared);
}
__global__ void __launch_bounds__(ops::kPickThreads) pick_kernel(const __grid_constant__ ops::SelectLaunch launch) {
  __shared__ std::int32_t shared[4 * ops::kPickThreads];
  ops::pick_block(ops::GpuBlock{}, launch, shared);
}

}  // namespace

Status select(Cuda cuda, const ProbMap& prob, int rows, int cols, Span<std::uint8_t> taken, Span<std::int32_t> ids) noexcept {
  ops::SelectLaunch g;
  Status status = ops::plan_select(cuda, prob, rows, cols, taken, ids, g);
  if (status.ok()) status = ops::check_gpu("select");
  if (!status.ok() || g.count == 0) return status;
  status = ops::check_reachable("select", "the workspace", cuda.workspace, 1);
  if (status.ok()) status = ops::check_reachable("select", "prob", g.prob, 1);
  if (status.ok()) status = ops::check_reachable("select", "taken", g.taken, 1);
  if (status.ok()) status = ops::check_reachable("select", "ids", g.ids, 1);
  if (!status.ok()) return status;
  const cudaStream_t stream = static_cast<cudaStream_t>(cuda.stream);
  const int cells = g.height * g.width;
  free_kernel<<<cells, ops::kCellThreads, 0, stream>>>(g);
  rank_kernel<<<cells, ops::kCellThreads, 0, stream>>>(g);
  count_kernel<<<g.num_blocks, ops::kPickThreads, 0, stream>>>(g);
  pick_kernel<<<g.num_blocks, ops::kPickThreads, 0, stream>>>(g);
  return ops::launched("select");
}

}  // namespace ps3
