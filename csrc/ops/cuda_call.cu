#include "cuda_call.h"

#include "fail.h"

namespace ps3 {

namespace ops {

Status failed(const char* where, cudaError_t error) noexcept {
  const char *const name = cudaGetErrorName(error), *const text = cudaGetErrorString(error);
  constexpr int major = CUDART_VERSION / 1000;
  if (error != cudaSuccess) (void)cudaGetLastError();  // told here; the next launch must not tell it again
  switch (error) {
    case cudaSuccess: return {};
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
      return fail(Code::kNoCuda, "[%s] no driver for CUDA %d (%s: %s); needs NVIDIA's driver of CUDA %d or newer. Install it, or call it with Cpu.",
                  where, major, name, text, major);
    case cudaErrorNoDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorInvalidDevice:
      return fail(Code::kNoCuda, "[%s] no GPU to be had (%s: %s); needs one that is free and visible. Check nvidia-smi, or call it with Cpu.", where, name, text);
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidKernelImage:
    case cudaErrorUnsupportedPtxVersion:
      return fail(Code::kNoCuda, "[%s] this GPU is not among %s (%s); needs code for it. Rebuild with -DCMAKE_CUDA_ARCHITECTURES=native.", where,
                  PS3_CUDA_ARCHS, name);
    case cudaErrorMemoryAllocation:
      return fail(Code::kOutOfMemory, "[%s] no device memory (%s). Free some, or use a smaller budget.", where, name);
    default:
      return fail(Code::kInternal, "[%s] the GPU stopped (%s: %s). After an address or launch error the process must start anew.", where, name, text);
  }
}

Status check_gpu(const char* where) noexcept {
  (void)cudaGetLastError();  // what the caller met before is not this call's failure
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return failed(where, error);
  }
  return count > 0 ? Status() : failed(where, cudaErrorNoDevice);
}

Status check_reachable(const char* where, const char* name, const void* pointer, std::size_t size) noexcept {
  if (size == 0) return {};
  if (pointer == nullptr) return fail(Code::kInvalidArgument, "[%s] %s is null; needs device memory. Pass its address.", where, name);
  cudaPointerAttributes attributes;
  const cudaError_t error = cudaPointerGetAttributes(&attributes, pointer);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return failed(where, error);
  }
  if (attributes.type == cudaMemoryTypeUnregistered) {
    return fail(Code::kInvalidArgument, "[%s] %s lies in pageable host memory; needs device, managed or pinned memory. Copy it to the GPU, or call it with Cpu.",
                where, name);
  }
  int device = 0;
  if (attributes.type == cudaMemoryTypeDevice && cudaGetDevice(&device) == cudaSuccess && attributes.device != device) {
    return fail(Code::kInvalidArgument, "[%s] %s lies on GPU %d, the call runs on GPU %d; needs one GPU. Call cudaSetDevice, or move it.", where, name,
                attributes.device, device);
  }
  return {};
}

Status launched(const char* where) noexcept { return failed(where, cudaGetLastError()); }

}  // namespace ops

namespace {

__global__ void any_kernel() {}

}  // namespace

Status check_cuda() noexcept {
  Status status = ops::check_gpu("cuda");
  cudaFuncAttributes attributes;  // which there are none of where the build has no code for this GPU
  return status.ok() ? ops::failed("cuda", cudaFuncGetAttributes(&attributes, any_kernel)) : status;
}

}  // namespace ps3
