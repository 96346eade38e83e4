/// scatter: tokens back to their places, as a feature map with zeros where nothing was looked at.
///
///   map[c][ids[k] / cols][ids[k] % cols] = tokens[k][c]
///
/// Shapes: tokens f32 [K][channels], ids i32[K] unique, 0 <= id < rows*cols, map f32 [channels][rows][cols]. K = 0 is allowed.
/// Errors: kInvalidArgument (sizes, an id given twice), kOutOfRange (an id). The map is untouched when an error is returned.
#pragma once

#include <cstdint>

#include "ps3/device.h"
#include "ps3/span.h"
#include "ps3/status.h"

namespace ps3 {

[[nodiscard]] Status scatter(Cpu, Span<const float> tokens, int channels, Span<const std::int32_t> ids, int rows, int cols,
                             Span<float> map) noexcept;
[[nodiscard]] Status scatter(Cuda, Span<const float> tokens, int channels, Span<const std::int32_t> ids, int rows, int cols,
                             Span<float> map) noexcept;

}  // namespace ps3
