/// score: how much a prompt cares about every place of the low-res grid.
///
///   logit[i] = cos(features[i], prompt)                                                              without a view
///   logit[i] = (cos(features[i], prompt) + max over i's window of cos(view[j], W prompt + b)) / 2               with one
///   prob[i]  = 1 / (1 + exp(-5 * logit[i]))
///   cos(a, b) = a.b / (max(|a|, 1e-12) * max(|b|, 1e-12))
///
/// Shapes, all f32 and row-major: features [g*g][width], prompt [width]; view [v*v][view width], W [view width][width],
/// b [view width], v >= g; prob [g][g]. The window of row r is view rows floor(r v / g) to ceil((r + 1) v / g) - 1, columns likewise:
/// plain blocks where g divides v, overlapping ones elsewhere (C-RADIO: 54 over 24). Sums run in 16 float partial sums
/// and the exponential is sums and products: the same bits on every machine.
/// Error bound: 2e-6 of prob. Ties: none.
/// Cuda: the same values, to the bit; what would be refused for its values (NaN, infinity) comes out as NaN.
/// Errors: kInvalidArgument (sizes, NaN or infinity in the prompt, values that make a prob NaN).
/// Source: PS3, arXiv 2503.19903, top-down selection; the bottom-up map is the same with the model's prior prompt.
#pragma once

#include "ps3/device.h"
#include "ps3/span.h"
#include "ps3/status.h"

namespace ps3 {

/// Features of the finer view and the projection of the prompt into their space. Empty: score without a view.
struct ScoreView {
  Span<const float> features;  ///< [grid*grid][width]
  int grid = 0;
  int width = 0;
  Span<const float> weight;  ///< [width][prompt width]
  Span<const float> bias;    ///< [width]
};

[[nodiscard]] Status score(Cpu, Span<const float> features, int grid, int width, Span<const float> prompt,
                           const ScoreView& view, Span<float> prob) noexcept;
/// Of the Cuda overload. view: sizes only, its memory is not read.
[[nodiscard]] std::size_t score_workspace_bytes(int grid, const ScoreView& view) noexcept;
[[nodiscard]] Status score(Cuda, Span<const float> features, int grid, int width, Span<const float> prompt,
                           const ScoreView& view, Span<float> prob) noexcept;

}  // namespace ps3
