// The body of gather's kernel: one block makes one chunk (gather_chunk.h). Phases between barriers hand data on in shared memory only.
//
// Block is what threads see of the grid: x(), sync(), and each(n, work), which shares items 0 .. n - 1 among the block's threads.
#pragma once

#include "frame_load.h"
#include "gather_chunk.h"

namespace ps3::ops {

struct ThreeSums {
  std::int32_t red = kHalf, green = kHalf, blue = kHalf;
  PS3_KERNEL void add(std::uint32_t pixel, std::int32_t weight) {
    red += static_cast<std::int32_t>(pixel & 255u) * weight;
    green += static_cast<std::int32_t>(pixel >> 8 & 255u) * weight;
    blue += static_cast<std::int32_t>(pixel >> 16) * weight;
  }
  PS3_KERNEL std::uint32_t packed() const {
    return static_cast<std::uint32_t>(to_byte_range(red) | to_byte_range(green) << 8 | to_byte_range(blue) << 16);
  }
};

PS3_KERNEL void store_value(float* to, float value) { *to = value; }
PS3_KERNEL void store_value(std::uint16_t* to, float value) { *to = float_to_half(value); }

template <class Out>
PS3_KERNEL void store_bytes(const GatherLaunch& g, Out* to, int area, std::uint32_t pixel) {
  for (int c = 0; c < 3; ++c) {
    const float byte = static_cast<float>(pixel >> (8 * c) & 255u);
    store_value(to + c * area, g.exact_scale[c] ? normalize_byte<true>(byte, g.mean[c], g.std[c], g.scale[c])
                                                : normalize_byte<false>(byte, g.mean[c], g.std[c], g.scale[c]));
  }
}

/// Windows and weights of the base pixels at the chunk's positions along one axis.
struct StagedAxis {
  Window* windows;
  std::int32_t* weights;  // [tap][pitch]
  int pitch;
};

/// origin: the source pixel that the block holds first.
PS3_KERNEL void stage_position(const BaseTable& table, int base_px, int base, int position, int origin, const StagedAxis& staged) {
  const Window window = table.windows[base];
  staged.windows[position] = {window.first - origin, window.count};
  for (int t = 0; t < window.count; ++t) staged.weights[t * staged.pitch + position] = table.weights[static_cast<long>(t) * base_px + base];
}

template <class Out, class Block>
PS3_KERNEL void gather_block(const Block& block, const GatherLaunch& g, std::uint32_t* shared) {
  int which = 0;
  while (which + 1 < g.num_parts && block.x() >= g.parts[which + 1].first_block) ++which;
  const PartLaunch& part = g.parts[which];
  const ChunkShape& s = part.shape;
  const int local = block.x() - part.first_block, chunks = s.row_chunks * s.col_chunks, k = local / chunks, chunk = local - k * chunks;
  const int row_chunk = chunk / s.col_chunks, col_chunk = chunk - row_chunk * s.col_chunks, area = s.patch_px * s.patch_px;
  const int inside_y = row_chunk * s.rows, inside_x = col_chunk * s.cols;
  const int rows = s.rows < s.patch_px - inside_y ? s.rows : s.patch_px - inside_y;
  const int cols = s.cols < s.patch_px - inside_x ? s.cols : s.patch_px - inside_x;
  Out* const out = static_cast<Out*>(part.out) + static_cast<std::size_t>(k) * 3 * area + inside_y * s.patch_px + inside_x;
  const int id = part.ids[k];
  if (id < 0 || id >= s.grid * s.grid) {
    block.each(rows * s.cols, [&](int i) {
      const int y = divide(i, s.by_cols), x = i - y * s.cols;
      for (int c = 0; c < 3 && x < cols; ++c) store_value(out + c * area + y * s.patch_px + x, NAN);
    });
    return;
  }
  const int patch_row = id / s.grid, patch_col = id - patch_row * s.grid;
  const ChunkSpan span_y = part.table.rows[patch_row * s.row_chunks + row_chunk], span_x = part.table.cols[patch_col * s.col_chunks + col_chunk];
  const int out_y = patch_row * s.patch_px + inside_y, out_x = patch_col * s.patch_px + inside_x;
  const int origin_x = span_x.source_first & ~3, groups = num_groups(span_x.source_first, span_x.source_count), pitch = 4 * groups;
  const int num_x = span_x.num_positions, num_y = span_y.num_positions;
  const int* const first = part.table.first;
  std::uint32_t* const source = shared;
  std::uint32_t* const columns = shared + s.columns_at;
  const StagedAxis axis_x{reinterpret_cast<Window*>(shared + s.window_x_at), reinterpret_cast<std::int32_t*>(shared + s.weight_x_at), s.positions_x};
  const StagedAxis axis_y{reinterpret_cast<Window*>(shared + s.window_y_at), reinterpret_cast<std::int32_t*>(shared + s.weight_y_at), s.positions_y};

  // Pixels and weights are loaded by different threads of one phase, so that their latencies overlap.
  const int num_quads = span_y.source_count * groups;
  block.each(num_quads + num_x + num_y, [&](int i) {
    if (i < num_quads) {
      const int y = divide(i, span_x.by_groups), x = 4 * (i - y * groups);
      *reinterpret_cast<Quad*>(source + y * pitch + x) = load_quad(g.frame, span_y.source_first + y, origin_x + x);
    } else if (i < num_quads + num_x) {
      const int p = i - num_quads;
      stage_position(g.x, s.base_px, position_base(s, first, out_x, p), p, origin_x, axis_x);
    } else {
      const int p = i - num_quads - num_x;
      stage_position(g.y, s.base_px, position_base(s, first, out_y, p), p, span_y.source_first, axis_y);
    }
  });
  block.sync();

  block.each(span_y.source_count * num_x, [&](int i) {
    const int y = divide(i, span_x.by_positions), p = i - y * num_x;
    const Window window = axis_x.windows[p];
    const std::uint32_t* const from = source + y * pitch + window.first;
    ThreeSums sums;
    for (int t = 0; t < window.count; ++t) sums.add(from[t], axis_x.weights[t * axis_x.pitch + p]);
    columns[i] = sums.packed();
  });
  block.sync();

  const auto rows_pass = [&](int y, int p) {
    const Window window = axis_y.windows[y];
    const std::uint32_t* const from = columns + window.first * num_x + p;
    ThreeSums sums;
    for (int t = 0; t < window.count; ++t) sums.add(from[t * num_x], axis_y.weights[t * axis_y.pitch + y]);
    return sums.packed();
  };
  if (s.taps == 1) {
    block.each(rows * s.cols, [&](int i) {
      const int y = divide(i, s.by_cols), x = i - y * s.cols;
      if (x < cols) store_bytes(g, out + y * s.patch_px + x, area, rows_pass(y, x));
    });
    return;
  }

  std::uint32_t* const base = shared;  // the source has been read
  block.each(num_y * num_x, [&](int i) {
    const int y = divide(i, span_x.by_positions);
    base[i] = rows_pass(y, i - y * num_x);
  });
  block.sync();

  float* const made = reinterpret_cast<float*>(columns);  // three planes of rows x num_x, over the columns pass
  const int plane = rows * num_x;
  block.each(plane, [&](int i) {
    const int y = divide(i, span_x.by_positions), p = i - y * num_x;
    const float* const taps = part.table.weights + 4 * static_cast<long>(out_y + y);
    const std::uint32_t* const from = base + position_of(s, first, out_y, y) * num_x + p;
    const std::uint32_t a = from[0], b = from[num_x], c = from[2 * num_x], d = from[3 * num_x];
    for (int channel = 0; channel < 3; ++channel) {
      const auto value = [&](std::uint32_t pixel) { return static_cast<float>(pixel >> (8 * channel) & 255u); };
      made[channel * plane + i] = ((value(a) * taps[0] + value(b) * taps[1]) + value(c) * taps[2]) + value(d) * taps[3];
    }
  });
  block.sync();

  block.each(rows * s.cols, [&](int i) {
    const int y = divide(i, s.by_cols), x = i - y * s.cols;
    if (x >= cols) return;
    const float* const taps = part.table.weights + 4 * static_cast<long>(out_x + x);
    const float* const from = made + y * num_x + position_of(s, first, out_x, x);
    for (int c = 0; c < 3; ++c) {
      const float* const v = from + c * plane;
      const float value = ((v[0] * taps[0] + v[1] * taps[1]) + v[2] * taps[2]) + v[3] * taps[3];
      store_value(out + c * area + y * s.patch_px + x, normalize_sample(value, g.mean[c], g.scale[c]));
    }
  });
}

}  // namespace ps3::ops
