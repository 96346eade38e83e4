// The Cuda overloads of a build without CUDA.
#include "cuda_memory.h"
#include "fail.h"
#include "ps3/ps3.h"

namespace ps3 {

namespace {

Status no_cuda(const char* where) {
  return ops::fail(Code::kNoCuda, "[%s] called with Cuda; this build has no CUDA kernels. Call it with Cpu, or build with -DPS3_CUDA=ON.", where);
}

}  // namespace

Status check_cuda() noexcept { return no_cuda("cuda"); }
Status make_gather_tables(Cuda, int, int, Span<const Scale>, GatherTables&) noexcept { return no_cuda("make_gather_tables"); }
Status gather(Cuda, const FrameView&, const GatherTables&, Span<const GatherPart>, const Normalize&) noexcept { return no_cuda("gather"); }
Status gather(Cuda, const FrameView&, const Scale&, Span<const std::int32_t>, const Normalize&, Span<float>) noexcept { return no_cuda("gather"); }
Status score(Cuda, Span<const float>, int, int, Span<const float>, const ScoreView&, Span<float>) noexcept { return no_cuda("score"); }
Status select(Cuda, const ProbMap&, int, int, Span<std::uint8_t>, Span<std::int32_t>) noexcept { return no_cuda("select"); }
Status position_rows(Cuda, const PositionTable&, int, Span<const std::int32_t>, Span<float>) noexcept { return no_cuda("position_rows"); }
Status scatter(Cuda, Span<const float>, int, Span<const std::int32_t>, int, int, Span<float>) noexcept { return no_cuda("scatter"); }

}  // namespace ps3

namespace ps3::ops {

Status allocate_device(std::size_t, void*&) noexcept { return no_cuda("cuda"); }
void free_device(void*) noexcept {}
Status copy_memory(void*, const void*, std::size_t, Copy, void*) noexcept { return no_cuda("cuda"); }
Status wait_for(void*) noexcept { return no_cuda("cuda"); }
Status order_after(void*, void*) noexcept { return no_cuda("cuda"); }
bool reachable(const void*) noexcept { return false; }
Ferry::~Ferry() {}
Status Ferry::carry(void*, const void*, std::size_t, Cpu, void*) noexcept { return no_cuda("cuda"); }
int current_device() noexcept { return 0; }
int use_device(int) noexcept { return -1; }

}  // namespace ps3::ops
