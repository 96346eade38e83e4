#include "ps3/version.h"

#include "isa.h"
#include "parallel.h"

namespace ps3 {

const char* version() noexcept { return PS3_VERSION; }

BuildInfo build_info() noexcept {
#if defined(__clang__)
  const char* const compiler = "Clang " __clang_version__;
#else
  const char* const compiler = "GCC " __VERSION__;
#endif
  const int cores = ops::num_cores();
#if defined(PS3_CUDA_ARCHS)
  return {compiler, true, PS3_CUDA_ARCHS, PS3_CUDA_RUNTIME, ops::isa_name(ops::isa()), cores};
#else
  return {compiler, false, "", "", ops::isa_name(ops::isa()), cores};
#endif
}

}  // namespace ps3
