#include "device_plans.h"

#include <algorithm>

#include "checks.h"
#include "fail.h"

namespace ps3 {

namespace ops {

namespace {

std::size_t round256(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

/// Hands out pieces of the workspace, or only adds their sizes up when there is none.
struct Pieces {
  char* base;
  std::size_t at = 0;
  template <class T>
  void take(T*& to, std::size_t count) {
    to = base == nullptr ? nullptr : reinterpret_cast<T*>(base + at);
    at += round256(count * sizeof(T));
  }
};

std::size_t square(int side) { return side < 0 ? 0 : static_cast<std::size_t>(side) * side; }

void lay_score(Pieces& pieces, int grid, const ScoreView& view, ScoreLaunch& g) {
  pieces.take(g.close, square(grid));
  if (view.features.empty()) return;
  pieces.take(g.query, static_cast<std::size_t>(std::max(0, view.width)));
  pieces.take(g.fine, square(view.grid));
}

void lay_select(Pieces& pieces, int cells, long patches, SelectLaunch& g) {
  g.num_blocks = static_cast<int>((patches + kPatchesPerBlock - 1) / kPatchesPerBlock);
  pieces.take(g.free, static_cast<std::size_t>(cells));
  pieces.take(g.verdict, static_cast<std::size_t>(cells));
  pieces.take(g.sure, static_cast<std::size_t>(g.num_blocks));
  pieces.take(g.tied, static_cast<std::size_t>(g.num_blocks));
  pieces.take(g.at_threshold, 1);
}

bool is_copy(const PositionTable& table, int n) { return table.crop || n == table.grid; }

void lay_position_rows(Pieces& pieces, const PositionTable& table, int n, PositionLaunch& g) {
  if (is_copy(table, n)) return;
  g.max_count = max_window(table.grid, n);
  pieces.take(g.windows, static_cast<std::size_t>(n));
  pieces.take(g.weights, static_cast<std::size_t>(n) * g.max_count);
}

bool aligned16(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

}  // namespace

Status check_workspace(const char* where, const Cuda& cuda, std::size_t needed) noexcept {
  if (needed == 0) return {};
  if (cuda.workspace == nullptr || cuda.workspace_bytes < needed) {
    return fail(Code::kInvalidArgument, "[%s] a workspace of %zu bytes; needs %zu. Size it by %s_workspace_bytes().", where,
                cuda.workspace == nullptr ? std::size_t{0} : cuda.workspace_bytes, needed, where);
  }
  if (reinterpret_cast<std::uintptr_t>(cuda.workspace) % 256 != 0) {
    return fail(Code::kInvalidArgument, "[%s] the workspace at %p is not aligned; needs a multiple of 256. Pass what cudaMalloc gave.", where, cuda.workspace);
  }
  return {};
}

Status plan_score(const Cuda& cuda, Span<const float> features, int grid, int width, Span<const float> prompt, const ScoreView& view,
                  Span<float> prob, ScoreLaunch& g) noexcept {
  Status status = check_score(features, grid, width, prompt, view, prob);
  if (status.ok()) status = check_workspace("score", cuda, score_workspace_bytes(grid, view));
  if (!status.ok()) return status;
  g = ScoreLaunch{};
  Pieces pieces{static_cast<char*>(cuda.workspace)};
  lay_score(pieces, grid, view, g);
  g.features = features.data();
  g.prompt = prompt.data();
  g.view_features = view.features.empty() ? nullptr : view.features.data();
  g.view_weight = view.weight.data();
  g.view_bias = view.bias.data();
  g.prob = prob.data();
  g.grid = grid;
  g.width = width;
  g.view_grid = view.grid;
  g.view_width = view.width;
  return {};
}

Status plan_select(const Cuda& cuda, const ProbMap& prob, int rows, int cols, Span<std::uint8_t> taken, Span<std::int32_t> ids,
                   SelectLaunch& g) noexcept {
  Status status = check_select(prob, rows, cols, taken);
  if (!status.ok()) return status;
  if (prob.height > kMaxMapSide || prob.width > kMaxMapSide) {
    return fail(Code::kUnsupported, "[select] a map of %dx%d; Cuda ranks up to %dx%d. Call it with Cpu.", prob.height, prob.width, kMaxMapSide, kMaxMapSide);
  }
  if (ids.size() > taken.size()) {
    return fail(Code::kOutOfRange, "[select] count %zu; the %dx%d grid has %zu patches. Ask for at most that many.", ids.size(), rows, cols, taken.size());
  }
  status = check_workspace("select", cuda, select_workspace_bytes(prob.height, prob.width, rows, cols));
  if (!status.ok()) return status;
  g = SelectLaunch{};
  Pieces pieces{static_cast<char*>(cuda.workspace)};
  lay_select(pieces, prob.height * prob.width, static_cast<long>(rows) * cols, g);
  g.prob = prob.values.data();
  g.taken = taken.data();
  g.ids = ids.data();
  g.height = prob.height;
  g.width = prob.width;
  g.rows = rows;
  g.cols = cols;
  g.count = static_cast<int>(ids.size());
  return {};
}

Status plan_position_rows(const Cuda& cuda, const PositionTable& table, int n, Span<const std::int32_t> ids, Span<float> out,
                          PositionLaunch& g) noexcept {
  Status status = check_position_rows(table, n, ids.size(), out);
  if (status.ok()) status = check_workspace("position_rows", cuda, position_rows_workspace_bytes(table, n));
  if (!status.ok()) return status;
  g = PositionLaunch{};
  Pieces pieces{static_cast<char*>(cuda.workspace)};
  lay_position_rows(pieces, table, n, g);
  g.table = table.values.data();
  g.residual_f32 = table.residual_f32.empty() ? nullptr : table.residual_f32.data();
  g.residual_f16 = table.residual_f16.empty() ? nullptr : table.residual_f16.data();
  g.ids = ids.data();
  g.out = out.data();
  g.grid = table.grid;
  g.n = n;
  g.width = table.width;
  g.num_ids = static_cast<int>(ids.size());
  g.lanes = table.width % 4 == 0 && aligned16(g.table) && aligned16(g.out) && aligned16(g.residual_f32) ? 4 : 1;
  constexpr int kMost = 48 * 1024;
  if (position_shared_bytes(g) > kMost) g.lanes = 1;
  if (position_shared_bytes(g) > kMost) {
    return fail(Code::kUnsupported, "[position_rows] a %dx%d table shrunk to %dx%d; Cuda shrinks up to 20 times. Call it with Cpu.", g.grid, g.grid, n, n);
  }
  return {};
}

Status plan_scatter(const Cuda& cuda, Span<const float> tokens, int channels, Span<const std::int32_t> ids, int rows, int cols, Span<float> map,
                    ScatterLaunch& g) noexcept {
  Status status = check_scatter(tokens, channels, ids.size(), rows, cols, map);
  if (status.ok()) status = check_workspace("scatter", cuda, scatter_workspace_bytes(rows, cols));
  if (!status.ok()) return status;
  if ((channels + kTile - 1) / kTile > 65535) {
    return fail(Code::kUnsupported, "[scatter] %d channels; Cuda takes up to %d. Split the channels.", channels, 65535 * kTile);
  }
  g = ScatterLaunch{};
  Pieces pieces{static_cast<char*>(cuda.workspace)};
  pieces.take(g.token_at, static_cast<std::size_t>(rows) * cols);
  g.tokens = tokens.data();
  g.ids = ids.data();
  g.map = map.data();
  g.num_ids = static_cast<int>(ids.size());
  g.channels = channels;
  g.places = rows * cols;
  return {};
}

}  // namespace ops

std::size_t score_workspace_bytes(int grid, const ScoreView& view) noexcept {
  ops::Pieces pieces{nullptr};
  ops::ScoreLaunch launch{};
  ops::lay_score(pieces, grid, view, launch);
  return pieces.at;
}

std::size_t select_workspace_bytes(int height, int width, int rows, int cols) noexcept {
  ops::Pieces pieces{nullptr};
  ops::SelectLaunch launch{};
  ops::lay_select(pieces, height * width, static_cast<long>(rows) * cols, launch);
  return pieces.at;
}

std::size_t position_rows_workspace_bytes(const PositionTable& table, int n) noexcept {
  if (table.grid < 1 || n < 1) return 0;
  ops::Pieces pieces{nullptr};
  ops::PositionLaunch launch{};
  ops::lay_position_rows(pieces, table, n, launch);
  return pieces.at;
}

std::size_t scatter_workspace_bytes(int rows, int cols) noexcept {
  return ops::round256(4 * static_cast<std::size_t>(std::max(0, rows)) * static_cast<std::size_t>(std::max(0, cols)));
}

}  // namespace ps3
