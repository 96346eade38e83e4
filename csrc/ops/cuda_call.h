// What every Cuda overload does around its kernels: is there a GPU, is this device memory, did the launch go through.
#pragma once

#include <cuda_runtime_api.h>

#include "ps3/device.h"

namespace ps3::ops {

/// Threads of a kernel as its body sees them.
struct GpuBlock {
#if defined(__CUDACC__)
  __device__ int x() const { return static_cast<int>(blockIdx.x); }
  __device__ int y() const { return static_cast<int>(blockIdx.y); }
  __device__ void sync() const { __syncthreads(); }
  template <class Work>
  __device__ __forceinline__ void each(int n, const Work& work) const {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) work(i);
  }
  template <class Work>
  __device__ __forceinline__ void threads(const Work& work) const {
    work(static_cast<int>(threadIdx.x));
  }
  __device__ void highest(int* at, int value) const { atomicMax(at, value); }
#endif
};

/// kOk, or kNoCuda in words.
[[nodiscard]] Status check_gpu(const char* where) noexcept;

/// kOk if the GPU reaches this memory, else kInvalidArgument. A null pointer passes where it is empty.
[[nodiscard]] Status check_reachable(const char* where, const char* name, const void* pointer, std::size_t size) noexcept;

/// The last launch's error as a Status.
[[nodiscard]] Status launched(const char* where) noexcept;
[[nodiscard]] Status failed(const char* where, cudaError_t error) noexcept;

}  // namespace ps3::ops
