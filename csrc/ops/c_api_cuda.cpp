#include "ps3/c_api_cuda.h"

#include "c_convert.h"

using ps3::Code;
using ps3::Status;
using namespace ps3::ops;

static_assert(PS3_MAX_GATHER_SCALES == ps3::kMaxGatherScales, "c_api_cuda.h and gather.h disagree");

namespace {

ps3::Cuda cuda_of(const ps3_cuda* cuda) {
  return cuda == nullptr ? ps3::Cuda{} : ps3::Cuda{cuda->stream, cuda->workspace, cuda->workspace_bytes};
}

ps3::Scale scale_of(const ps3_scale& scale) { return {scale.base_px, scale.size_px, scale.patch_px}; }

/// At most kMaxGatherScales scales; their number stays as given, for the op to refuse.
struct Scales {
  ps3::Scale of[ps3::kMaxGatherScales + 1];
  size_t num;
  Scales(const ps3_scale* scales, int count) : of{}, num(scales == nullptr || count < 0 ? 0 : std::min<size_t>(count, ps3::kMaxGatherScales + 1)) {
    for (size_t i = 0; i < num; ++i) of[i] = scale_of(scales[i]);
  }
  ps3::Span<const ps3::Scale> span() const { return {of, num}; }
};

}  // namespace

int ps3_check_cuda(char* message, size_t message_bytes) { return answer(ps3::check_cuda(), message, message_bytes); }

int ps3_gather_workspace_bytes(int height, int width, const ps3_scale* scales, int num_scales, size_t* bytes, char* message, size_t message_bytes) {
  if (bytes == nullptr) return answer(null_pointer("gather_workspace_bytes", "bytes"), message, message_bytes);
  return answer(ps3::gather_workspace_bytes(height, width, Scales(scales, num_scales).span(), *bytes), message, message_bytes);
}

int ps3_make_gather_tables(const ps3_cuda* cuda, int height, int width, const ps3_scale* scales, int num_scales, ps3_gather_tables* tables, char* message,
                           size_t message_bytes) {
  if (tables == nullptr) return answer(null_pointer("make_gather_tables", "tables"), message, message_bytes);
  ps3::GatherTables made;
  const Status status = ps3::make_gather_tables(cuda_of(cuda), height, width, Scales(scales, num_scales).span(), made);
  *tables = ps3_gather_tables{};
  tables->data = made.data;
  tables->height = made.height;
  tables->width = made.width;
  tables->num_scales = made.num_scales;
  for (int i = 0; i < made.num_scales; ++i) tables->scales[i] = scales[i];
  return answer(status, message, message_bytes);
}

int ps3_gather_cuda(const ps3_cuda* cuda, const ps3_frame* frame, const ps3_gather_tables* tables, const ps3_gather_part* parts, int num_parts,
                    const float mean[3], const float std[3], char* message, size_t message_bytes) {
  if (frame == nullptr || tables == nullptr) return answer(null_pointer("gather", "frame or tables"), message, message_bytes);
  if (mean == nullptr || std == nullptr) return answer(null_pointer("gather", "mean or std"), message, message_bytes);
  if (parts == nullptr && num_parts > 0) return answer(null_pointer("gather", "parts"), message, message_bytes);
  ps3::GatherTables made{tables->data, tables->height, tables->width, std::clamp(tables->num_scales, 0, ps3::kMaxGatherScales), {}};
  for (int i = 0; i < made.num_scales; ++i) made.scales[i] = scale_of(tables->scales[i]);
  ps3::GatherPart wanted[ps3::kMaxGatherScales + 1];
  const size_t num = std::min<size_t>(num_parts < 0 ? 0 : num_parts, ps3::kMaxGatherScales + 1);
  for (size_t i = 0; i < num; ++i) {
    const size_t size = parts[i].num_ids * patch_values(parts[i].scale.patch_px);
    wanted[i] = {scale_of(parts[i].scale), span(parts[i].ids, parts[i].num_ids), span(parts[i].out, size), span(parts[i].out_f16, size)};
    if (wanted[i].ids.size() != parts[i].num_ids) return answer(null_pointer("gather", "ids"), message, message_bytes);
  }
  return answer(ps3::gather(cuda_of(cuda), frame_view(*frame), made, {wanted, num}, normalize_of(mean, std)), message, message_bytes);
}

size_t ps3_score_workspace_bytes(int grid, const ps3_score_view* view, int width) { return ps3::score_workspace_bytes(grid, score_view(view, width)); }

int ps3_score_cuda(const ps3_cuda* cuda, const float* features, int grid, int width, const float* prompt, const ps3_score_view* view, float* prob, char* message,
                   size_t message_bytes) {
  if (view != nullptr && view->features == nullptr) return answer(null_pointer("score", "view features"), message, message_bytes);
  return answer(ps3::score(cuda_of(cuda), span(features, area(grid, grid) * area(width, 1)), grid, width, span(prompt, area(width, 1)), score_view(view, width),
                           span(prob, area(grid, grid))),
                message, message_bytes);
}

size_t ps3_select_workspace_bytes(int height, int width, int rows, int cols) {
  return height < 0 || width < 0 || rows < 0 || cols < 0 ? 0 : ps3::select_workspace_bytes(height, width, rows, cols);
}

int ps3_select_cuda(const ps3_cuda* cuda, const float* prob, int height, int width, int rows, int cols, uint8_t* taken, int32_t* ids, int count, char* message,
                    size_t message_bytes) {
  if (count < 0) return answer(fail(Code::kOutOfRange, "[select] count is %d; needs 0 or more. Ask for patches there are.", count), message, message_bytes);
  if (count > 0 && ids == nullptr) return answer(null_pointer("select", "ids"), message, message_bytes);
  return answer(ps3::select(cuda_of(cuda), {span(prob, area(height, width)), height, width}, rows, cols, span(taken, area(rows, cols)),
                            span(ids, static_cast<size_t>(count))),
                message, message_bytes);
}

size_t ps3_position_rows_workspace_bytes(const ps3_position_table* table, int n) {
  return table == nullptr ? 0 : ps3::position_rows_workspace_bytes(position_table(*table, n), n);
}

int ps3_position_rows_cuda(const ps3_cuda* cuda, const ps3_position_table* table, int n, const int32_t* ids, size_t num_ids, float* out, char* message,
                           size_t message_bytes) {
  if (table == nullptr) return answer(null_pointer("position_rows", "table"), message, message_bytes);
  if (num_ids > 0 && (ids == nullptr || out == nullptr)) return answer(null_pointer("position_rows", "ids or out"), message, message_bytes);
  return answer(ps3::position_rows(cuda_of(cuda), position_table(*table, n), n, span(ids, num_ids), span(out, num_ids * area(table->width, 1))), message,
                message_bytes);
}

size_t ps3_scatter_workspace_bytes(int rows, int cols) { return ps3::scatter_workspace_bytes(rows, cols); }

int ps3_scatter_cuda(const ps3_cuda* cuda, const float* tokens, int channels, const int32_t* ids, size_t num_ids, int rows, int cols, float* map, char* message,
                     size_t message_bytes) {
  if (map == nullptr) return answer(null_pointer("scatter", "map"), message, message_bytes);
  if (num_ids > 0 && (tokens == nullptr || ids == nullptr)) return answer(null_pointer("scatter", "tokens or ids"), message, message_bytes);
  return answer(ps3::scatter(cuda_of(cuda), span(tokens, num_ids * area(channels, 1)), channels, span(ids, num_ids), rows, cols,
                             span(map, area(rows, cols) * area(channels, 1))),
                message, message_bytes);
}
