/// Version of the library and what it was built with.
#pragma once

#define PS3_VERSION_MAJOR 0
#define PS3_VERSION_MINOR 1
#define PS3_VERSION_PATCH 0
#define PS3_VERSION "0.1.0"

namespace ps3 {

struct BuildInfo {
  const char* compiler;  ///< name and version
  bool cuda;             ///< true when the Cuda overloads work
  const char* simd;      ///< instruction set the loops run with on this machine: "avx512", "avx2" or "baseline"
  int threads;           ///< what num_threads = 0 means here
};

const char* version() noexcept;
BuildInfo build_info() noexcept;

}  // namespace ps3
