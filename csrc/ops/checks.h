// What both overloads of an op refuse: everything that can be said without a look at ids or values.
#pragma once

#include "ps3/ps3.h"

namespace ps3::ops {

[[nodiscard]] Status check_scale(const Scale& scale) noexcept;
[[nodiscard]] Status check_normalize(const Normalize& normalize) noexcept;
[[nodiscard]] Status check_out(const Scale& scale, std::size_t num_ids, std::size_t num_out) noexcept;
[[nodiscard]] Status check_score(Span<const float> features, int grid, int width, Span<const float> prompt, const ScoreView& view,
                                 Span<float> prob) noexcept;
[[nodiscard]] Status check_select(const ProbMap& prob, int rows, int cols, Span<std::uint8_t> taken) noexcept;
[[nodiscard]] Status check_position_rows(const PositionTable& table, int n, std::size_t num_ids, Span<float> out) noexcept;
[[nodiscard]] Status check_scatter(Span<const float> tokens, int channels, std::size_t num_ids, int rows, int cols, Span<float> map) noexcept;

}  // namespace ps3::ops
