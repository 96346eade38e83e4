// How gather is cut into blocks of a GPU, and the tables those blocks read. Host code and kernels share these structures.
//
// A block makes one chunk of one patch: `rows` x `cols` output pixels, all three channels. It holds the chunk's source pixels in
// shared memory, so each is read from the frame and turned into colours once for all the base pixels whose windows cover it, then
// goes through both passes of step 1 and both of step 2 without leaving the chip. Chunks are made as small as needed for several
// blocks to share a multiprocessor: latency of the few dependent loads is hidden by other blocks, not by pipelining within one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gather_math.h"
#include "ps3/gather.h"

namespace ps3::ops {

constexpr int kGatherThreads = 128;
constexpr std::size_t kChunkBytes = 16 * 1024;     // aimed at: leaves room for six to fourteen blocks a multiprocessor
constexpr std::size_t kMaxChunkBytes = 48 * 1024;  // what every GPU gives a block without being asked

/// i / n for i, n < 65536 by one multiplication; magic 0 stands for n = 1.
PS3_HD std::uint32_t divider(int n) {
  return n <= 1 ? 0u : static_cast<std::uint32_t>(((std::uint64_t{1} << 32) + static_cast<std::uint32_t>(n) - 1) / static_cast<std::uint32_t>(n));
}
PS3_HD int divide(int i, std::uint32_t magic) {
  return magic == 0 ? i : static_cast<int>((static_cast<std::uint64_t>(static_cast<std::uint32_t>(i)) * magic) >> 32);
}

/// Step 2 of one scale, and how its patches are cut into chunks. Word offsets are into the block's shared memory.
struct ChunkShape {
  int base_px, size_px, patch_px, grid;
  int taps;                    // 1: every phase is exactly 0
  int overlapping;             // taps == 4: neighbouring outputs share base pixels
  int rows, cols;              // outputs of a chunk; the last of a patch may have fewer
  int row_chunks, col_chunks;  // of a patch
  int positions_y, positions_x;  // most base rows and columns of a chunk: the pitch of the staged weights
  int columns_at, window_x_at, window_y_at, weight_x_at, weight_y_at;
  int shared_bytes;
  std::uint32_t by_cols;
};

/// The base indices outputs o .. o + n - 1 need along an axis are "positions" 0 .. num - 1.
PS3_HD int position_base(const ChunkShape& s, const int* first, int o, int p) {
  if (s.taps == 1) return first[o + p];
  const int index = s.overlapping ? first[o] + p : first[o + p / 4] + p % 4;
  return index < 0 ? 0 : (index > s.base_px - 1 ? s.base_px - 1 : index);
}
PS3_HD int position_of(const ChunkShape& s, const int* first, int o, int i) {
  return s.taps == 1 ? i : (s.overlapping ? first[o + i] - first[o] : 4 * i);
}

/// First base pixel that output i reads, before clamping.
PS3_HD int first_tap(const ChunkShape& s, int i) {
  const Phase phase = phase_of(i, s.base_px, s.size_px);
  return s.taps == 1 ? phase.index : phase.index - 1;
}

/// One chunk along one axis.
struct ChunkSpan {
  std::int32_t source_first, source_count, num_positions;
  std::uint32_t by_positions, by_groups;  // by_groups: of four source pixels, x axis only
};

/// Source columns are read in groups of four that start at multiples of four.
PS3_HD int num_groups(int source_first, int source_count) { return ((source_first & 3) + source_count + 3) / 4; }

/// Step 1 of one axis. Weights lie tap by tap: threads of neighbouring positions read neighbouring words.
struct BaseTable {
  Window* windows;        // [base]
  std::int32_t* weights;  // [max_count][base]
  int in_px, max_count;
};

struct ScaleTable {
  int* first;       // [size]
  float* weights;   // [size][4], for taps == 4
  ChunkSpan *rows, *cols;  // [grid * row_chunks], [grid * col_chunks]
};

struct TableSet {
  BaseTable x, y;
  int base_px, num_scales;
  ChunkShape shapes[kMaxGatherScales];
  ScaleTable scales[kMaxGatherScales];
};

/// Items of the kernel that makes the tables: every base column, every base row, then each scale's outputs and chunks.
PS3_HD int num_scale_items(const ChunkShape& s) { return s.size_px + s.grid * s.row_chunks + s.grid * s.col_chunks; }
PS3_HD long num_table_items(const TableSet& t) {
  long num = 2L * t.base_px;
  for (int i = 0; i < t.num_scales; ++i) num += num_scale_items(t.shapes[i]);
  return num;
}

PS3_HD void make_base(const BaseTable& table, int base_px, int i) {
  const double center = base_center(i, table.in_px, base_px), inverse = 1.0 / filter_scale(table.in_px, base_px);
  const Window window = antialias_window(center, table.in_px, base_px);
  table.windows[i] = window;
  double sum = 0.0;
  for (int t = 0; t < window.count; ++t) sum += antialias_weight(t, window.first, center, inverse);
  for (int t = 0; t < window.count; ++t) {
    const double weight = antialias_weight(t, window.first, center, inverse);
    table.weights[static_cast<std::size_t>(t) * base_px + i] = fixed_weight(sum != 0.0 ? weight / sum : weight);
  }
}

/// Outputs of one chunk along an axis: where they begin in the scale's picture, and how many they are.
struct Outputs {
  int begin, count;
};
PS3_HD Outputs chunk_outputs(int chunk, int chunks, int side, int patch_px) {
  const int patch = chunk / chunks, inside = (chunk - patch * chunks) * side;
  return {patch * patch_px + inside, side < patch_px - inside ? side : patch_px - inside};
}

PS3_HD ChunkSpan make_span(const ChunkShape& s, const BaseTable& table, const Outputs& outputs) {
  // first[] may not be there yet: other threads of the same kernel write it.
  const int begin = first_tap(s, outputs.begin), end = first_tap(s, outputs.begin + outputs.count - 1) + s.taps;
  const int low = begin < 0 ? 0 : begin, high = end > s.base_px ? s.base_px - 1 : end - 1;
  const Window first = antialias_window(base_center(low, table.in_px, s.base_px), table.in_px, s.base_px);
  const Window last = antialias_window(base_center(high, table.in_px, s.base_px), table.in_px, s.base_px);
  const int positions = s.taps == 1 ? outputs.count : (s.overlapping ? end - begin : 4 * outputs.count);
  const int count = last.first + last.count - first.first;
  return {first.first, count, positions, divider(positions), divider(num_groups(first.first, count))};
}

PS3_HD void make_table_item(const TableSet& t, long item) {
  if (item < t.base_px) return make_base(t.x, t.base_px, static_cast<int>(item));
  item -= t.base_px;
  if (item < t.base_px) return make_base(t.y, t.base_px, static_cast<int>(item));
  item -= t.base_px;
  for (int i = 0; i < t.num_scales; ++i) {
    const ChunkShape& s = t.shapes[i];
    int at = static_cast<int>(item);
    if (item >= num_scale_items(s)) {
      item -= num_scale_items(s);
      continue;
    }
    if (at < s.size_px) {
      t.scales[i].first[at] = first_tap(s, at);
      if (s.taps == 1) return;
      float weights[4];
      cubic_taps(phase_of(at, s.base_px, s.size_px).part, weights);
      for (int k = 0; k < 4; ++k) t.scales[i].weights[4 * at + k] = weights[k];
      return;
    }
    at -= s.size_px;
    const int num_rows = s.grid * s.row_chunks;
    if (at < num_rows) {
      t.scales[i].rows[at] = make_span(s, t.y, chunk_outputs(at, s.row_chunks, s.rows, s.patch_px));
    } else {
      t.scales[i].cols[at - num_rows] = make_span(s, t.x, chunk_outputs(at - num_rows, s.col_chunks, s.cols, s.patch_px));
    }
    return;
  }
}

/// A frame as kernels read it.
struct DeviceFrame {
  const std::uint8_t* plane[2];
  long stride[2];
  int format, width;
  int channel[3];                 // byte of each colour in a packed pixel
  int in_words;                   // rows start at multiples of four bytes
  std::int32_t offset, luma, red_v, green_u, green_v, blue_u;  // ColorWeights
};

struct PartLaunch {
  ChunkShape shape;
  ScaleTable table;
  const std::int32_t* ids;
  void* out;
  int first_block;
};

/// The kernel's parameter.
struct GatherLaunch {
  DeviceFrame frame;
  BaseTable x, y;
  float mean[3], std[3], scale[3];
  int exact_scale[3];  // scale is exactly 1 / std
  int num_parts, num_blocks, shared_bytes, half;
  PartLaunch parts[kMaxGatherScales];
};

/// Host side. Cuts a scale into chunks; kUnsupported if even one output pixel needs more than kMaxChunkBytes.
[[nodiscard]] Status chunk_shape(int height, int width, const Scale& scale, ChunkShape& shape) noexcept;
/// Lays the tables out from `base` on (nullptr to learn the size only). Checks all arguments.
[[nodiscard]] Status lay_tables(const char* where, int height, int width, Span<const Scale> scales, void* base, TableSet& tables,
                                std::size_t& bytes) noexcept;
/// Checks frame, parts and normalisation against the tables and fills the launch. Ids and memory are not looked at.
[[nodiscard]] Status plan_launch(const FrameView& frame, const GatherTables& tables, Span<const GatherPart> parts,
                                 const Normalize& normalize, GatherLaunch& launch) noexcept;

}  // namespace ps3::ops
