/// A frame as a camera or decoder delivers it: 8-bit pixels in memory the caller owns.
///
/// Layouts (h rows, w columns; rows may be padded, pixels may not):
///   kRGB kBGR      plane 0: h x w x 3 bytes
///   kRGBA kBGRA    plane 0: h x w x 4 bytes; alpha is ignored, not blended
///   kGRAY          plane 0: h x w bytes; red = green = blue
///   kNV12          plane 0: h x w luma; plane 1: h/2 x w bytes, U and V interleaved; h and w even
///   kYUYV          plane 0: h x w*2 bytes, Y0 U Y1 V; w even
///
/// Colour. Luma and chroma become RGB in integers, the same on every machine. With y, u, v the bytes:
///   l = (y - offset) * luma + 32768
///   red   = clip((l + red_v   * (v - 128)) >> 16)
///   green = clip((l - green_u * (u - 128) - green_v * (v - 128)) >> 16)
///   blue  = clip((l + blue_u  * (u - 128)) >> 16)
/// with arithmetic shifts and clip to 0..255. Chroma is nearest: the 2 x 2 (kYUYV: 2 x 1) pixels of a sample share it.
///                       offset   luma   red_v  green_u  green_v  blue_u
///   BT.601 limited          16  76309  104597    25675    53279  132201
///   BT.601 full              0  65536   91881    22554    46802  116130
///   BT.709 limited          16  76309  117489    13975    34925  138438
///   BT.709 full              0  65536  103206    12276    30679  121609
#pragma once

#include <cstddef>
#include <cstdint>

#include "ps3/status.h"

namespace ps3 {

enum class PixelFormat : int { kRGB = 0, kBGR = 1, kRGBA = 2, kBGRA = 3, kGRAY = 4, kNV12 = 5, kYUYV = 6 };
enum class ColorMatrix : int { kBT601 = 0, kBT709 = 1 };

/// One memory area of a frame.
struct Plane {
  const std::uint8_t* data = nullptr;  ///< first byte of the first row
  std::ptrdiff_t stride_bytes = 0;     ///< from one row to the next; at least the bytes of a row
  std::size_t size_bytes = 0;          ///< readable from data on; rows that would end beyond it are refused
};

/// Borrows its planes: they must stay valid and unchanged while an op reads them.
struct FrameView {
  PixelFormat format = PixelFormat::kRGB;
  int height = 0;  ///< pixels, 1..65536
  int width = 0;   ///< pixels, 1..65536
  Plane plane[2];
  ColorMatrix matrix = ColorMatrix::kBT709;  ///< read for kNV12 and kYUYV only
  bool full_range = false;                   ///< read for kNV12 and kYUYV only
};

/// kOk, or kInvalidArgument with what is wrong with this frame. Every op that takes a frame calls it.
[[nodiscard]] Status check(const FrameView& frame) noexcept;

}  // namespace ps3
