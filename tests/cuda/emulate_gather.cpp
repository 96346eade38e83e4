// gather's kernels run on the processor: everything but the launch itself is the code a GPU runs.
#include "c_convert.h"
#include "fake_grid.h"
#include "gather_kernel.h"
#include "ps3/c_api.h"

using namespace ps3;

namespace {

int answer(const Status& status, char* message) {
  std::strncpy(message, status.message().c_str(), 511);
  message[511] = 0;
  return static_cast<int>(status.code());
}

}  // namespace

/// All parts in one launch. Fails with kInternal when a chunk needs more room than its shape says.
extern "C" int emulate_gather(const ps3_frame* frame, int num_parts, const ps3_scale* scales, const std::int32_t* const* ids, const std::size_t* num_ids,
                              const float* mean, const float* std, void* const* outs, int half, int order, char* message) {
  std::vector<Scale> all;
  std::vector<GatherPart> parts;
  for (int i = 0; i < num_parts; ++i) {
    const Scale scale{scales[i].base_px, scales[i].size_px, scales[i].patch_px};
    const std::size_t size = num_ids[i] * 3 * scale.patch_px * scale.patch_px;
    all.push_back(scale);
    GatherPart part{scale, {ids[i], num_ids[i]}, {}, {}};
    if (half) {
      part.out_f16 = {static_cast<std::uint16_t*>(outs[i]), size};
    } else {
      part.out = {static_cast<float*>(outs[i]), size};
    }
    parts.push_back(part);
  }
  std::size_t bytes = 0;
  Status status = gather_workspace_bytes(frame->height, frame->width, all, bytes);
  if (!status.ok()) return answer(status, message);
  std::vector<std::uint64_t> workspace(bytes / 8);
  ops::TableSet set;
  status = ops::lay_tables("test", frame->height, frame->width, all, workspace.data(), set, bytes);
  if (!status.ok()) return answer(status, message);
  for (long item = ops::num_table_items(set) - 1; item >= 0; --item) ops::make_table_item(set, item);
  for (int i = 0; i < set.num_scales; ++i) {
    const ops::ChunkShape& s = set.shapes[i];
    for (int r = 0; r < s.grid * s.row_chunks; ++r) {
      for (int c = 0; c < s.grid * s.col_chunks; ++c) {
        const ops::ChunkSpan y = set.scales[i].rows[r], x = set.scales[i].cols[c];
        const long source = 4L * ops::num_groups(x.source_first, x.source_count) * y.source_count;
        const int rows = ops::chunk_outputs(r, s.row_chunks, s.rows, s.patch_px).count;
        const bool fits = source <= s.columns_at && y.source_count * x.num_positions <= s.window_x_at - s.columns_at &&
                          x.num_positions <= s.positions_x && y.num_positions <= s.positions_y &&
                          (s.taps == 1 || (y.num_positions * x.num_positions <= s.columns_at && 3 * rows * x.num_positions <= s.window_x_at - s.columns_at));
        if (!fits) return answer(Status(Code::kInternal, "a chunk does not fit its shape"), message);
      }
    }
  }
  GatherTables tables{workspace.data(), frame->height, frame->width, set.num_scales, {}};
  std::copy(all.begin(), all.end(), tables.scales);
  Normalize normalize;
  std::copy_n(mean, 3, normalize.mean);
  std::copy_n(std, 3, normalize.std);
  ops::GatherLaunch launch;
  status = ops::plan_launch(ops::frame_view(*frame), tables, parts, normalize, launch);
  if (!status.ok()) return answer(status, message);
  run_grid(launch.num_blocks, 1, ops::kGatherThreads, static_cast<std::size_t>(launch.shared_bytes), order, [&](const FakeBlock& block, std::uint32_t* shared) {
    half ? ops::gather_block<std::uint16_t>(block, launch, shared) : ops::gather_block<float>(block, launch, shared);
  });
  return 0;
}

/// Shared memory and number of blocks of one scale; how a GPU is filled.
extern "C" int chunk_of(int height, int width, const ps3_scale* scale, int* rows, int* cols, int* shared_bytes) {
  ops::ChunkShape shape;
  const Status status = ops::chunk_shape(height, width, {scale->base_px, scale->size_px, scale->patch_px}, shape);
  *rows = shape.rows;
  *cols = shape.cols;
  *shared_bytes = shape.shared_bytes;
  return static_cast<int>(status.code());
}
