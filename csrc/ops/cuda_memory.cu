#include "cuda_memory.h"

#include "cuda_call.h"

namespace ps3::ops {

Status allocate_device(std::size_t bytes, void*& at) noexcept {
  Status status = check_gpu("cuda");
  return status.ok() ? failed("cuda", cudaMalloc(&at, bytes > 0 ? bytes : 1)) : status;
}

void free_device(void* at) noexcept { (void)cudaFree(at); }

Status copy_memory(void* to, const void* from, std::size_t bytes, Copy direction, void* stream) noexcept {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const cudaMemcpyKind kind = direction == Copy::kToDevice ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
  Status status = failed("cuda", cudaMemcpyAsync(to, from, bytes, kind, on));
  return status.ok() && direction == Copy::kToHost ? failed("cuda", cudaStreamSynchronize(on)) : status;
}

Status wait_for(void* stream) noexcept { return failed("cuda", cudaStreamSynchronize(static_cast<cudaStream_t>(stream))); }

Status order_after(void* stream, void* other) noexcept {
  cudaEvent_t event;
  cudaError_t error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  if (error != cudaSuccess) return failed("cuda", error);
  error = cudaEventRecord(event, static_cast<cudaStream_t>(other));
  if (error == cudaSuccess) error = cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), event, 0);
  (void)cudaEventDestroy(event);
  return failed("cuda", error);
}

bool reachable(const void* at) noexcept {
  cudaPointerAttributes attributes;
  if (cudaPointerGetAttributes(&attributes, at) != cudaSuccess) {
    (void)cudaGetLastError();
    return false;
  }
  return attributes.type != cudaMemoryTypeUnregistered;
}

int current_device() noexcept {
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess ? device : 0;
}

int use_device(int device) noexcept {
  const int before = current_device();
  return before != device && cudaSetDevice(device) == cudaSuccess ? before : -1;
}

}  // namespace ps3::ops
