// Four neighbouring pixels of a frame in device memory as packed colours: red | green << 8 | blue << 16.
#pragma once

#include <cstring>

#include "frame_math.h"
#include "gather_chunk.h"

namespace ps3::ops {

struct alignas(16) Quad {
  std::uint32_t pixel[4];
};

PS3_KERNEL std::uint32_t load_word(const std::uint8_t* from) {
#if defined(__CUDA_ARCH__)
  return __ldg(reinterpret_cast<const unsigned*>(from));
#else
  std::uint32_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
#endif
}

/// kNV12 and kYUYV: bytes of four lumas, of the two U and of the two V they share in pairs.
PS3_KERNEL Quad colors_of(std::uint32_t luma, int u0, int v0, int u1, int v1, const DeviceFrame& f) {
  const ColorWeights w{f.offset, f.luma, f.red_v, f.green_u, f.green_v, f.blue_u};
  Quad quad;
  for (int pair = 0; pair < 2; ++pair) {
    const ChromaPart<std::int32_t> part = chroma_part<std::int32_t>(pair ? u1 : u0, pair ? v1 : v0, w);
    for (int i = 2 * pair; i < 2 * pair + 2; ++i) {
      const std::int32_t light = luma_part(static_cast<std::int32_t>(luma >> (8 * i) & 255), w);
      quad.pixel[i] = static_cast<std::uint32_t>(clip_color(light + part.red) | clip_color(light + part.green) << 8 | clip_color(light + part.blue) << 16);
    }
  }
  return quad;
}

PS3_KERNEL int byte_of(std::uint32_t word, int which) { return static_cast<int>(word >> (8 * which) & 255); }

/// Bytes first .. first + 3 of a row whose last byte is `last`; beyond it the last byte again.
PS3_KERNEL std::uint32_t load_bytes(const std::uint8_t* row, int first, int last, bool whole) {
  if (whole) return load_word(row + first);
  std::uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word |= static_cast<std::uint32_t>(row[first + i < last ? first + i : last]) << (8 * i);
  return word;
}

/// Pixels x .. x + 3 of row y; x is a multiple of four. Those beyond the row's end hold anything.
PS3_KERNEL Quad load_quad(const DeviceFrame& f, int y, int x) {
  const bool whole = f.in_words && x + 4 <= f.width;
  const std::uint8_t* const row = f.plane[0] + static_cast<long>(y) * f.stride[0];
  const PixelFormat format = static_cast<PixelFormat>(f.format);
  if (format == PixelFormat::kNV12) {
    const std::uint32_t luma = load_bytes(row, x, f.width - 1, whole);
    const std::uint32_t uv = load_bytes(f.plane[1] + static_cast<long>(y / 2) * f.stride[1], x, f.width - 1, whole);
    return colors_of(luma, byte_of(uv, 0), byte_of(uv, 1), byte_of(uv, 2), byte_of(uv, 3), f);
  }
  if (format == PixelFormat::kYUYV) {
    const int last = 2 * f.width - 1;
    const std::uint32_t a = load_bytes(row, 2 * x, last, whole), b = load_bytes(row, 2 * x + 4, last, whole);
    const std::uint32_t luma = (a & 255u) | (a >> 8 & 0xff00u) | (b & 255u) << 16 | (b & 0xff0000u) << 8;
    return colors_of(luma, byte_of(a, 1), byte_of(a, 3), byte_of(b, 1), byte_of(b, 3), f);
  }
  Quad quad;
  if (format == PixelFormat::kGRAY) {
    const std::uint32_t gray = load_bytes(row, x, f.width - 1, whole);
    for (int i = 0; i < 4; ++i) quad.pixel[i] = static_cast<std::uint32_t>(byte_of(gray, i)) * 0x010101u;
    return quad;
  }
  const int step = pixel_bytes(format), last = step * f.width - 1;
  std::uint32_t word[4] = {0, 0, 0, 0};
  for (int i = 0; i < 3; ++i) word[i] = load_bytes(row, step * x + 4 * i, last, whole);
  if (step == 4) {
    word[3] = load_bytes(row, step * x + 12, last, whole);
  } else {  // three bytes a pixel in three words -> one pixel a word
    const std::uint32_t a = word[0], b = word[1], c = word[2];
    word[1] = a >> 24 | b << 8;
    word[2] = b >> 16 | c << 16;
    word[3] = c >> 8;
  }
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t middle = word[i] & 0xff00u, low = word[i] & 255u, high = word[i] >> 16 & 255u;
    quad.pixel[i] = f.channel[0] == 0 ? (low | middle | high << 16) : (high | middle | low << 16);
  }
  return quad;
}

}  // namespace ps3::ops
