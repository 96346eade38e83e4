#include "cuda_call.h"
#include "device_plans.h"

namespace ps3 {

namespace {

constexpr int kWindowThreads = 64;

__global__ void windows_kernel(const __grid_constant__ ops::PositionLaunch launch) {
  const int i = static_cast<int>(blockIdx.x) * kWindowThreads + static_cast<int>(threadIdx.x);
  if (i < launch.n) ops::make_position_window(launch, i);
}

template <int kChannels>
__global__ void __launch_bounds__(ops::kPositionThreads) position_kernel(const __grid_constant__ ops::PositionLaunch launch) {
  extern __shared__ __align__(16) float ring[];
  ops::position_block<kChannels>(ops::GpuBlock{}, launch, ring);
}

}  // namespace

Status position_rows(Cuda cuda, const PositionTable& table, int n, Span<const std::int32_t> ids, Span<float> out) noexcept {
  ops::PositionLaunch g;
  Status status = ops::plan_position_rows(cuda, table, n, ids, out, g);
  if (status.ok()) status = ops::check_gpu("position_rows");
  if (!status.ok() || g.num_ids == 0) return status;
  const auto reach = [&](const char* name, const void* at, std::size_t size) {
    if (status.ok()) status = ops::check_reachable("position_rows", name, at, size);
  };
  reach("the workspace", cuda.workspace, g.windows == nullptr ? 0 : 1);
  reach("table", g.table, 1);
  reach("residual", g.residual_f32, table.residual_f32.size());
  reach("residual", g.residual_f16, table.residual_f16.size());
  reach("ids", g.ids, 1);
  reach("out", g.out, 1);
  if (!status.ok()) return status;
  const cudaStream_t stream = static_cast<cudaStream_t>(cuda.stream);
  if (g.windows != nullptr) windows_kernel<<<(n + kWindowThreads - 1) / kWindowThreads, kWindowThreads, 0, stream>>>(g);
  const int per_block = ops::kPositionThreads * g.lanes;
  const dim3 blocks(static_cast<unsigned>((g.num_ids + ops::kIdsPerBlock - 1) / ops::kIdsPerBlock), static_cast<unsigned>((g.width + per_block - 1) / per_block));
  if (g.lanes == 4) {
    position_kernel<4><<<blocks, ops::kPositionThreads, ops::position_shared_bytes(g), stream>>>(g);
  } else {
    position_kernel<1><<<blocks, ops::kPositionThreads, ops::position_shared_bytes(g), stream>>>(g);
  }
  return ops::launched("position_rows");
}

}  // namespace ps3
