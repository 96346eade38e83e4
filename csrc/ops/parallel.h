// Runs items 0..num_items-1 on a few threads that live as long as the call. Which thread runs an item never changes a result.
#pragma once

#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "ps3/device.h"

namespace ps3::ops {

/// Cores that this thread may use: a container or taskset may leave fewer than the machine has.
inline int num_cores() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return std::max(1, CPU_COUNT(&allowed));
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

inline int num_workers(Cpu cpu, long num_items, long items_per_worker = 1) {
  const long wanted = cpu.num_threads > 0 ? cpu.num_threads : num_cores();
  return static_cast<int>(std::max(1L, std::min(wanted, num_items / std::max(1L, items_per_worker))));
}

/// work(item, worker) must not throw; worker is 0..workers-1.
template <class Work>
void parallel_for(int workers, long num_items, const Work& work) {
  std::atomic<long> next{0};
  const auto loop = [&](int worker) {
    for (long item; (item = next.fetch_add(1, std::memory_order_relaxed)) < num_items;) work(item, worker);
  };
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(workers));
  try {
    for (int worker = 1; worker < workers; ++worker) threads.emplace_back(loop, worker);
  } catch (const std::system_error&) {
    // No more threads to be had: the ones that started, and this one, do all items.
  }
  loop(0);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace ps3::ops
