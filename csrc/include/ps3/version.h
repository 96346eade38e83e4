/// Version of the library and what it was built with.
#pragma once

#define PS3_VERSION_MAJOR 0
#define PS3_VERSION_MINOR 1
#define PS3_VERSION_PATCH 0
#define PS3_VERSION "0.1.0"

namespace ps3 {

struct BuildInfo {
  const char* compiler;  ///< name and version
  bool cuda;             ///< true when this build has kernels; check_cuda() says whether they can run here
  const char* cuda_archs;  ///< what they were compiled for, "75-real 80-real ... 121"; "" without kernels
  const char* cuda_runtime;  ///< version of the CUDA runtime inside, "13.0"; needs a driver of that major version; "" without kernels
  const char* simd;      ///< instruction set the loops run with on this machine: "avx512", "avx2" or "baseline"
  int threads;           ///< what num_threads = 0 means here
};

const char* version() noexcept;
BuildInfo build_info() noexcept;

}  // namespace ps3
