#include "ps3/select.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <numeric>
#include <vector>

#include "checks.h"
#include "fail.h"
#include "select_math.h"

namespace ps3 {

namespace {

Status check_values(const ProbMap& prob) {
  for (std::size_t i = 0; i < prob.values.size(); ++i) {
    if (std::isnan(prob.values[i])) {
      return ops::fail(Code::kInvalidArgument, "[select] prob[%zu, %zu] is NaN; needs numbers. Check the map.", i / prob.width, i % prob.width);
    }
  }
  return {};
}

}  // namespace

/// Patches of one map cell share a value, so the map's few values are sorted instead of the grid's many patches: all free
/// patches above a threshold are picked, and of those equal to it the first `at_threshold` in row-major order.
Status select(Cpu, const ProbMap& prob, int rows, int cols, Span<std::uint8_t> taken, Span<std::int32_t> ids) noexcept {
  Status status = ops::check_select(prob, rows, cols, taken);
  if (status.ok()) status = check_values(prob);
  if (!status.ok()) return status;
  try {
    std::vector<int> cell_of_col(static_cast<std::size_t>(cols));
    for (int c = 0; c < cols; ++c) cell_of_col[c] = ops::nearest(c, prob.width, cols);
    std::vector<long> free_in_cell(prob.values.size(), 0);
    long num_free = 0;
    for (int r = 0; r < rows; ++r) {
      long* const cells = &free_in_cell[static_cast<std::size_t>(ops::nearest(r, prob.height, rows)) * prob.width];
      for (int c = 0; c < cols; ++c) {
        const int is_free = taken[static_cast<std::size_t>(r) * cols + c] == 0;
        cells[cell_of_col[c]] += is_free;
        num_free += is_free;
      }
    }
    const long count = static_cast<long>(ids.size());
    if (count > num_free) {
      return ops::fail(Code::kOutOfRange, "[select] count %ld; %ld of the %dx%d patches are free. Ask for at most that many.", count, num_free,
                       rows, cols);
    }
    if (count == 0) return {};

    std::vector<int> by_prob(prob.values.size());
    std::iota(by_prob.begin(), by_prob.end(), 0);
    std::sort(by_prob.begin(), by_prob.end(), [&](int a, int b) { return ops::more_probable(prob.values[a], prob.values[b]); });
    long at_threshold = count;
    float threshold = 0.0f;
    for (std::size_t i = 0; i < by_prob.size();) {
      threshold = prob.values[by_prob[i]];
      long free_here = 0;
      for (; i < by_prob.size() && prob.values[by_prob[i]] == threshold; ++i) free_here += free_in_cell[by_prob[i]];
      if (free_here >= at_threshold) break;
      at_threshold -= free_here;
    }
    std::size_t picked = 0;
    for (int r = 0; r < rows && picked < ids.size(); ++r) {
      const float* const values = &prob.values[static_cast<std::size_t>(ops::nearest(r, prob.height, rows)) * prob.width];
      for (int c = 0; c < cols; ++c) {
        const std::size_t id = static_cast<std::size_t>(r) * cols + c;
        const float value = values[cell_of_col[c]];
        if (taken[id] != 0 || value < threshold || (value == threshold && at_threshold == 0)) continue;
        at_threshold -= value == threshold;
        taken[id] = 1;
        ids[picked++] = static_cast<std::int32_t>(id);
      }
    }
    return {};
  } catch (const std::bad_alloc&) {
    return ops::fail(Code::kOutOfMemory, "[select] no memory to sort %zu values. Free memory.", prob.values.size());
  } catch (...) {
    return ops::fail(Code::kInternal, "[select] stopped by an unexpected exception; this is a defect. Please report it.");
  }
}

}  // namespace ps3
