// Luma and chroma to red, green, blue in integers; frame.h states the formula and the table.
#pragma once

#include <cstdint>

#include "hd.h"
#include "ps3/frame.h"

namespace ps3::ops {

struct ColorWeights {
  std::int32_t offset, luma, red_v, green_u, green_v, blue_u;
};

PS3_HD ColorWeights color_weights(ColorMatrix matrix, bool full_range) {
  if (matrix == ColorMatrix::kBT601) {
    return full_range ? ColorWeights{0, 65536, 91881, 22554, 46802, 116130} : ColorWeights{16, 76309, 104597, 25675, 53279, 132201};
  }
  return full_range ? ColorWeights{0, 65536, 103206, 12276, 30679, 121609} : ColorWeights{16, 76309, 117489, 13975, 34925, 138438};
}

// The templates take std::int32_t or a vector of it.

template <class Int>
PS3_HD Int clip_color(Int sum) {
  Int value = sum >> 16;
  value = value < 0 ? value - value : value;
  return value > 255 ? value - value + 255 : value;
}

/// What the pixels of one chroma sample share, per colour: all of the sum but the pixel's own luma.
template <class Int>
struct ChromaPart {
  Int red, green, blue;
};

template <class Int>
PS3_HD ChromaPart<Int> chroma_part(Int u, Int v, const ColorWeights& w) {
  const std::int32_t constant = 32768 - w.offset * w.luma;
  return {v * w.red_v + (constant - 128 * w.red_v), (constant + 128 * (w.green_u + w.green_v)) - u * w.green_u - v * w.green_v,
          u * w.blue_u + (constant - 128 * w.blue_u)};
}

template <class Int>
PS3_HD Int luma_part(Int y, const ColorWeights& w) {
  return y * w.luma;
}

/// Byte offset of red, green or blue (channel 0, 1, 2) inside a packed pixel.
PS3_HD int channel_byte(PixelFormat format, int channel) {
  if (format == PixelFormat::kGRAY) return 0;
  return (format == PixelFormat::kBGR || format == PixelFormat::kBGRA) ? 2 - channel : channel;
}

PS3_HD int pixel_bytes(PixelFormat format) {
  switch (format) {
    case PixelFormat::kRGB:
    case PixelFormat::kBGR: return 3;
    case PixelFormat::kRGBA:
    case PixelFormat::kBGRA: return 4;
    case PixelFormat::kYUYV: return 2;
    default: return 1;
  }
}

}  // namespace ps3::ops
