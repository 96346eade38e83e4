// The bodies of position_rows' two kernels: windows and weights of every row of the n x n table, and the rows themselves.
//
// A block makes kIdsPerBlock neighbouring ids of the list for its slice of channels, a thread four channels. Ids in one grid row share the
// sums along y: each thread keeps those of the last few table columns in shared memory of its own and adds only the columns that are
// new. Picked patches come in rows of neighbours, so most columns are summed once for several ids.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "position_rows_math.h"

namespace ps3::ops {

constexpr int kPositionThreads = 96;  // three slices of 384 channels make SO400M's 1152
constexpr int kIdsPerBlock = 8;

struct alignas(16) Four {
  float v[4];
};

struct PositionLaunch {
  const float* table;
  const float* residual_f32;
  const std::uint16_t* residual_f16;
  const std::int32_t* ids;
  float* out;
  Window* windows;  // workspace [n]; nullptr: rows are copied
  float* weights;   // workspace [n][max_count]
  int grid, n, width, num_ids, max_count, lanes;  // lanes: channels a thread loads at once, 4 or 1
};

PS3_HD void make_position_window(const PositionLaunch& g, int i) {
  const double center = table_center(i, g.grid, g.n), inverse = 1.0 / filter_scale(g.grid, g.n);
  const Window window = antialias_window(center, g.grid, g.n);
  g.windows[i] = window;
  double sum = 0.0;
  for (int t = 0; t < window.count; ++t) sum += antialias_weight(t, window.first, center, inverse);
  for (int t = 0; t < window.count; ++t) {
    const double weight = antialias_weight(t, window.first, center, inverse);
    g.weights[static_cast<std::size_t>(i) * g.max_count + t] = static_cast<float>(sum != 0.0 ? weight / sum : weight);
  }
}

template <int kChannels>
struct Lanes {
  float v[kChannels];
};

template <int kChannels>
PS3_KERNEL Lanes<kChannels> load_lanes(const float* from) {
  Lanes<kChannels> lanes;
  if constexpr (kChannels == 4) {
    const Four four = *reinterpret_cast<const Four*>(from);
    for (int i = 0; i < 4; ++i) lanes.v[i] = four.v[i];
  } else {
    lanes.v[0] = from[0];
  }
  return lanes;
}

template <int kChannels>
PS3_KERNEL void store_lanes(float* to, const Lanes<kChannels>& lanes) {
  if constexpr (kChannels == 4) {
    *reinterpret_cast<Four*>(to) = {{lanes.v[0], lanes.v[1], lanes.v[2], lanes.v[3]}};
  } else {
    to[0] = lanes.v[0];
  }
}

/// sum = first ? value * weight : sum + value * weight
template <int kChannels>
PS3_KERNEL void add_weighted(Lanes<kChannels>& sum, const Lanes<kChannels>& value, float weight, bool first) {
  for (int i = 0; i < kChannels; ++i) sum.v[i] = first ? value.v[i] * weight : sum.v[i] + value.v[i] * weight;
}

/// Grid: x ids / kIdsPerBlock, y width / (kPositionThreads * kChannels), both rounded up. Shared: a ring of max_count columns a thread.
template <int kChannels, class Block>
PS3_KERNEL void position_block(const Block& block, const PositionLaunch& g, float* shared) {
  block.threads([&](int thread) {
    const int channel = (block.y() * kPositionThreads + thread) * kChannels;
    if (channel >= g.width) return;
    const auto ring = [&](int x) { return shared + (x % g.max_count * kPositionThreads + thread) * kChannels; };
    int row = -1, begin = 0, end = 0;  // table columns whose sums along y the ring holds, for grid row `row`
    for (int k = block.x() * kIdsPerBlock; k < (block.x() + 1) * kIdsPerBlock && k < g.num_ids; ++k) {
      const int id = g.ids[k];
      float* const to = g.out + static_cast<std::size_t>(k) * g.width + channel;
      Lanes<kChannels> sum{};
      if (id < 0 || id >= g.n * g.n) {
        for (int i = 0; i < kChannels; ++i) sum.v[i] = NAN;
        store_lanes<kChannels>(to, sum);
        continue;
      }
      const int y = id / g.n, x = id - y * g.n;
      if (g.windows == nullptr) {
        sum = load_lanes<kChannels>(g.table + static_cast<std::size_t>(y * g.grid + x) * g.width + channel);
      } else {
        const Window rows = g.windows[y], cols = g.windows[x];
        const int cols_end = cols.first + cols.count;
        if (y != row || cols.first < begin || cols.first >= end) begin = end = cols.first;
        row = y;
        for (int c = end; c < cols_end; ++c) {
          Lanes<kChannels> column{};
          for (int t = 0; t < rows.count; ++t) {
            const float* const from = g.table + (static_cast<std::size_t>(rows.first + t) * g.grid + c) * g.width + channel;
            add_weighted(column, load_lanes<kChannels>(from), g.weights[static_cast<std::size_t>(y) * g.max_count + t], t == 0);
          }
          store_lanes<kChannels>(ring(c), column);
        }
        end = cols_end > end ? cols_end : end;
        begin = end - begin > g.max_count ? end - g.max_count : begin;
        for (int t = 0; t < cols.count; ++t) {
          add_weighted(sum, load_lanes<kChannels>(ring(cols.first + t)), g.weights[static_cast<std::size_t>(x) * g.max_count + t], t == 0);
        }
      }
      const std::size_t at = static_cast<std::size_t>(id) * g.width + channel;
      if (g.residual_f32 != nullptr) {
        const Lanes<kChannels> more = load_lanes<kChannels>(g.residual_f32 + at);
        for (int i = 0; i < kChannels; ++i) sum.v[i] += more.v[i];
      }
      if (g.residual_f16 != nullptr) {
        for (int i = 0; i < kChannels; ++i) sum.v[i] += half_to_float(g.residual_f16[at + i]);
      }
      store_lanes<kChannels>(to, sum);
    }
  });
}

}  // namespace ps3::ops
