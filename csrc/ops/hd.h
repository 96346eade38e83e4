// PS3_HD marks arithmetic that host code and CUDA kernels share: plain C++ for one, __host__ __device__ for the other.
#pragma once

#if defined(__CUDACC__)
#define PS3_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define PS3_HD inline __attribute__((always_inline))
#else
#define PS3_HD inline
#endif
