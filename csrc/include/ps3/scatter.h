/// scatter: tokens back to their places, as a feature map with zeros where nothing was looked at.
///
///   map[c][ids[k] / cols][ids[k] % cols] = tokens[k][c]
///
/// Shapes: tokens f32 [K][channels], ids i32[K] unique, 0 <= id < rows*cols, map f32 [channels][rows][cols]. K = 0 is allowed.
/// Errors: kInvalidArgument (sizes, an id given twice), kOutOfRange (an id). The map is untouched when an error is returned.
///
/// Cuda: all in device memory. Ids out of range are left out; of equal ids the last wins.
#pragma once

#include <cstdint>

#include "ps3/device.h"
#include "ps3/span.h"
#include "ps3/status.h"

namespace ps3 {

[[nodiscard]] Status scatter(Cpu, Span<const float> tokens, int channels, Span<const std::int32_t> ids, int rows, int cols,
                             Span<float> map) noexcept;
/// Of the Cuda overload.
[[nodiscard]] std::size_t scatter_workspace_bytes(int rows, int cols) noexcept;
[[nodiscard]] Status scatter(Cuda, Span<const float> tokens, int channels, Span<const std::int32_t> ids, int rows, int cols,
                             Span<float> map) noexcept;

}  // namespace ps3
