#include "ps3/position_rows.h"

#include <algorithm>
#include <new>
#include <vector>

#include "checks.h"
#include "fail.h"
#include "isa.h"
#include "parallel.h"
#include "position_rows_math.h"

namespace ps3 {

namespace {

struct Axis {
  int max_count = 0;
  std::vector<ops::Window> windows;
  std::vector<float> weights;  // [n][max_count]
};

Axis plan_axis(int grid, int n) {
  Axis axis;
  axis.max_count = ops::max_window(grid, n);
  axis.windows.resize(n);
  axis.weights.resize(static_cast<std::size_t>(n) * axis.max_count);
  std::vector<double> weights(axis.max_count);
  for (int i = 0; i < n; ++i) {
    const double center = ops::table_center(i, grid, n);
    axis.windows[i] = ops::antialias_window(center, grid, n);
    ops::antialias_weights(center, grid, n, axis.windows[i], weights.data());
    std::copy_n(weights.begin(), axis.windows[i].count, &axis.weights[static_cast<std::size_t>(i) * axis.max_count]);
  }
  return axis;
}

template <int kLanes>
inline __attribute__((always_inline)) void weighted_sum_loop(const float* const* rows, const float* weights, int count, int width,
                                                             float* out) {
  for (int c = 0; c < width; ++c) out[c] = rows[0][c] * weights[0];
  for (int t = 1; t < count; ++t) {
    const float* __restrict row = rows[t];
    const float weight = weights[t];
    for (int c = 0; c < width; ++c) out[c] += row[c] * weight;
  }
}
template <int kLanes>
inline __attribute__((always_inline)) void add_loop(const float* more, int width, float* out) {
  for (int c = 0; c < width; ++c) out[c] += more[c];
}
template <int kLanes>
inline __attribute__((always_inline)) void add_half_loop(const std::uint16_t* more, int width, float* out) {
  for (int c = 0; c < width; ++c) out[c] += ops::half_to_float(more[c]);
}

PS3_FOR_EACH_ISA(weighted_sum, (const float* const* rows, const float* weights, int count, int width, float* out),
                 (rows, weights, count, width, out), weighted_sum_loop)
PS3_FOR_EACH_ISA(add, (const float* more, int width, float* out), (more, width, out), add_loop)
PS3_FOR_EACH_ISA(add_half, (const std::uint16_t* more, int width, float* out), (more, width, out), add_half_loop)

/// Ids of one grid row that follow each other share the sums along y.
struct Run {
  std::size_t begin, count;
};

std::vector<Run> make_runs(Span<const std::int32_t> ids, int n) {
  constexpr std::size_t kLongest = 64;
  std::vector<Run> runs;
  for (std::size_t k = 0; k < ids.size();) {
    std::size_t count = 1;
    while (count < kLongest && k + count < ids.size() && ids[k + count] == ids[k] + static_cast<int>(count) && ids[k + count] % n != 0) ++count;
    runs.push_back({k, count});
    k += count;
  }
  return runs;
}

struct Scratch {
  std::vector<float> sums;             // [table columns of a run][width]
  std::vector<const float*> pointers;  // [max_count]
};

void resample_run(const PositionTable& table, const Axis& axis, int n, const std::int32_t* ids, std::size_t count, Scratch& scratch,
                  float* out) {
  const int width = table.width, y = ids[0] / n, first_x = ids[0] % n, last_x = first_x + static_cast<int>(count) - 1;
  const ops::Window rows = axis.windows[y];
  const int begin = axis.windows[first_x].first, end = axis.windows[last_x].first + axis.windows[last_x].count;
  for (int x = begin; x < end; ++x) {
    for (int t = 0; t < rows.count; ++t) {
      scratch.pointers[t] = &table.values[(static_cast<std::size_t>(rows.first + t) * table.grid + x) * width];
    }
    weighted_sum(scratch.pointers.data(), &axis.weights[static_cast<std::size_t>(y) * axis.max_count], rows.count, width,
                 &scratch.sums[static_cast<std::size_t>(x - begin) * width]);
  }
  for (int x = first_x; x <= last_x; ++x, out += width) {
    const ops::Window cols = axis.windows[x];
    for (int t = 0; t < cols.count; ++t) scratch.pointers[t] = &scratch.sums[static_cast<std::size_t>(cols.first + t - begin) * width];
    weighted_sum(scratch.pointers.data(), &axis.weights[static_cast<std::size_t>(x) * axis.max_count], cols.count, width, out);
  }
}

}  // namespace

Status position_rows(Cpu cpu, const PositionTable& table, int n, Span<const std::int32_t> ids, Span<float> out) noexcept {
  Status status = ops::check_position_rows(table, n, ids.size(), out);
  if (status.ok()) status = ops::check_ids("position_rows", ids.data(), ids.size(), n, n);
  if (!status.ok() || ids.empty()) return status;
  try {
    const bool copy = table.crop || n == table.grid;
    const std::size_t width = static_cast<std::size_t>(table.width);
    const Axis axis = copy ? Axis{} : plan_axis(table.grid, n);
    const std::vector<Run> runs = make_runs(ids, n);
    const int workers = ops::num_workers(cpu, static_cast<long>(runs.size()), 8);
    std::vector<Scratch> scratch(copy ? 0 : static_cast<std::size_t>(workers));
    for (Scratch& each : scratch) {
      const double ratio = std::max(1.0, static_cast<double>(table.grid) / n);
      const std::size_t cols = std::min<std::size_t>(table.grid, static_cast<std::size_t>(64 * ratio) + axis.max_count + 2);
      each.sums.resize(cols * width);
      each.pointers.resize(static_cast<std::size_t>(axis.max_count));
    }
    ops::parallel_for(workers, static_cast<long>(runs.size()), [&](long item, int worker) {
      const Run run = runs[static_cast<std::size_t>(item)];
      float* const rows = out.data() + run.begin * width;
      if (!copy) {
        resample_run(table, axis, n, &ids[run.begin], run.count, scratch[static_cast<std::size_t>(worker)], rows);
      }
      for (std::size_t k = 0; k < run.count; ++k) {
        const std::size_t id = static_cast<std::size_t>(ids[run.begin + k]);
        if (copy) std::copy_n(&table.values[(id / n * table.grid + id % n) * width], width, rows + k * width);
        if (!table.residual_f32.empty()) add(&table.residual_f32[id * width], table.width, rows + k * width);
        if (!table.residual_f16.empty()) add_half(&table.residual_f16[id * width], table.width, rows + k * width);
      }
    });
    return {};
  } catch (const std::bad_alloc&) {
    return ops::fail(Code::kOutOfMemory, "[position_rows] no memory for the sums of a run. Free memory or use fewer threads.");
  } catch (...) {
    return ops::fail(Code::kInternal, "[position_rows] stopped by an unexpected exception; this is a defect. Please report it.");
  }
}

}  // namespace ps3
