// Sixteen rows of a frame, turned so that a lane is a row: strip[byte][16] for the bytes of pixels x0 .. x1 - 1.
#pragma once

#include "frame_math.h"
#include "lanes.h"

namespace ps3::ops {

/// Where a pixel's colours lie in a strip: pixel x, channel c is entry (x - x0) * pixel_step + channel[c].
struct StripLayout {
  int pixel_step;
  int channel[3];
};

/// 4 * kLanes bytes of each row: turned as 32-bit numbers, then split into bytes by shifts.
template <int kLanes>
PS3_LANES void turn_block(const std::uint8_t* const (&rows)[16], long at, std::int32_t* to) {
  using Unsigned = typename VectorOf<std::uint32_t, kLanes>::type;
  for (int group = 0; group < 16; group += kLanes) {
    Ints<kLanes> block[kLanes];
    for (int r = 0; r < kLanes; ++r) block[r] = load<Ints<kLanes>>(rows[group + r] + at);
    transpose<kLanes>(block);
    for (int i = 0; i < kLanes; ++i) {
      const Unsigned quad = reinterpret_cast<Unsigned>(block[i]);
      std::int32_t* const out = to + 64 * i + group;
      store(out, quad & 255);
      store(out + 16, (quad >> 8) & 255);
      store(out + 32, (quad >> 16) & 255);
      store(out + 48, quad >> 24);
    }
  }
}

constexpr int kStripSlack = 64;  // turn() may write that many entries past the last

/// Turns `count` bytes of each row. Reads up to 63 bytes past them only where `readable` says that all rows have them.
template <int kLanes>
PS3_LANES void turn(const std::uint8_t* const (&rows)[16], int count, bool readable, std::int32_t* strip) {
  constexpr int kBlock = 4 * kLanes;
  int at = 0;
  for (; at + (readable ? 1 : kBlock) <= count; at += kBlock) turn_block<kLanes>(rows, at, strip + 16 * at);
  if (at >= count) return;
  std::uint8_t copy[16][kBlock] = {};
  const std::uint8_t* copied[16];
  for (int r = 0; r < 16; ++r) {
    std::memcpy(copy[r], rows[r] + at, static_cast<std::size_t>(count - at));
    copied[r] = copy[r];
  }
  turn_block<kLanes>(copied, 0, strip + 16 * at);
}

/// One row of kNV12 or kYUYV to three rows of bytes. x0 is even, count may be odd; writes count rounded up to even.
PS3_LANES void convert_row(const std::uint8_t* __restrict y, const std::uint8_t* __restrict u, const std::uint8_t* __restrict v,
                           int y_step, int uv_step, int count, const ColorWeights& w, std::uint8_t* __restrict red,
                           std::uint8_t* __restrict green, std::uint8_t* __restrict blue) {
  for (int i = 0; i < (count + 1) / 2; ++i) {
    const ChromaPart chroma = chroma_part(u[i * uv_step], v[i * uv_step], w);
    const std::int32_t left = luma_part(y[2 * i * y_step], w), right = luma_part(y[(2 * i + 1) * y_step], w);
    red[2 * i] = clip_color(left + chroma.red);
    red[2 * i + 1] = clip_color(right + chroma.red);
    green[2 * i] = clip_color(left + chroma.green);
    green[2 * i + 1] = clip_color(right + chroma.green);
    blue[2 * i] = clip_color(left + chroma.blue);
    blue[2 * i + 1] = clip_color(right + chroma.blue);
  }
}

/// Rows y0 .. y0 + 15 (the last row again beyond y1) and pixels x0 .. x1 - 1. converted: 3 * 16 * source_pitch bytes.
template <int kLanes>
PS3_LANES StripLayout load_strip(const FrameView& frame, int y0, int y1, int x0, int x1, std::uint8_t* converted,
                                 int source_pitch, std::int32_t* strip) {
  const std::uint8_t* rows[16];
  const Plane& plane = frame.plane[0];
  const bool is_nv12 = frame.format == PixelFormat::kNV12;
  if (!is_nv12 && frame.format != PixelFormat::kYUYV) {
    const int step = pixel_bytes(frame.format);
    for (int r = 0; r < 16; ++r) rows[r] = plane.data + (y0 + r < y1 ? y0 + r : y1 - 1) * plane.stride_bytes + static_cast<long>(x0) * step;
    const std::uint8_t* const last = rows[y1 - y0 < 16 ? y1 - 1 - y0 : 15];
    const bool readable = (x1 - x0) * step + kStripSlack <= plane.data + plane.size_bytes - last;
    turn<kLanes>(rows, (x1 - x0) * step, readable, strip);
    return {step, {channel_byte(frame.format, 0), channel_byte(frame.format, 1), channel_byte(frame.format, 2)}};
  }
  const ColorWeights weights = color_weights(frame.matrix, frame.full_range);
  const int even = x0 & ~1, count = x1 - even;
  const int num_rows = y1 - y0 < 16 ? y1 - y0 : 16;
  for (int r = 0; r < num_rows; ++r) {
    std::uint8_t* to = converted + r * source_pitch;
    const std::uint8_t* y = plane.data + (y0 + r) * plane.stride_bytes + static_cast<long>(even) * (is_nv12 ? 1 : 2);
    if (is_nv12) {
      const std::uint8_t* uv = frame.plane[1].data + ((y0 + r) / 2) * frame.plane[1].stride_bytes + even;
      convert_row(y, uv, uv + 1, 1, 2, count, weights, to, to + 16 * source_pitch, to + 32 * source_pitch);
    } else {
      convert_row(y, y + 1, y + 3, 2, 4, count, weights, to, to + 16 * source_pitch, to + 32 * source_pitch);
    }
  }
  for (int c = 0; c < 3; ++c) {
    for (int r = 0; r < 16; ++r) rows[r] = converted + (c * 16 + (r < num_rows ? r : num_rows - 1)) * source_pitch + (x0 - even);
    turn<kLanes>(rows, x1 - x0, true, strip + 16 * c * (x1 - x0));
  }
  return {1, {0, x1 - x0, 2 * (x1 - x0)}};
}

}  // namespace ps3::ops
