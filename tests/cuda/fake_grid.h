// Runs a kernel's body on the processor, block by block and thread by thread, phase by phase as barriers separate them.
//
// Threads of a phase run in ascending, descending or shuffled order: a result that depends on the order is a race between them.
// Shared memory is filled with garbage before every block: nothing may be read before it is written.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

struct FakeBlock {
  int index_x, index_y, num_threads;
  std::vector<int> order;

  int x() const { return index_x; }
  int y() const { return index_y; }
  int size() const { return num_threads; }
  void sync() const {}
  template <class Work>
  void each(int n, const Work& work) const {
    for (const int thread : order) {
      for (int i = thread; i < n; i += num_threads) work(i);
    }
  }
  template <class Work>
  void threads(const Work& work) const {
    for (const int thread : order) work(thread);
  }
  void highest(std::int32_t* at, std::int32_t value) const { *at = std::max(*at, value); }
};

/// order: 0 ascending, 1 descending, 2 shuffled (blocks too).
template <class Body>
void run_grid(int blocks_x, int blocks_y, int num_threads, std::size_t shared_bytes, int order, const Body& body) {
  std::vector<int> blocks(static_cast<std::size_t>(blocks_x) * blocks_y), threads(num_threads);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::iota(threads.begin(), threads.end(), 0);
  std::mt19937 random(7);
  if (order == 1) {
    std::reverse(blocks.begin(), blocks.end());
    std::reverse(threads.begin(), threads.end());
  } else if (order == 2) {
    std::shuffle(blocks.begin(), blocks.end(), random);
    std::shuffle(threads.begin(), threads.end(), random);
  }
  std::vector<std::uint32_t> shared;
  for (const int block : blocks) {
    shared.assign((shared_bytes + 3) / 4 + 4, 0xdeadbeefu);  // of its exact size, so that an address sanitizer sees what lies beyond
    std::uint32_t* at = shared.data();
    while (reinterpret_cast<std::uintptr_t>(at) % 16 != 0) ++at;
    body(FakeBlock{block % blocks_x, block / blocks_x, num_threads, threads}, at);
  }
}
