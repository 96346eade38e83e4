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

PS3_HD std::uint8_t clip_color(std::int32_t sum) {
  const std::int32_t value = sum >> 16;
  return static_cast<std::uint8_t>(value < 0 ? 0 : (value > 255 ? 255 : value));
}

/// What chroma adds to each colour; shared by the pixels of one chroma sample.
struct ChromaPart {
  std::int32_t red, green, blue;
};

PS3_HD ChromaPart chroma_part(int u, int v, const ColorWeights& w) {
  return {w.red_v * (v - 128), -w.green_u * (u - 128) - w.green_v * (v - 128), w.blue_u * (u - 128)};
}

PS3_HD std::int32_t luma_part(int y, const ColorWeights& w) { return (y - w.offset) * w.luma + 32768; }

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
