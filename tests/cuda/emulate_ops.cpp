// The kernels of score, select, position_rows and scatter run on the processor.
#include "device_plans.h"
#include "fake_grid.h"
#include "gather_math.h"

using namespace ps3;

namespace {

/// Full of garbage, as device memory is.
struct Workspace {
  std::vector<std::uint64_t> memory;
  Cuda cuda;
  explicit Workspace(std::size_t bytes) : memory(bytes / 8 + 32, 0x7fc0deadbeef1234u) {
    auto at = reinterpret_cast<std::uintptr_t>(memory.data());
    cuda.workspace = reinterpret_cast<void*>((at + 255) / 256 * 256);
    cuda.workspace_bytes = bytes;
  }
};

int answer(const Status& status, char* message) {
  std::strncpy(message, status.message().c_str(), 511);
  message[511] = 0;
  return static_cast<int>(status.code());
}

template <class T>
T* words(std::uint32_t* shared) {
  return reinterpret_cast<T*>(shared);
}

}  // namespace

extern "C" int emulate_score(const float* features, int grid, int width, const float* prompt, const float* view_features, int view_grid, int view_width,
                             const float* weight, const float* bias, float* prob, int order, char* message) {
  const auto square = [](int side) { return static_cast<std::size_t>(side) * side; };
  ScoreView view;
  if (view_features != nullptr) {
    view = {{view_features, square(view_grid) * view_width}, view_grid, view_width, {weight, static_cast<std::size_t>(view_width) * width},
            {bias, static_cast<std::size_t>(view_width)}};
  }
  const Workspace workspace(score_workspace_bytes(grid, view));
  ops::ScoreLaunch g;
  const Status status = ops::plan_score(workspace.cuda, {features, square(grid) * width}, grid, width, {prompt, static_cast<std::size_t>(width)}, view,
                                        {prob, square(grid)}, g);
  if (!status.ok()) return answer(status, message);
  if (view_features != nullptr) {
    run_grid(ops::score_blocks(view_width), 1, ops::kScoreThreads, ops::kScoreSharedBytes, order,
             [&](const FakeBlock& block, std::uint32_t* shared) { ops::project_block(block, g, words<float>(shared)); });
  }
  run_grid(ops::cosine_blocks(g), 1, ops::kScoreThreads, ops::kScoreSharedBytes, order,
           [&](const FakeBlock& block, std::uint32_t* shared) { ops::cosine_block(block, g, words<float>(shared)); });
  run_grid((grid * grid + ops::kScoreThreads - 1) / ops::kScoreThreads, 1, ops::kScoreThreads, 0, order,
           [&](const FakeBlock& block, std::uint32_t*) { ops::probability_block(block, g); });
  return 0;
}

extern "C" int emulate_select(const float* prob, int height, int width, int rows, int cols, std::uint8_t* taken, std::int32_t* ids, int count, int order,
                              char* message) {
  const Workspace workspace(select_workspace_bytes(height, width, rows, cols));
  ops::SelectLaunch g;
  const Status status = ops::plan_select(workspace.cuda, {{prob, static_cast<std::size_t>(height) * width}, height, width}, rows, cols,
                                         {taken, static_cast<std::size_t>(rows) * cols}, {ids, static_cast<std::size_t>(count)}, g);
  if (!status.ok()) return answer(status, message);
  const int cells = height * width;
  run_grid(cells, 1, ops::kCellThreads, 4 * ops::kCellThreads, order,
           [&](const FakeBlock& block, std::uint32_t* shared) { ops::free_block(block, g, words<std::int32_t>(shared)); });
  run_grid(cells, 1, ops::kCellThreads, 8 * ops::kCellThreads, order,
           [&](const FakeBlock& block, std::uint32_t* shared) { ops::rank_block(block, g, words<std::int32_t>(shared)); });
  run_grid(g.num_blocks, 1, ops::kPickThreads, 4 * ops::kPickThreads, order,
           [&](const FakeBlock& block, std::uint32_t* shared) { ops::count_block(block, g, words<std::int32_t>(shared)); });
  run_grid(g.num_blocks, 1, ops::kPickThreads, 16 * ops::kPickThreads, order,
           [&](const FakeBlock& block, std::uint32_t* shared) { ops::pick_block(block, g, words<std::int32_t>(shared)); });
  return 0;
}

/// residual_kind: 0 none, 1 f32, 2 f16. lanes: what the launch chose.
extern "C" int emulate_position_rows(const float* table, int grid, int width, const void* residual, int residual_kind, int crop, int n,
                                     const std::int32_t* ids, std::size_t num_ids, float* out, int* lanes, int order, char* message) {
  const std::size_t size = static_cast<std::size_t>(n) * n * width;
  PositionTable view{{table, static_cast<std::size_t>(grid) * grid * width}, grid, width, {}, {}, crop != 0};
  if (residual_kind == 1) view.residual_f32 = {static_cast<const float*>(residual), size};
  if (residual_kind == 2) view.residual_f16 = {static_cast<const std::uint16_t*>(residual), size};
  const Workspace workspace(position_rows_workspace_bytes(view, n));
  ops::PositionLaunch g;
  const Status status = ops::plan_position_rows(workspace.cuda, view, n, {ids, num_ids}, {out, num_ids * width}, g);
  if (!status.ok()) return answer(status, message);
  *lanes = g.lanes;
  for (int i = 0; g.windows != nullptr && i < n; ++i) ops::make_position_window(g, i);
  const int per_block = ops::kPositionThreads * g.lanes;
  run_grid((g.num_ids + ops::kIdsPerBlock - 1) / ops::kIdsPerBlock, (width + per_block - 1) / per_block, ops::kPositionThreads,
           static_cast<std::size_t>(ops::position_shared_bytes(g)), order, [&](const FakeBlock& block, std::uint32_t* shared) {
             g.lanes == 4 ? ops::position_block<4>(block, g, words<float>(shared)) : ops::position_block<1>(block, g, words<float>(shared));
           });
  return 0;
}

extern "C" int emulate_scatter(const float* tokens, int channels, const std::int32_t* ids, std::size_t num_ids, int rows, int cols, float* map, int order,
                               char* message) {
  const Workspace workspace(scatter_workspace_bytes(rows, cols));
  ops::ScatterLaunch g;
  const std::size_t places = static_cast<std::size_t>(rows) * cols;
  const Status status = ops::plan_scatter(workspace.cuda, {tokens, num_ids * channels}, channels, {ids, num_ids}, rows, cols, {map, places * channels}, g);
  if (!status.ok()) return answer(status, message);
  std::fill_n(g.token_at, places, -1);
  const FakeBlock any{0, 0, 1, {0}};
  for (int k = g.num_ids - 1; k >= 0; --k) ops::place_token(any, g, k);
  run_grid((g.places + ops::kTile - 1) / ops::kTile, (channels + ops::kTile - 1) / ops::kTile, ops::kScatterThreads, ops::kScatterSharedBytes, order,
           [&](const FakeBlock& block, std::uint32_t* shared) { ops::scatter_block(block, g, words<float>(shared)); });
  return 0;
}

extern "C" unsigned short half_of(float value) { return ops::float_to_half(value); }
