// The bodies of select's four kernels. They keep the processor's scheme: patches of one map cell share a value, so whole cells are
// taken, left, or are tied at the threshold; tied patches go by their id.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "select_math.h"

namespace ps3::ops {

constexpr int kCellThreads = 64;
constexpr int kPickThreads = 256;
constexpr int kPatchesPerThread = 8;
constexpr int kPatchesPerBlock = kPickThreads * kPatchesPerThread;
constexpr int kMaxMapSide = 128;  // cells are ranked against each other

struct SelectLaunch {
  const float* prob;
  std::uint8_t* taken;
  std::int32_t* ids;
  std::int32_t *free, *verdict;   // workspace, per cell
  std::int32_t *sure, *tied;      // workspace, per block of patches
  std::int32_t* at_threshold;     // workspace: how many of the tied patches are taken
  int height, width, rows, cols, count, num_blocks;
};

enum Verdict : std::int32_t { kLeft = 0, kTied = 1, kSure = 2 };

/// NaN counts as least probable: it is picked last.
PS3_HD float rank_of(float prob) { return prob == prob ? prob : -INFINITY; }

/// First row of an n-row grid that takes its value from row i of a map, see nearest().
PS3_HD int first_nearest(int i, int map, int n) { return static_cast<int>((static_cast<long long>(i) * n + map - 1) / map); }

/// Sum over the block's threads of what each has put into part[thread]; part holds it in its first entry afterwards.
template <class Block>
PS3_KERNEL void sum_threads(const Block& block, std::int32_t* part, int num_threads) {
  for (int half = num_threads / 2; half > 0; half /= 2) {
    block.sync();
    block.each(half, [&](int i) { part[i] += part[i + half]; });
  }
  block.sync();
}

/// Grid: cells. Free patches of each.
template <class Block>
PS3_KERNEL void free_block(const Block& block, const SelectLaunch& g, std::int32_t* shared) {
  const int cell = block.x(), row = cell / g.width, col = cell - row * g.width;
  const int top = first_nearest(row, g.height, g.rows), bottom = first_nearest(row + 1, g.height, g.rows);
  const int left = first_nearest(col, g.width, g.cols), right = first_nearest(col + 1, g.width, g.cols);
  const int across = right - left, num = across * (bottom - top);
  block.threads([&](int thread) {
    int sum = 0;
    for (int i = thread; i < num; i += kCellThreads) sum += g.taken[static_cast<std::size_t>(top + i / across) * g.cols + left + i % across] == 0;
    shared[thread] = sum;
  });
  sum_threads(block, shared, kCellThreads);
  block.each(1, [&](int) {
    g.free[cell] = shared[0];
    if (cell == 0) *g.at_threshold = 0;  // stays so where no cell is tied
  });
}

/// Grid: cells. How many free patches are more probable, or as probable, decides over the cell.
template <class Block>
PS3_KERNEL void rank_block(const Block& block, const SelectLaunch& g, std::int32_t* shared) {
  const int cell = block.x();
  const float value = rank_of(g.prob[cell]);
  std::int32_t* const equal = shared + kCellThreads;
  block.threads([&](int thread) {
    int above_sum = 0, equal_sum = 0;
    for (int i = thread; i < g.height * g.width; i += kCellThreads) {
      const float other = rank_of(g.prob[i]);
      if (more_probable(other, value)) above_sum += g.free[i];
      if (other == value) equal_sum += g.free[i];
    }
    shared[thread] = above_sum;
    equal[thread] = equal_sum;
  });
  sum_threads(block, shared, kCellThreads);
  sum_threads(block, equal, kCellThreads);
  block.each(1, [&](int) {
    const int left_to_pick = g.count - shared[0];
    g.verdict[cell] = left_to_pick <= 0 ? kLeft : (equal[0] <= left_to_pick ? kSure : kTied);
    if (g.verdict[cell] == kTied) *g.at_threshold = left_to_pick;  // the same number from every tied cell
  });
}

PS3_KERNEL int verdict_of(const SelectLaunch& g, int id) {
  if (g.taken[id] != 0) return kLeft;
  // Fits 32 bits: at most 32768 rows, 128 map rows. The processor's nearest() divides 64.
  const unsigned row = static_cast<unsigned>(id) / static_cast<unsigned>(g.cols), col = static_cast<unsigned>(id) - row * static_cast<unsigned>(g.cols);
  const unsigned y = row * static_cast<unsigned>(g.height) / static_cast<unsigned>(g.rows), x = col * static_cast<unsigned>(g.width) / static_cast<unsigned>(g.cols);
  return g.verdict[y * static_cast<unsigned>(g.width) + x];
}

/// Sure patches in the low half, tied ones in the high half: a block has at most 2048 of them.
PS3_KERNEL std::int32_t count_patches(const SelectLaunch& g, int first) {
  std::int32_t counts = 0;
  for (int id = first; id < first + kPatchesPerThread && id < g.rows * g.cols; ++id) {
    const int verdict = verdict_of(g, id);
    counts += verdict == kSure ? 1 : (verdict == kTied ? 0x10000 : 0);
  }
  return counts;
}

/// Grid: num_blocks.
template <class Block>
PS3_KERNEL void count_block(const Block& block, const SelectLaunch& g, std::int32_t* shared) {
  block.threads([&](int thread) { shared[thread] = count_patches(g, block.x() * kPatchesPerBlock + thread * kPatchesPerThread); });
  sum_threads(block, shared, kPickThreads);
  block.each(1, [&](int) {
    g.sure[block.x()] = shared[0] & 0xffff;
    g.tied[block.x()] = shared[0] >> 16;
  });
}

/// Grid: num_blocks. A patch's place among the ids is the number of picks before it.
template <class Block>
PS3_KERNEL void pick_block(const Block& block, const SelectLaunch& g, std::int32_t* shared) {
  std::int32_t *const sure_before = shared, *const tied_before = shared + kPickThreads;
  std::int32_t *from = shared + 2 * kPickThreads, *to = shared + 3 * kPickThreads;
  block.threads([&](int thread) {
    int sure = 0, tied = 0;
    for (int i = thread; i < block.x(); i += kPickThreads) {
      sure += g.sure[i];
      tied += g.tied[i];
    }
    sure_before[thread] = sure;
    tied_before[thread] = tied;
    from[thread] = count_patches(g, block.x() * kPatchesPerBlock + thread * kPatchesPerThread);
  });
  sum_threads(block, sure_before, kPickThreads);
  sum_threads(block, tied_before, kPickThreads);
  for (int step = 1; step < kPickThreads; step *= 2) {  // running sums
    block.each(kPickThreads, [&](int i) { to[i] = from[i] + (i >= step ? from[i - step] : 0); });
    block.sync();
    std::int32_t* const other = from;
    from = to;
    to = other;
  }
  const int threshold = *g.at_threshold;
  block.threads([&](int thread) {
    const std::int32_t before = thread > 0 ? from[thread - 1] : 0;
    int sure = sure_before[0] + (before & 0xffff), tied = tied_before[0] + (before >> 16);
    const int first = block.x() * kPatchesPerBlock + thread * kPatchesPerThread;
    for (int id = first; id < first + kPatchesPerThread && id < g.rows * g.cols; ++id) {
      const int verdict = verdict_of(g, id);
      if (verdict == kLeft) continue;
      const int place = sure + (tied < threshold ? tied : threshold);
      if (verdict == kSure || tied < threshold) {
        g.ids[place] = id;
        g.taken[id] = 1;
      }
      (verdict == kSure ? sure : tied) += 1;
    }
  });
  if (block.x() != g.num_blocks - 1) return;
  const std::int32_t all = from[kPickThreads - 1];
  const int tied = tied_before[0] + (all >> 16), picked = sure_before[0] + (all & 0xffff) + (tied < threshold ? tied : threshold);
  block.each(g.count - picked, [&](int i) { g.ids[picked + i] = -1; });
}

}  // namespace ps3::ops
