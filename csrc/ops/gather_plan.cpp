#include "gather_plan.h"

#include <algorithm>
#include <numeric>

namespace ps3::ops {

namespace {

ScaleAxis plan_scale(int base_px, int size_px) {
  ScaleAxis axis;
  std::vector<Phase> phases(static_cast<std::size_t>(size_px));
  for (int i = 0; i < size_px; ++i) phases[i] = phase_of(i, base_px, size_px);
  const bool exact = std::all_of(phases.begin(), phases.end(), [](const Phase& p) { return p.part == 0.0f; });
  axis.taps = exact ? 1 : 4;
  axis.first.resize(size_px);
  for (int i = 0; i < size_px; ++i) axis.first[i] = exact ? phases[i].index : phases[i].index - 1;
  if (!exact) {
    axis.weights.assign(4 * static_cast<std::size_t>(size_px + 3), 0.0f);
    for (int i = 0; i < size_px; ++i) {
      float taps[4];
      cubic_taps(phases[i].part, taps);
      std::copy(taps, taps + 4, &axis.weights[4 * static_cast<std::size_t>(i)]);
    }
  }
  return axis;
}

BaseAxis plan_base(int in_px, int base_px, const std::vector<char>& needed) {
  BaseAxis axis;
  axis.max_count = max_window(in_px, base_px);
  axis.windows.resize(base_px);
  axis.weights.resize(static_cast<std::size_t>(base_px) * axis.max_count);
  std::vector<double> weights(axis.max_count);
  for (int i = 0; i < base_px; ++i) {
    if (!needed[i]) continue;
    const Window window = antialias_window(i, in_px, base_px);
    antialias_weights(i, in_px, base_px, window, weights.data());
    axis.windows[i] = window;
    std::int32_t* fixed = &axis.weights[static_cast<std::size_t>(i) * axis.max_count];
    for (int t = 0; t < window.count; ++t) fixed[t] = fixed_weight(weights[t]);
  }
  return axis;
}

/// Patches per side of a tile, so that it samples about kTilePositions base indices.
int tile_patches(const GatherPlan& plan, int size_px) {
  const double ratio = static_cast<double>(plan.base_px) / size_px;
  const double per_patch = plan.patch_px * (plan.scale.taps == 1 ? 1.0 : std::min(4.0, ratio));
  return std::clamp(static_cast<int>(kTilePositions / per_patch), 1, kMaxTileRows);
}

std::vector<Tile> make_tiles(const GatherPlan& plan, Span<const std::int32_t> ids, int limit) {
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
      const int begin = static_cast<int>(run) * piece / pieces, end = static_cast<int>(run) * (piece + 1) / pieces;
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

GatherPlan plan_gather(const FrameView& frame, const Scale& scale, Span<const std::int32_t> ids) {
  GatherPlan plan;
  plan.base_px = scale.base_px;
  plan.patch_px = scale.patch_px;
  plan.grid = scale.size_px / scale.patch_px;
  plan.scale = plan_scale(scale.base_px, scale.size_px);
  plan.order.resize(ids.size());
  std::iota(plan.order.begin(), plan.order.end(), 0);
  if (!std::is_sorted(ids.begin(), ids.end())) {
    std::stable_sort(plan.order.begin(), plan.order.end(), [&](int a, int b) { return ids[a] < ids[b]; });
  }
  plan.tiles = make_tiles(plan, ids, tile_patches(plan, scale.size_px));

  std::vector<char> need_x(scale.base_px, 0), need_y(scale.base_px, 0);
  const auto mark = [&](std::vector<char>& need, int begin, int count) {
    for (int i = begin * plan.patch_px; i < (begin + count) * plan.patch_px; ++i) {
      for (int t = 0; t < plan.scale.taps; ++t) need[std::clamp(plan.scale.first[i] + t, 0, plan.base_px - 1)] = 1;
    }
  };
  std::vector<char> cols_seen(plan.grid, 0), rows_seen(plan.grid, 0);
  for (const Tile& tile : plan.tiles) {
    std::fill_n(cols_seen.begin() + tile.col, tile.num_cols, 1);
    std::fill_n(rows_seen.begin() + tile.row, tile.num_rows, 1);
  }
  for (int i = 0; i < plan.grid; ++i) {
    if (cols_seen[i]) mark(need_x, i, 1);
    if (rows_seen[i]) mark(need_y, i, 1);
  }
  plan.x = plan_base(frame.width, scale.base_px, need_x);
  plan.y = plan_base(frame.height, scale.base_px, need_y);

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
