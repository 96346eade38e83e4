// Device memory for the Python module. The ops never allocate and never copy; those who call them from C++ use CUDA itself.
#pragma once

#include <cstddef>

#include "ps3/device.h"
#include "ps3/status.h"

namespace ps3::ops {

enum class Copy { kToDevice, kToHost };

[[nodiscard]] Status allocate_device(std::size_t bytes, void*& at) noexcept;
void free_device(void* at) noexcept;
/// Enqueued on the stream; from and to pageable host memory it returns when that memory may be used again.
[[nodiscard]] Status copy_memory(void* to, const void* from, std::size_t bytes, Copy direction, void* stream) noexcept;
/// Pinned memory through which large pageable memory goes to a GPU, filled by several threads while what is filled is under way: the driver
/// alone uses one thread. It grows to the largest piece and is kept.
class Ferry {
 public:
  Ferry() = default;
  ~Ferry();
  Ferry(const Ferry&) = delete;
  Ferry& operator=(const Ferry&) = delete;
  /// As copy_memory to the GPU, by at most so many threads.
  [[nodiscard]] Status carry(void* to, const void* from, std::size_t bytes, Cpu cpu, void* stream) noexcept;

 private:
  void* pinned_ = nullptr;
  std::size_t capacity_ = 0;
  void* done_ = nullptr;  // an event: the last piece has left
};

[[nodiscard]] Status wait_for(void* stream) noexcept;
/// What is enqueued on `stream` from now on comes after what is on `other` now.
[[nodiscard]] Status order_after(void* stream, void* other) noexcept;
/// Whether the GPU reads this memory as it is.
bool reachable(const void* at) noexcept;
int current_device() noexcept;
/// Makes a GPU this thread's current one; -> the one before, -1 where it was current already.
int use_device(int device) noexcept;

}  // namespace ps3::ops
