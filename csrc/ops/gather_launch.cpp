#include <algorithm>
#include <cmath>

#include "checks.h"
#include "fail.h"
#include "frame_math.h"
#include "gather_chunk.h"

namespace ps3 {

namespace ops {

namespace {

/// Most source pixels that base_span neighbouring base pixels read, and most base pixels that n neighbouring outputs span.
int source_bound(int in_px, int base_px, int base_span) {
  const double step = static_cast<double>(in_px) / base_px;
  return static_cast<int>(std::min<double>(in_px, std::ceil((base_span - 1) * step + 4.0 * filter_scale(in_px, base_px)) + 3.0));
}
int base_bound(const ChunkShape& s, int n) {
  const double ratio = static_cast<double>(s.base_px) / s.size_px;
  return static_cast<int>(std::ceil(ratio * (n - 1))) + 2 + (s.taps == 1 ? 0 : 3);
}
int position_bound(const ChunkShape& s, int n) { return s.taps == 1 ? n : (s.overlapping ? base_bound(s, n) : 4 * n); }

/// Shared memory of a chunk of rows x cols outputs, in this order:
///   the source as packed pixels, later the base pixels (taps == 4)
///   the columns pass as packed pixels, later three planes of floats after step 2 along y (taps == 4)
///   windows of the base columns and rows, their weights tap by tap
long lay_chunk(int height, int width, ChunkShape& s) {
  const int source_rows = source_bound(height, s.base_px, base_bound(s, s.rows));
  const int source_cols = (source_bound(width, s.base_px, base_bound(s, s.cols)) + 3 + 3) / 4 * 4;
  s.positions_y = position_bound(s, s.rows);
  s.positions_x = position_bound(s, s.cols);
  const auto round4 = [](long words) { return (words + 3) / 4 * 4; };
  const long source = static_cast<long>(source_rows) * source_cols, columns = static_cast<long>(source_rows) * s.positions_x;
  const long base = s.taps == 1 ? 0 : static_cast<long>(s.positions_y) * s.positions_x;
  const long made = s.taps == 1 ? 0 : 3L * s.rows * s.positions_x;
  const long columns_at = round4(std::max(source, base)), window_x_at = columns_at + round4(std::max(columns, made));
  const long window_y_at = window_x_at + 2L * s.positions_x, weight_x_at = window_y_at + 2L * s.positions_y;
  const long weight_y_at = weight_x_at + static_cast<long>(max_window(width, s.base_px)) * s.positions_x;
  const long words = round4(weight_y_at + static_cast<long>(max_window(height, s.base_px)) * s.positions_y);
  if (words * 4 > static_cast<long>(kMaxChunkBytes)) return words * 4;  // the offsets below might not fit
  s.columns_at = static_cast<int>(columns_at);
  s.window_x_at = static_cast<int>(window_x_at);
  s.window_y_at = static_cast<int>(window_y_at);
  s.weight_x_at = static_cast<int>(weight_x_at);
  s.weight_y_at = static_cast<int>(weight_y_at);
  s.shared_bytes = static_cast<int>(words * 4);
  return words * 4;
}

}  // namespace

Status chunk_shape(int height, int width, const Scale& scale, ChunkShape& s) noexcept {
  s = ChunkShape{};
  s.base_px = scale.base_px;
  s.size_px = scale.size_px;
  s.patch_px = scale.patch_px;
  s.grid = scale.size_px / scale.patch_px;
  s.taps = is_exact(scale.base_px, scale.size_px) ? 1 : 4;
  s.overlapping = s.taps == 4 && scale.base_px <= 4L * scale.size_px;
  s.row_chunks = s.col_chunks = 1;
  const auto split = [&](int& chunks, int& side) {
    chunks *= 2;
    side = (s.patch_px + chunks - 1) / chunks;
    chunks = (s.patch_px + side - 1) / side;
  };
  s.rows = s.cols = scale.patch_px;
  long bytes = lay_chunk(height, width, s);
  while (bytes > static_cast<long>(kChunkBytes) && (s.rows > 1 || s.cols > 1)) {
    // Whole rows first: they keep the writes of a chunk in one piece. Very flat chunks read too many rows twice.
    const bool by_rows = s.rows > 4 || s.cols <= 4 ? s.rows > 1 : false;
    by_rows ? split(s.row_chunks, s.rows) : split(s.col_chunks, s.cols);
    bytes = lay_chunk(height, width, s);
  }
  if (bytes > static_cast<long>(kMaxChunkBytes)) {
    return fail(Code::kUnsupported,
                "[gather] a %dx%d (h, w) frame over base_px %d takes %ld bytes of shared memory a pixel; Cuda has %zu. Shrink the frame or call it with Cpu.",
                height, width, scale.base_px, bytes, kMaxChunkBytes);
  }
  s.by_cols = divider(s.cols);
  return {};
}

Status lay_tables(const char* where, int height, int width, Span<const Scale> scales, void* base, TableSet& t, std::size_t& bytes) noexcept {
  if (height < 1 || width < 1 || height > 65536 || width > 65536) {
    return fail(Code::kInvalidArgument, "[%s] frames of %dx%d (h, w); needs 1..65536 each. Pass the size of the frames to come.", where, height, width);
  }
  if (scales.empty() || scales.size() > kMaxGatherScales) {
    return fail(Code::kInvalidArgument, "[%s] %zu scales; needs 1..%d. Pass the model's scales.", where, scales.size(), kMaxGatherScales);
  }
  t = TableSet{};
  t.base_px = scales[0].base_px;
  t.num_scales = static_cast<int>(scales.size());
  for (int i = 0; i < t.num_scales; ++i) {
    Status status = check_scale(scales[i]);
    if (!status.ok()) return status;
    if (scales[i].base_px != t.base_px) {
      return fail(Code::kInvalidArgument, "[%s] scales of base_px %d and %d; needs one base. Pass the scales of one model.", where, t.base_px, scales[i].base_px);
    }
    status = chunk_shape(height, width, scales[i], t.shapes[i]);
    if (!status.ok()) return status;
  }
  std::size_t at = 0;
  const auto take = [&](auto*& to, std::size_t count) {
    if (base != nullptr) to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(static_cast<char*>(base) + at);
    at += (count * sizeof(*to) + 255) / 256 * 256;
  };
  t.x.in_px = width;
  t.y.in_px = height;
  for (BaseTable* axis : {&t.x, &t.y}) {
    axis->max_count = max_window(axis->in_px, t.base_px);
    take(axis->windows, static_cast<std::size_t>(t.base_px));
    take(axis->weights, static_cast<std::size_t>(t.base_px) * axis->max_count);
  }
  for (int i = 0; i < t.num_scales; ++i) {
    const ChunkShape& s = t.shapes[i];
    ScaleTable& table = t.scales[i];
    take(table.first, static_cast<std::size_t>(s.size_px));
    take(table.weights, s.taps == 1 ? 0 : 4 * static_cast<std::size_t>(s.size_px));
    take(table.rows, static_cast<std::size_t>(s.grid) * s.row_chunks);
    take(table.cols, static_cast<std::size_t>(s.grid) * s.col_chunks);
  }
  bytes = at;
  return {};
}

namespace {

DeviceFrame device_frame(const FrameView& frame) {
  DeviceFrame f{};
  const bool planar = frame.format == PixelFormat::kNV12;
  f.format = static_cast<int>(frame.format);
  f.width = frame.width;
  f.in_words = 1;
  for (int i = 0; i < (planar ? 2 : 1); ++i) {
    f.plane[i] = frame.plane[i].data;
    f.stride[i] = static_cast<long>(frame.plane[i].stride_bytes);
    if (reinterpret_cast<std::uintptr_t>(f.plane[i]) % 4 != 0 || f.stride[i] % 4 != 0) f.in_words = 0;
  }
  for (int c = 0; c < 3; ++c) f.channel[c] = channel_byte(frame.format, c);
  const ColorWeights w = color_weights(frame.matrix, frame.full_range);
  f.offset = w.offset;
  f.luma = w.luma;
  f.red_v = w.red_v;
  f.green_u = w.green_u;
  f.green_v = w.green_v;
  f.blue_u = w.blue_u;
  return f;
}

bool same(const Scale& a, const Scale& b) { return a.base_px == b.base_px && a.size_px == b.size_px && a.patch_px == b.patch_px; }

}  // namespace

Status plan_launch(const FrameView& frame, const GatherTables& tables, Span<const GatherPart> parts, const Normalize& normalize,
                   GatherLaunch& launch) noexcept {
  Status status = check(frame);
  if (status.ok()) status = check_normalize(normalize);
  if (!status.ok()) return status;
  if (tables.data == nullptr || tables.height != frame.height || tables.width != frame.width) {
    return fail(Code::kInvalidArgument, "[gather] tables of %dx%d for a frame of %dx%d (h, w); needs tables of that size. Call make_gather_tables for it.",
                tables.height, tables.width, frame.height, frame.width);
  }
  if (parts.empty() || parts.size() > kMaxGatherScales) {
    return fail(Code::kInvalidArgument, "[gather] %zu parts; needs 1..%d. Split the call.", parts.size(), kMaxGatherScales);
  }
  TableSet set;
  std::size_t bytes = 0;
  status = lay_tables("gather", tables.height, tables.width, {tables.scales, static_cast<std::size_t>(tables.num_scales)},
                      const_cast<void*>(tables.data), set, bytes);
  if (!status.ok()) return status;
  launch = GatherLaunch{};
  launch.frame = device_frame(frame);
  launch.x = set.x;
  launch.y = set.y;
  for (int c = 0; c < 3; ++c) {
    int exponent;
    launch.mean[c] = normalize.mean[c];
    launch.std[c] = normalize.std[c];
    launch.scale[c] = 1.0f / normalize.std[c];
    launch.exact_scale[c] = std::frexp(normalize.std[c], &exponent) == 0.5f;
  }
  long blocks = 0;
  bool any = false;
  for (const GatherPart& part : parts) {
    int which = 0;
    while (which < set.num_scales && !same(tables.scales[which], part.scale)) ++which;
    if (which == set.num_scales) {
      return fail(Code::kInvalidArgument, "[gather] scale of %d px in patches of %d is not in the tables; needs one of theirs. Call make_gather_tables with it.",
                  part.scale.size_px, part.scale.patch_px);
    }
    const bool half = part.out.empty() && !part.out_f16.empty();
    if (!part.out.empty() && !part.out_f16.empty()) {
      return fail(Code::kInvalidArgument, "[gather] a part with an f32 and an f16 out; needs one. Pass one.");
    }
    status = check_out(part.scale, part.ids.size(), half ? part.out_f16.size() : part.out.size());
    if (!status.ok()) return status;
    if (part.ids.empty()) continue;
    if (any && half != (launch.half != 0)) {
      return fail(Code::kInvalidArgument, "[gather] parts with f32 and with f16 outs; needs one type. Make two calls.");
    }
    any = true;
    launch.half = half;
    PartLaunch& to = launch.parts[launch.num_parts++];
    to.shape = set.shapes[which];
    to.table = set.scales[which];
    to.ids = part.ids.data();
    to.out = half ? static_cast<void*>(part.out_f16.data()) : part.out.data();
    to.first_block = static_cast<int>(blocks);
    blocks += static_cast<long>(part.ids.size()) * to.shape.row_chunks * to.shape.col_chunks;
    if (blocks > 0x7fffffffL) return fail(Code::kUnsupported, "[gather] %ld blocks in one launch; needs fewer than 2^31. Split the ids.", blocks);
    launch.shared_bytes = std::max(launch.shared_bytes, to.shape.shared_bytes);
  }
  launch.num_blocks = static_cast<int>(blocks);
  return {};
}

}  // namespace ops

Status gather_workspace_bytes(int height, int width, Span<const Scale> scales, std::size_t& bytes) noexcept {
  ops::TableSet tables;
  return ops::lay_tables("gather_workspace_bytes", height, width, scales, nullptr, tables, bytes);
}

}  // namespace ps3
