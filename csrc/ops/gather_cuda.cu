#include "cuda_call.h"
#include "device_plans.h"
#include "fail.h"
#include "gather_kernel.h"

namespace ps3 {

namespace {

constexpr int kTableThreads = 128;

// As many blocks as fill a multiprocessor: the kernel waits for memory, not for arithmetic.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define PS3_GATHER_BLOCKS 8
#else
#define PS3_GATHER_BLOCKS 12
#endif

__global__ void __launch_bounds__(kTableThreads) tables_kernel(const __grid_constant__ ops::TableSet set) {
  const long item = static_cast<long>(blockIdx.x) * kTableThreads + threadIdx.x;
  if (item < ops::num_table_items(set)) ops::make_table_item(set, item);
}

template <class Out>
__global__ void __launch_bounds__(ops::kGatherThreads, PS3_GATHER_BLOCKS) gather_kernel(const __grid_constant__ ops::GatherLaunch launch) {
  extern __shared__ __align__(16) std::uint32_t shared[];
  ops::gather_block<Out>(ops::GpuBlock{}, launch, shared);
}

}  // namespace

Status make_gather_tables(Cuda cuda, int height, int width, Span<const Scale> scales, GatherTables& tables) noexcept {
  constexpr const char* where = "make_gather_tables";
  ops::TableSet set;
  std::size_t bytes = 0;
  Status status = ops::lay_tables(where, height, width, scales, nullptr, set, bytes);
  if (status.ok()) status = ops::check_gpu(where);
  if (status.ok()) status = ops::check_workspace("gather", cuda, bytes);
  if (status.ok()) status = ops::check_reachable(where, "the workspace", cuda.workspace, bytes);
  if (status.ok()) status = ops::lay_tables(where, height, width, scales, cuda.workspace, set, bytes);
  if (!status.ok()) return status;
  const long blocks = (ops::num_table_items(set) + kTableThreads - 1) / kTableThreads;
  tables_kernel<<<static_cast<unsigned>(blocks), kTableThreads, 0, static_cast<cudaStream_t>(cuda.stream)>>>(set);
  status = ops::launched(where);
  if (!status.ok()) return status;
  tables = GatherTables{};
  tables.data = cuda.workspace;
  tables.height = height;
  tables.width = width;
  tables.num_scales = set.num_scales;
  for (int i = 0; i < set.num_scales; ++i) tables.scales[i] = scales[i];
  return {};
}

Status gather(Cuda cuda, const FrameView& frame, const GatherTables& tables, Span<const GatherPart> parts, const Normalize& normalize) noexcept {
  ops::GatherLaunch launch;
  Status status = ops::plan_launch(frame, tables, parts, normalize, launch);
  if (status.ok()) status = ops::check_gpu("gather");
  if (!status.ok() || launch.num_blocks == 0) return status;
  const int planes = frame.format == PixelFormat::kNV12 ? 2 : 1;
  for (int i = 0; i < planes && status.ok(); ++i) {
    status = ops::check_reachable("gather", i == 0 ? "plane 0" : "plane 1", frame.plane[i].data, frame.plane[i].size_bytes);
  }
  for (int i = 0; i < launch.num_parts && status.ok(); ++i) {
    status = ops::check_reachable("gather", "ids", launch.parts[i].ids, 1);
    if (status.ok()) status = ops::check_reachable("gather", "out", launch.parts[i].out, 1);
  }
  if (!status.ok()) return status;
  const cudaStream_t stream = static_cast<cudaStream_t>(cuda.stream);
  const unsigned blocks = static_cast<unsigned>(launch.num_blocks);
  if (launch.half) {
    gather_kernel<std::uint16_t><<<blocks, ops::kGatherThreads, launch.shared_bytes, stream>>>(launch);
  } else {
    gather_kernel<float><<<blocks, ops::kGatherThreads, launch.shared_bytes, stream>>>(launch);
  }
  return ops::launched("gather");
}

Status gather(Cuda cuda, const FrameView& frame, const Scale& scale, Span<const std::int32_t> ids, const Normalize& normalize,
              Span<float> out) noexcept {
  GatherTables tables;
  Status status = make_gather_tables(cuda, frame.height, frame.width, Span<const Scale>(&scale, 1), tables);
  if (!status.ok()) return status;
  const GatherPart part{scale, ids, out, {}};
  return gather(cuda, frame, tables, Span<const GatherPart>(&part, 1), normalize);
}

}  // namespace ps3
