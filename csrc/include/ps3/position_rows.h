/// position_rows: the position vectors of picked patches, without making the whole resampled table.
///
/// The table [g*g][width] is resampled g x g -> n x n by bicubic, a = -0.5, WITH antialias and half-pixel centres
/// (torch.nn.functional.interpolate(mode="bicubic", antialias=True)); with crop the n x n table is the top-left part of the
/// g x g one (n <= g). n == g takes rows as they are. Then the residual row of the same id is added, if there is one.
///   out[k] = resampled[ids[k]] + residual[ids[k]]
///
/// Shapes: table f32 [g*g][width], residual f32 or f16 [n*n][width] or none, ids i32[K] with 0 <= id < n*n, out f32 [K][width].
/// Error bound: 1e-6 of the table's largest value. Ties: none.
/// Errors: kInvalidArgument (sizes, crop with n > g, two residuals), kOutOfRange (an id).
///
/// Cuda: all in device memory; the same values, to the bit; a row whose id is out of range is filled with NaN. kUnsupported where
/// the table shrinks more than 20 times.
#pragma once

#include <cstdint>

#include "ps3/device.h"
#include "ps3/span.h"
#include "ps3/status.h"

namespace ps3 {

struct PositionTable {
  Span<const float> values;  ///< [grid*grid][width]
  int grid = 0;              ///< g
  int width = 0;
  Span<const float> residual_f32;           ///< [n*n][width], or empty
  Span<const std::uint16_t> residual_f16;   ///< IEEE half, the same shape, or empty
  bool crop = false;
};

[[nodiscard]] Status position_rows(Cpu, const PositionTable& table, int n, Span<const std::int32_t> ids,
                                   Span<float> out) noexcept;
/// Of the Cuda overload: 0 where rows are copied.
[[nodiscard]] std::size_t position_rows_workspace_bytes(const PositionTable& table, int n) noexcept;
[[nodiscard]] Status position_rows(Cuda, const PositionTable& table, int n, Span<const std::int32_t> ids,
                                   Span<float> out) noexcept;

}  // namespace ps3
