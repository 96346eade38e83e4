// The bodies of score's three kernels: the prompt in the view's space, all cosines, probabilities.
//
// Sixteen threads share a row, one per partial sum of score_math.h, so that sums come out as on the processor, to the bit, and a
// row is read 64 bytes at a time.
#pragma once

#include <cstddef>

#include "score_math.h"

namespace ps3::ops {

constexpr int kScoreThreads = 256;
constexpr int kRowsPerBlock = kScoreThreads / 16;

struct ScoreLaunch {
  const float* features;
  const float* prompt;
  const float* view_features;  // nullptr: score without a view
  const float* view_weight;
  const float* view_bias;
  float* prob;
  float *query, *close, *fine;  // workspace: [view_width], [grid * grid], [view_grid * view_grid]
  int grid, width, view_grid, view_width;
};

PS3_HD int score_blocks(int rows) { return (rows + kRowsPerBlock - 1) / kRowsPerBlock; }
PS3_HD int cosine_blocks(const ScoreLaunch& g) {
  return score_blocks(g.grid * g.grid) + (g.view_features != nullptr ? score_blocks(g.view_grid * g.view_grid) : 0);
}
constexpr int kScoreSharedBytes = 3 * kScoreThreads * 4;

/// Partial sums of rows first_row ... of a matrix with `query`; done(row, ab, aa, bb) gets their folds.
template <class Block, class Done>
PS3_KERNEL void sum_rows(const Block& block, const float* matrix, int first_row, int num_rows, int width, const float* query, float* shared, const Done& done) {
  float *const ab = shared, *const aa = shared + kScoreThreads, *const bb = shared + 2 * kScoreThreads;
  block.threads([&](int thread) {
    const int row = first_row + thread / 16;
    if (row >= num_rows) return;
    const float* const a = matrix + static_cast<std::size_t>(row) * width;
    float sum_ab = 0.0f, sum_aa = 0.0f, sum_bb = 0.0f;
#if defined(__CUDA_ARCH__)
#pragma unroll 8
#endif
    for (int i = thread % 16; i < width; i += 16) {
      const float x = a[i], y = query[i];
      sum_ab += x * y;
      sum_aa += x * x;
      sum_bb += y * y;
    }
    ab[thread] = sum_ab;
    aa[thread] = sum_aa;
    bb[thread] = sum_bb;
  });
  block.sync();
  block.each(kRowsPerBlock, [&](int i) {
    if (first_row + i >= num_rows) return;
    float part[3][16];
    for (int l = 0; l < 16; ++l) {
      part[0][l] = ab[16 * i + l];
      part[1][l] = aa[16 * i + l];
      part[2][l] = bb[16 * i + l];
    }
    done(first_row + i, fold16(part[0]), fold16(part[1]), fold16(part[2]));
  });
}

/// Grid: score_blocks(view_width).
template <class Block>
PS3_KERNEL void project_block(const Block& block, const ScoreLaunch& g, float* shared) {
  sum_rows(block, g.view_weight, block.x() * kRowsPerBlock, g.view_width, g.width, g.prompt, shared,
           [&](int row, float ab, float, float) { g.query[row] = ab + g.view_bias[row]; });
}

/// Grid: cosine_blocks().
template <class Block>
PS3_KERNEL void cosine_block(const Block& block, const ScoreLaunch& g, float* shared) {
  const int low_blocks = score_blocks(g.grid * g.grid);
  const bool is_view = block.x() >= low_blocks;
  const int first_row = (is_view ? block.x() - low_blocks : block.x()) * kRowsPerBlock;
  float* const to = is_view ? g.fine : g.close;
  sum_rows(block, is_view ? g.view_features : g.features, first_row, is_view ? g.view_grid * g.view_grid : g.grid * g.grid,
           is_view ? g.view_width : g.width, is_view ? g.query : g.prompt, shared,
           [&](int row, float ab, float aa, float bb) { to[row] = cosine({ab, aa, bb}); });
}

/// Grid: places / kScoreThreads, rounded up.
template <class Block>
PS3_KERNEL void probability_block(const Block& block, const ScoreLaunch& g) {
  block.threads([&](int thread) {
    const int place = block.x() * kScoreThreads + thread;
    if (place >= g.grid * g.grid) return;
    const int row = place / g.grid, col = place - row * g.grid;
    float logit = g.close[place];
    if (g.view_features != nullptr) {
      float best = -2.0f;  // below any cosine
      for (int y = window_begin(row, g.view_grid, g.grid); y < window_end(row, g.view_grid, g.grid); ++y) {
        for (int x = window_begin(col, g.view_grid, g.grid); x < window_end(col, g.view_grid, g.grid); ++x) {
          const float value = g.fine[y * g.view_grid + x];
          best = value > best || value != value ? value : best;
        }
      }
      logit = (logit + best) / 2;
    }
    g.prob[place] = probability(logit);
  });
}

}  // namespace ps3::ops
