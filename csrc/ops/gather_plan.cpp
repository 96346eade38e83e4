#include "gather_plan.h"

#include <algorithm>
#include <numeric>

#include "isa.h"

namespace ps3::ops {

namespace {

/// needed: per patch column or row.
ScaleAxis plan_scale(const Scale& scale, const std::vector<char>& needed) {
  const bool exact = is_exact(scale.base_px, scale.size_px);
  ScaleAxis axis;
  axis.taps = exact ? 1 : 4;
  axis.first.resize(static_cast<std::size_t>(scale.size_px));
  if (!exact) axis.weights.resize(4 * static_cast<std::size_t>(scale.size_px + 3));
  for (int i = 0; i < scale.size_px; ++i) {
    if (!needed[i / scale.patch_px]) continue;
    const Phase phase = phase_of(i, scale.base_px, scale.size_px);
    axis.first[i] = exact ? phase.index : phase.index - 1;
    if (exact) continue;
    float taps[4];
    cubic_taps(phase.part, taps);
    std::copy(taps, taps + 4, &axis.weights[4 * static_cast<std::size_t>(i)]);
  }
  return axis;
}

constexpr int kBlock = 16;  // base indices whose weights are worked out side by side

/// The same as antialias_weights() and fixed_weight() for kBlock indices, in lanes.
template <int kLanes>
inline __attribute__((always_inline)) void block_weights_loop(const int* indices, int in_px, int base_px, int max_count, Window* windows,
                                                              double* weights, std::int32_t* fixed) {
  const double inverse = 1.0 / filter_scale(in_px, base_px);
  double center[kBlock], sum[kBlock] = {};
  for (int l = 0; l < kBlock; ++l) {
    center[l] = base_center(indices[l], in_px, base_px);
    windows[l] = antialias_window(center[l], in_px, base_px);
  }
  int first[kBlock], count[kBlock];
  for (int l = 0; l < kBlock; ++l) {
    first[l] = windows[l].first;
    count[l] = windows[l].count;
  }
  for (int t = 0; t < max_count; ++t) {
    double* const row = weights + t * kBlock;
    for (int l = 0; l < kBlock; ++l) {
      const double weight = antialias_weight(t, first[l], center[l], inverse);
      row[l] = t < count[l] ? weight : 0.0;
    }
    for (int l = 0; l < kBlock; ++l) sum[l] += row[l];
  }
  for (int l = 0; l < kBlock; ++l) sum[l] = sum[l] != 0.0 ? sum[l] : 1.0;
  for (int t = 0; t < max_count; ++t) {
    for (int l = 0; l < kBlock; ++l) fixed[t * kBlock + l] = fixed_weight(weights[t * kBlock + l] / sum[l]);
  }
}

PS3_FOR_EACH_ISA(block_weights,
                 (const int* indices, int in_px, int base_px, int max_count, Window* windows, double* weights, std::int32_t* fixed),
                 (indices, in_px, base_px, max_count, windows, weights, fixed), block_weights_loop)

BaseAxis plan_base(int in_px, int base_px, const std::vector<char>& needed) {
  BaseAxis axis;
  axis.max_count = max_window(in_px, base_px);
  axis.windows.resize(static_cast<std::size_t>(base_px));
  axis.weights.resize(static_cast<std::size_t>(base_px) * axis.max_count);
  std::vector<double> weights(static_cast<std::size_t>(axis.max_count) * kBlock);
  std::vector<std::int32_t> fixed(weights.size());
  int indices[kBlock], filled = 0;
  const auto flush = [&] {
    for (int l = filled; l < kBlock; ++l) indices[l] = indices[0];
    Window windows[kBlock];
    block_weights(indices, in_px, base_px, axis.max_count, windows, weights.data(), fixed.data());
    for (int l = 0; l < filled; ++l) {
      axis.windows[indices[l]] = windows[l];
      std::int32_t* const to = &axis.weights[static_cast<std::size_t>(indices[l]) * axis.max_count];
      for (int t = 0; t < windows[l].count; ++t) to[t] = fixed[t * kBlock + l];
    }
    filled = 0;
  };
  for (int i = 0; i < base_px; ++i) {
    if (needed[i]) indices[filled++] = i;
    if (filled == kBlock || (filled > 0 && i == base_px - 1)) flush();
  }
  return axis;
}

/// Patches per side of a tile, so that it samples about kTilePositions base indices; whole multiples of `multiple`.
int tile_patches(const Scale& scale, int multiple) {
  const double ratio = static_cast<double>(scale.base_px) / scale.size_px;
  const double per_patch = scale.patch_px * (is_exact(scale.base_px, scale.size_px) ? 1.0 : std::min(4.0, ratio));
  return std::clamp(static_cast<int>(std::lround(kTilePositions / (per_patch * multiple))), 1, kMaxTileSide / multiple) * multiple;
}

/// Tiles begin at whole multiples of `multiple` patches of a run, and it divides runs.
std::vector<Tile> make_tiles(const GatherPlan& plan, Span<const std::int32_t> ids, int limit, int multiple) {
  std::vector<Tile> tiles;
  std::vector<std::size_t> above, current;  // tiles that end in the row above and in this one
  int row_now = -2;
  const std::size_t num = plan.order.size();
  for (std::size_t k = 0; k < num;) {
    const std::int32_t id = ids[plan.order[k]];
    const int row = id / plan.grid, col = id % plan.grid;
    std::size_t run = 1;
    while (k + run < num && col + static_cast<int>(run) < plan.grid && ids[plan.order[k + run]] == id + static_cast<int>(run)) ++run;
    if (row != row_now) {
      above = row == row_now + 1 ? std::move(current) : std::vector<std::size_t>();
      current.clear();
      row_now = row;
    }
    const int pieces = (static_cast<int>(run) + limit - 1) / limit;
    for (int piece = 0; piece < pieces; ++piece) {
      const auto edge = [&](int n) { return static_cast<int>(run / multiple) * n / pieces * multiple; };
      const int begin = edge(piece), end = edge(piece + 1);
      const auto fits = [&](std::size_t t) {
        return tiles[t].col == col + begin && tiles[t].num_cols == end - begin && tiles[t].num_rows < limit &&
               tiles[t].row + tiles[t].num_rows == row;
      };
      const auto found = std::find_if(above.begin(), above.end(), fits);
      if (found == above.end()) {
        tiles.push_back(Tile{row, col + begin, 0, end - begin, {}});
        current.push_back(tiles.size() - 1);
      } else {
        current.push_back(*found);
      }
      Tile& tile = tiles[current.back()];
      tile.first[tile.num_rows++] = static_cast<std::int32_t>(k) + begin;
    }
    k += run;
  }
  return tiles;
}

}  // namespace

int tile_to_share(const Scale& fine, Span<const std::int32_t> fine_ids, const Scale& coarse, Span<const std::int32_t> coarse_ids) {
  const auto whole = [](const Scale& scale, Span<const std::int32_t> ids) {
    const std::size_t grid = static_cast<std::size_t>(scale.size_px / scale.patch_px);
    if (ids.size() != grid * grid) return false;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] != static_cast<std::int32_t>(i)) return false;
    }
    return true;
  };
  const auto is_resampled = [](const Scale& scale) { return !is_exact(scale.base_px, scale.size_px); };
  if (fine.base_px != coarse.base_px || !is_resampled(fine) || !is_resampled(coarse)) return 0;
  if (static_cast<long>(fine.base_px) * fine.patch_px % fine.size_px != 0 || static_cast<long>(coarse.base_px) * coarse.patch_px % coarse.size_px != 0) return 0;
  const int fine_extent = static_cast<int>(static_cast<long>(fine.base_px) * fine.patch_px / fine.size_px);
  const int coarse_extent = static_cast<int>(static_cast<long>(coarse.base_px) * coarse.patch_px / coarse.size_px);
  // Up to four base pixels to one of `fine` a tile samples all that lie between its first and its last one.
  if (fine.base_px > 4 * fine.size_px || coarse.size_px > fine.size_px || coarse_extent % fine_extent != 0 || coarse_extent > kTilePositions) return 0;
  const int side = coarse_extent / fine_extent;
  if (side > kMaxTileSide || !whole(fine, fine_ids) || !whole(coarse, coarse_ids)) return 0;
  const auto first_tap = [](const Scale& scale, int i) { return phase_of(i, scale.base_px, scale.size_px).index; };
  for (int tile = 0; tile < coarse.size_px / coarse.patch_px; ++tile) {
    const int fine_begin = tile * side * fine.patch_px, begin = tile * coarse.patch_px;
    if (first_tap(coarse, begin) < first_tap(fine, fine_begin)) return 0;
    if (first_tap(coarse, begin + coarse.patch_px - 1) > first_tap(fine, fine_begin + side * fine.patch_px - 1)) return 0;
  }
  return side;
}

