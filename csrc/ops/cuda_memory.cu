#include "cuda_memory.h"

#include <algorithm>
#include <cstring>

#include "cuda_call.h"
#include "parallel.h"

namespace ps3::ops {

namespace {

/// Whether the GPU reads pageable memory where it lies, as on machines that share it: a copy from there may still be under way when its call returns.
bool reads_pageable() noexcept {
  int yes = 0;
  if (cudaDeviceGetAttribute(&yes, cudaDevAttrPageableMemoryAccess, current_device()) == cudaSuccess) return yes != 0;
  (void)cudaGetLastError();
  return true;
}

}  // namespace

Status allocate_device(std::size_t bytes, void*& at) noexcept {
  Status status = check_gpu("cuda");
  return status.ok() ? failed("cuda", cudaMalloc(&at, bytes > 0 ? bytes : 1)) : status;
}

void free_device(void* at) noexcept { (void)cudaFree(at); }

Status copy_memory(void* to, const void* from, std::size_t bytes, Copy direction, void* stream) noexcept {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const cudaMemcpyKind kind = direction == Copy::kToDevice ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
  Status status = failed("cuda", cudaMemcpyAsync(to, from, bytes, kind, on));
  return status.ok() && (direction == Copy::kToHost || reads_pageable()) ? failed("cuda", cudaStreamSynchronize(on)) : status;
}

Ferry::~Ferry() {
  if (done_ != nullptr) {
    (void)cudaEventSynchronize(static_cast<cudaEvent_t>(done_));
    (void)cudaEventDestroy(static_cast<cudaEvent_t>(done_));
  }
  (void)cudaFreeHost(pinned_);
}

Status Ferry::carry(void* to, const void* from, std::size_t bytes, Cpu cpu, void* stream) noexcept {
  constexpr std::size_t kPiece = std::size_t{1} << 20;
  constexpr int kMostWorkers = 8;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaSuccess;
  if (done_ == nullptr) {
    cudaEvent_t made = nullptr;
    error = cudaEventCreateWithFlags(&made, cudaEventDisableTiming);
    if (error != cudaSuccess) return failed("cuda", error);
    done_ = made;
  }
  const cudaEvent_t done = static_cast<cudaEvent_t>(done_);
  error = cudaEventSynchronize(done);  // of the piece before; at once where there was none
  if (error == cudaSuccess && capacity_ < bytes) {
    (void)cudaFreeHost(pinned_);
    pinned_ = nullptr;
    capacity_ = 0;
    if (cudaMallocHost(&pinned_, bytes) != cudaSuccess) {
      (void)cudaGetLastError();
      pinned_ = nullptr;
      return copy_memory(to, from, bytes, Copy::kToDevice, stream);
    }
    capacity_ = bytes;
  }
  if (error != cudaSuccess) return failed("cuda", error);
  const int device = current_device();
  const long pieces = static_cast<long>((bytes + kPiece - 1) / kPiece);
  const int workers = on == cudaStreamPerThread ? 1 : std::min(kMostWorkers, num_workers(cpu, pieces, 2));  // which is another one in each thread
  cudaError_t errors[kMostWorkers] = {};
  bool ready[kMostWorkers] = {true};  // the GPU is this thread's current one, not yet that of new threads
  parallel_for(workers, pieces, [&](long i, int worker) {
    if (!ready[worker]) {
      errors[worker] = cudaSetDevice(device);
      ready[worker] = true;
    }
    const std::size_t at = static_cast<std::size_t>(i) * kPiece, size = std::min(kPiece, bytes - at);
    std::memcpy(static_cast<char*>(pinned_) + at, static_cast<const char*>(from) + at, size);
    const cudaError_t copied = cudaMemcpyAsync(static_cast<char*>(to) + at, static_cast<char*>(pinned_) + at, size, cudaMemcpyHostToDevice, on);
    if (errors[worker] == cudaSuccess) errors[worker] = copied;
  });
  for (const cudaError_t each : errors) {
    if (each != cudaSuccess) return failed("cuda", each);
  }
  return failed("cuda", cudaEventRecord(done, on));
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
  if (before == device) return -1;
  if (cudaSetDevice(device) == cudaSuccess) return before;
  (void)cudaGetLastError();
  return -1;
}

}  // namespace ps3::ops
