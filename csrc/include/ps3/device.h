/// Where an op runs. Every op has one overload per device, side by side in its header.
#pragma once

#include <cstddef>

#include "ps3/status.h"

namespace ps3 {

/// Host memory in, host memory out; the call returns when the work is done.
/// Any number of threads may call any op at once: ops keep no state.
struct Cpu {
  int num_threads = 0;  ///< 0: one per core this process may use
};

/// Device memory in and out. Work is enqueued on `stream` of the current device; nothing is allocated, nothing waits.
///
/// Every Span and plane is memory the GPU reaches: device, managed or pinned host memory. Pageable host memory is refused.
/// workspace: at least <op>_workspace_bytes() of device memory, aligned to 256 bytes. It belongs to the op until the stream has
/// passed the op's work; ops on one stream may share it.
/// What would need a look at device memory cannot be refused: each header says what becomes of ids out of range and of NaN.
/// Errors: kNoCuda in a build without CUDA, without driver or GPU, and on a GPU the build has no code for.
struct Cuda {
  void* stream = nullptr;     ///< a cudaStream_t
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
};

/// kOk if Cuda overloads can run here, else kNoCuda with what is missing.
[[nodiscard]] Status check_cuda() noexcept;

}  // namespace ps3
