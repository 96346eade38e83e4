// Sixteen rows of a frame, turned so that a lane is a row: strip[byte][16] for the bytes of pixels x0 .. x1 - 1.
#pragma once

#include <algorithm>

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

/// Luma and chroma to colours, in turned form: `count` pixels, the first of even x. y of pixel i is entry i * y_step of luma, its
/// chroma the entries i / 2 * uv_step and i / 2 * uv_step + v_offset of chroma. Colours: three planes of `pitch` entries.
template <int kLanes>
PS3_LANES void convert(const std::int32_t* luma, const std::int32_t* chroma, long y_step, long uv_step, long v_offset, int count,
                       const ColorWeights& weights, long pitch, std::int32_t* colors) {
  for (int i = 0; i < count; i += 2) {
    for (int group = 0; group < 16; group += kLanes) {
      const std::int32_t* const uv = chroma + 16 * (i / 2 * uv_step) + group;
      const ChromaPart<Ints<kLanes>> part = chroma_part(load<Ints<kLanes>>(uv), load<Ints<kLanes>>(uv + 16 * v_offset), weights);
      for (int k = i; k < i + 2; ++k) {  // an odd count writes one pixel more
        const Ints<kLanes> light = luma_part(load<Ints<kLanes>>(luma + 16 * (k * y_step) + group), weights);
        std::int32_t* const to = colors + 16 * k + group;
        store(to, clip_color(light + part.red));
        store(to + 16 * pitch, clip_color(light + part.green));
        store(to + 32 * pitch, clip_color(light + part.blue));
      }
    }
  }
}

/// Room a strip of `count` pixels needs, in entries.
inline long strip_entries(int count) { return 5L * (count + 2) + 2 * kStripSlack; }

/// Rows y0 .. y0 + 15 (the last row again beyond y1) and pixels x0 .. x1 - 1.
template <int kLanes>
PS3_LANES StripLayout load_strip(const FrameView& frame, int y0, int y1, int x0, int x1, std::int32_t* strip) {
  const bool is_nv12 = frame.format == PixelFormat::kNV12, is_yuyv = frame.format == PixelFormat::kYUYV;
  const int first = is_nv12 || is_yuyv ? x0 & ~1 : x0, count = x1 - first;
  const auto turn_plane = [&](const Plane& plane, int bytes_per_pixel, int rows_shared, int num_bytes, std::int32_t* to) __attribute__((always_inline)) {
    const std::uint8_t* rows[16];
    for (int r = 0; r < 16; ++r) rows[r] = plane.data + (std::min(y0 + r, y1 - 1) / rows_shared) * plane.stride_bytes + static_cast<long>(first) * bytes_per_pixel;
    turn<kLanes>(rows, num_bytes, num_bytes + kStripSlack <= plane.data + plane.size_bytes - rows[15], to);
  };
  if (!is_nv12 && !is_yuyv) {
    const int step = pixel_bytes(frame.format);
    turn_plane(frame.plane[0], step, 1, count * step, strip);
    return {step, {channel_byte(frame.format, 0), channel_byte(frame.format, 1), channel_byte(frame.format, 2)}};
  }
  const ColorWeights weights = color_weights(frame.matrix, frame.full_range);
  const int even = (count + 1) / 2 * 2;
  std::int32_t* const raw = strip + 16 * 3L * even;
  if (is_nv12) {
    turn_plane(frame.plane[0], 1, 1, even, raw);
    std::int32_t* const chroma = raw + 16L * (even + kStripSlack);
    turn_plane(frame.plane[1], 1, 2, even, chroma);
    convert<kLanes>(raw, chroma, 1, 2, 1, count, weights, even, strip);
  } else {
    turn_plane(frame.plane[0], 2, 1, 2 * even, raw);
    convert<kLanes>(raw, raw + 16, 2, 4, 2, count, weights, even, strip);
  }
  return {1, {x0 - first, x0 - first + even, x0 - first + 2 * even}};
}

}  // namespace ps3::ops
