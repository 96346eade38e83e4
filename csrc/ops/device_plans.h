// Host side of the small ops' kernels: argument checks, the workspace laid out, the launch filled in. Plain C++, also in builds
// without CUDA, so that the bodies can be run on the processor.
#pragma once

#include "position_rows_kernel.h"
#include "ps3/ps3.h"
#include "scatter_kernel.h"
#include "score_kernel.h"
#include "select_kernel.h"

namespace ps3::ops {

[[nodiscard]] Status plan_score(const Cuda& cuda, Span<const float> features, int grid, int width, Span<const float> prompt,
                                const ScoreView& view, Span<float> prob, ScoreLaunch& launch) noexcept;
[[nodiscard]] Status plan_select(const Cuda& cuda, const ProbMap& prob, int rows, int cols, Span<std::uint8_t> taken, Span<std::int32_t> ids,
                                 SelectLaunch& launch) noexcept;
[[nodiscard]] Status plan_position_rows(const Cuda& cuda, const PositionTable& table, int n, Span<const std::int32_t> ids, Span<float> out,
                                        PositionLaunch& launch) noexcept;
[[nodiscard]] Status plan_scatter(const Cuda& cuda, Span<const float> tokens, int channels, Span<const std::int32_t> ids, int rows, int cols,
                                  Span<float> map, ScatterLaunch& launch) noexcept;

/// kInvalidArgument where the workspace is too small or not aligned.
[[nodiscard]] Status check_workspace(const char* where, const Cuda& cuda, std::size_t needed) noexcept;

inline int position_shared_bytes(const PositionLaunch& g) { return g.windows == nullptr ? 0 : g.max_count * kPositionThreads * g.lanes * 4; }

}  // namespace ps3::ops
