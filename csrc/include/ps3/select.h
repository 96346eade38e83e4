/// select: the `count` most probable free patches of one scale.
///
/// prob f32 [h][w] is enlarged to the scale's rows x cols by nearest: patch (r, q) has prob[r*h / rows][q*w / cols]
/// (integer division). Patches whose taken byte is not 0 are left out; the picked ones get taken = 1.
/// ids i32[count], row-major, ascending.
/// Ties: the lower id wins. They are the normal case: values repeat in blocks.
/// Errors: kInvalidArgument (sizes, NaN in prob), kOutOfRange (count negative or above the free patches).
/// When an error is returned neither taken nor ids has changed.
///
/// Cuda: prob, taken and ids lie in device memory. NaN counts as least probable; where fewer patches are free than ids has room
/// for, the last ids are -1. kUnsupported for maps above 128 x 128.
#pragma once

#include <cstdint>

#include "ps3/device.h"
#include "ps3/span.h"
#include "ps3/status.h"

namespace ps3 {

/// A map of probabilities on the low-res grid, row-major.
struct ProbMap {
  Span<const float> values;  ///< [height][width]
  int height = 0;
  int width = 0;
};

[[nodiscard]] Status select(Cpu, const ProbMap& prob, int rows, int cols, Span<std::uint8_t> taken,
                            Span<std::int32_t> ids) noexcept;
/// Of the Cuda overload.
[[nodiscard]] std::size_t select_workspace_bytes(int height, int width, int rows, int cols) noexcept;
[[nodiscard]] Status select(Cuda, const ProbMap& prob, int rows, int cols, Span<std::uint8_t> taken,
                            Span<std::int32_t> ids) noexcept;

}  // namespace ps3
