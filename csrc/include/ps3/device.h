/// Where an op runs. Every op has one overload per device, side by side in its header.
#pragma once

namespace ps3 {

/// Host memory in, host memory out; the call returns when the work is done.
/// Any number of threads may call any op at once: ops keep no state.
struct Cpu {
  int num_threads = 0;  ///< 0: one per core this process may use
};

/// Device memory in and out, work enqueued on `stream` (a cudaStream_t). Answers kNoCuda in a build without CUDA.
struct Cuda {
  void* stream = nullptr;
};

}  // namespace ps3
