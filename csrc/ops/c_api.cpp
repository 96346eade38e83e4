#include "c_convert.h"

using ps3::Code;
using ps3::Status;
using namespace ps3::ops;

const char* ps3_version(void) { return ps3::version(); }

int ps3_gather(const ps3_frame* frame, const ps3_scale* scale, const int32_t* ids, size_t num_ids, const float mean[3],
               const float std[3], float* out, int num_threads, char* message, size_t message_bytes) {
  if (frame == nullptr) return answer(null_pointer("gather", "frame"), message, message_bytes);
  if (scale == nullptr) return answer(null_pointer("gather", "scale"), message, message_bytes);
  if (mean == nullptr || std == nullptr) return answer(null_pointer("gather", "mean or std"), message, message_bytes);
  if (num_ids > 0 && (ids == nullptr || out == nullptr)) return answer(null_pointer("gather", "ids or out"), message, message_bytes);
  return answer(ps3::gather(ps3::Cpu{num_threads}, frame_view(*frame), {scale->base_px, scale->size_px, scale->patch_px}, span(ids, num_ids),
                            normalize_of(mean, std), span(out, num_ids * patch_values(scale->patch_px))),
                message, message_bytes);
}

int ps3_score(const float* features, int grid, int width, const float* prompt, const ps3_score_view* view, float* prob,
              int num_threads, char* message, size_t message_bytes) {
  const size_t places = area(grid, grid);
  if (view != nullptr && view->features == nullptr) return answer(null_pointer("score", "view features"), message, message_bytes);
  return answer(ps3::score(ps3::Cpu{num_threads}, span(features, places * area(width, 1)), grid, width, span(prompt, area(width, 1)), score_view(view, width),
                           span(prob, places)),
                message, message_bytes);
}

int ps3_select(const float* prob, int height, int width, int rows, int cols, uint8_t* taken, int32_t* ids, int count, char* message,
               size_t message_bytes) {
  if (count < 0) {
    return answer(ps3::ops::fail(Code::kOutOfRange, "[select] count is %d; needs 0 or more. Ask for patches there are.", count), message, message_bytes);
  }
  if (count > 0 && ids == nullptr) return answer(null_pointer("select", "ids"), message, message_bytes);
  return answer(ps3::select(ps3::Cpu{}, {span(prob, area(height, width)), height, width}, rows, cols, span(taken, area(rows, cols)),
                            span(ids, static_cast<size_t>(count))),
                message, message_bytes);
}

int ps3_per_look(const int* scales_px, int num_scales, int max_select_num, int* counts, char* message, size_t message_bytes) {
  if (counts == nullptr) return answer(null_pointer("per_look", "counts"), message, message_bytes);
  std::vector<int> result;
  const Status status = ps3::per_look(span(scales_px, area(num_scales, 1)), max_select_num, result);
  std::copy(result.begin(), result.end(), counts);
  return answer(status, message, message_bytes);
}

int ps3_plan_looks(const int* capacity, const int* per_look, int num_scales, int num_looks, int num_tokens, int all, int first_scales,
                   int* counts, int max_looks, int* looks, char* message, size_t message_bytes) {
  if (looks == nullptr) return answer(null_pointer("plan_looks", "looks"), message, message_bytes);
  std::vector<std::vector<int>> result;
  Status status = ps3::plan_looks(span(capacity, area(num_scales, 1)), span(per_look, area(num_scales, 1)),
                                  {num_looks, num_tokens, all != 0, first_scales}, result);
  *looks = static_cast<int>(result.size());
  if (!status.ok()) return answer(status, message, message_bytes);
  if (*looks > max_looks || (*looks > 0 && counts == nullptr)) {
    return answer(ps3::ops::fail(Code::kOutOfRange, "[plan_looks] counts has room for %d looks; needs %d. Pass a larger buffer.",
                                 counts == nullptr ? 0 : max_looks, *looks),
                  message, message_bytes);
  }
  for (const std::vector<int>& row : result) counts = std::copy(row.begin(), row.end(), counts);
  return answer(status, message, message_bytes);
}

int ps3_position_rows(const ps3_position_table* table, int n, const int32_t* ids, size_t num_ids, float* out, int num_threads,
                      char* message, size_t message_bytes) {
  if (table == nullptr) return answer(null_pointer("position_rows", "table"), message, message_bytes);
  if (num_ids > 0 && (ids == nullptr || out == nullptr)) return answer(null_pointer("position_rows", "ids or out"), message, message_bytes);
  return answer(ps3::position_rows(ps3::Cpu{num_threads}, position_table(*table, n), n, span(ids, num_ids), span(out, num_ids * area(table->width, 1))),
                message, message_bytes);
}

int ps3_scatter(const float* tokens, int channels, const int32_t* ids, size_t num_ids, int rows, int cols, float* map, char* message,
                size_t message_bytes) {
  if (map == nullptr) return answer(null_pointer("scatter", "map"), message, message_bytes);
  if (num_ids > 0 && (tokens == nullptr || ids == nullptr)) return answer(null_pointer("scatter", "tokens or ids"), message, message_bytes);
  return answer(ps3::scatter(ps3::Cpu{}, span(tokens, num_ids * area(channels, 1)), channels, span(ids, num_ids), rows, cols,
                             span(map, area(rows, cols) * area(channels, 1))),
                message, message_bytes);
}