Rider plan_rider(const Scale& coarse, int side) {
  const int grid = coarse.size_px / coarse.patch_px;
  return {coarse.patch_px, grid, side, plan_scale(coarse, std::vector<char>(static_cast<std::size_t>(grid), 1))};
}

GatherPlan plan_gather(const FrameView& frame, const Scale& scale, Span<const std::int32_t> ids, int multiple) {
  GatherPlan plan;
  plan.base_px = scale.base_px;
  plan.patch_px = scale.patch_px;
  plan.grid = scale.size_px / scale.patch_px;
  plan.order.resize(ids.size());
  std::iota(plan.order.begin(), plan.order.end(), 0);
  if (!std::is_sorted(ids.begin(), ids.end())) {
    std::stable_sort(plan.order.begin(), plan.order.end(), [&](int a, int b) { return ids[a] < ids[b]; });
  }
  plan.tiles = make_tiles(plan, ids, tile_patches(scale, multiple), multiple);

  std::vector<char> cols(plan.grid, 0), rows(plan.grid, 0), either(plan.grid, 0);
  for (const Tile& tile : plan.tiles) {
    std::fill_n(cols.begin() + tile.col, tile.num_cols, 1);
    std::fill_n(rows.begin() + tile.row, tile.num_rows, 1);
  }
  for (int i = 0; i < plan.grid; ++i) either[i] = cols[i] | rows[i];
  plan.scale = plan_scale(scale, either);
  const auto base_needed = [&](const std::vector<char>& patches) {
    std::vector<char> needed(static_cast<std::size_t>(scale.base_px), 0);
    for (int i = 0; i < scale.size_px; ++i) {
      if (!patches[i / scale.patch_px]) continue;
      for (int t = 0; t < plan.scale.taps; ++t) needed[std::clamp(plan.scale.first[i] + t, 0, scale.base_px - 1)] = 1;
    }
    return needed;
  };
  plan.x = plan_base(frame.width, scale.base_px, base_needed(cols));
  plan.y = plan_base(frame.height, scale.base_px, base_needed(rows));

  TileAxis axis;
  for (const Tile& tile : plan.tiles) {
    lay_out(plan, plan.x, tile.col, tile.num_cols, axis);
    plan.max_positions = std::max(plan.max_positions, axis.num_positions);
    plan.max_source_cols = std::max(plan.max_source_cols, axis.source_end - axis.source_first);
    lay_out(plan, plan.y, tile.row, tile.num_rows, axis);
    plan.max_positions = std::max(plan.max_positions, axis.num_positions);
    plan.max_source_rows = std::max(plan.max_source_rows, axis.source_end - axis.source_first);
  }
  return plan;
}

void lay_out(const GatherPlan& plan, const BaseAxis& base, int begin, int count, TileAxis& axis) {
  const int first = begin * plan.patch_px, num = count * plan.patch_px;
  axis.base.clear();
  axis.slot.resize(static_cast<std::size_t>(num) + 3);
  int next = plan.scale.first[first];  // the first base index without a position
  for (int i = 0; i < num; ++i) {
    const int tap = plan.scale.first[first + i];
    next = std::max(next, tap);
    for (; next < tap + plan.scale.taps; ++next) axis.base.push_back(std::clamp(next, 0, plan.base_px - 1));
    axis.slot[i] = static_cast<int>(axis.base.size()) - plan.scale.taps;
  }
  std::fill_n(axis.slot.begin() + num, 3, axis.slot[num - 1]);
  axis.num_positions = static_cast<int>(axis.base.size());
  axis.source_first = base.windows[axis.base.front()].first;
  axis.source_end = axis.source_first;
  for (const int index : axis.base) axis.source_end = std::max(axis.source_end, base.windows[index].first + base.windows[index].count);
}

}  // namespace ps3::ops
