/// Budget arithmetic: how many patches each look takes at each high-res scale. Integers only, no device.
///
/// per_look: patches of scale i = int(max_select_num * s_i^2 / sum over j >= 1 of s_j^2), i = 1 ...; scale 0 is the low-res one.
///
/// plan_looks: with x the per-look counts, X their sum and A the patches of the first n scales (all, when first_scales = 0):
///   num_looks = L    looks = min(L, ceil(A / X))
///   all              looks = ceil(A / X)
///   num_tokens = T   T = min(T, A); looks = ceil(T / X); the last look aims at T mod X (X when that is 0), the others at X
/// A look that aims at t < X takes int(x_i * t / X), so a total can fall a few short of T. With first_scales = n, counts become
/// int(x_i / sum of the first n * sum of all) for the first n scales, 1 for the others, and the last scale gets what is missing
/// to X (at least 0). Then for i ascending: if fewer than x_i patches are free, x_i is what is free and the shortfall goes to scale
/// i + 1; that of the last scale is lost. Looks that come out empty are dropped.
/// Errors: kInvalidArgument (no or several of num_looks, num_tokens, all; negative numbers; per_look sums to 0).
/// Source: NVlabs/PS3 @ f7e3fd4, get_selection_maps and forward.
#pragma once

#include <vector>

#include "ps3/span.h"
#include "ps3/status.h"

namespace ps3 {

struct LookRequest {
  int num_looks = -1;    ///< -1: not given
  int num_tokens = -1;   ///< -1: not given
  bool all = false;
  int first_scales = 0;  ///< 0: all high-res scales
};

/// scales_px: ascending, the low-res scale first. counts: one per high-res scale.
[[nodiscard]] Status per_look(Span<const int> scales_px, int max_select_num, std::vector<int>& counts) noexcept;

/// capacity, per_look: one per high-res scale. looks: one row of counts per look.
[[nodiscard]] Status plan_looks(Span<const int> capacity, Span<const int> per_look, const LookRequest& request,
                                std::vector<std::vector<int>>& looks) noexcept;

}  // namespace ps3
