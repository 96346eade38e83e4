// PS3_HD marks arithmetic that host code and CUDA kernels share: plain C++ for one, __host__ __device__ for the other.
// PS3_KERNEL marks a kernel's body: device code for nvcc; plain C++ for any other compiler, so that a test can run it block by block.
#pragma once

#if defined(__CUDACC__)
#define PS3_HD __host__ __device__ __forceinline__
#define PS3_KERNEL __device__ __forceinline__
#elif defined(__GNUC__)
#define PS3_HD inline __attribute__((always_inline))
#define PS3_KERNEL inline
#else
#define PS3_HD inline
#define PS3_KERNEL inline
#endif
