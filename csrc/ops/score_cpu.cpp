#include "ps3/score.h"

#include <cmath>
#include <new>
#include <vector>

#include "checks.h"
#include "fail.h"
#include "isa.h"
#include "parallel.h"
#include "score_math.h"

namespace ps3 {

namespace {

template <int kLanes>
inline __attribute__((always_inline)) void cosine_loop(const float* rows, long num_rows, int width, const float* query, float* out) {
  for (long i = 0; i < num_rows; ++i) out[i] = ops::cosine(ops::products(rows + i * width, query, width));
}
template <int kLanes>
inline __attribute__((always_inline)) void project_loop(const float* weight, const float* bias, int rows, int width,
                                                        const float* prompt, float* out) {
  for (int i = 0; i < rows; ++i) out[i] = ops::dot(weight + static_cast<long>(i) * width, prompt, width) + bias[i];
}

PS3_FOR_EACH_ISA(cosines, (const float* rows, long num_rows, int width, const float* query, float* out),
                 (rows, num_rows, width, query, out), cosine_loop)
PS3_FOR_EACH_ISA(project, (const float* weight, const float* bias, int rows, int width, const float* prompt, float* out),
                 (weight, bias, rows, width, prompt, out), project_loop)

constexpr float kLargest = 1e15f;  // whose square, summed over a vector, is still a float

/// The kernels cannot refuse what they would have to read first; here a prompt that is no number is named.
Status check_prompt(Span<const float> prompt) {
  for (std::size_t i = 0; i < prompt.size(); ++i) {
    if (!(std::fabs(prompt[i]) <= kLargest)) {
      return ops::fail(Code::kInvalidArgument, "[score] prompt[%zu] is %g; needs numbers of at most 1e15. Check what made the prompt vector, or scale it.", i,
                       static_cast<double>(prompt[i]));
    }
  }
  return {};
}

/// Rows are split into chunks so that several threads share them; a row's sum never depends on the split.
void all_cosines(Cpu cpu, Span<const float> rows, int width, const float* query, float* out) {
  constexpr long kChunk = 128;
  const long num_rows = static_cast<long>(rows.size()) / width, chunks = (num_rows + kChunk - 1) / kChunk;
  ops::parallel_for(ops::num_workers(cpu, chunks, 4), chunks, [&](long chunk, int) {
    const long begin = chunk * kChunk;
    cosines(rows.data() + begin * width, std::min(kChunk, num_rows - begin), width, query, out + begin);
  });
}

}  // namespace

Status score(Cpu cpu, Span<const float> features, int grid, int width, Span<const float> prompt, const ScoreView& view,
             Span<float> prob) noexcept {
  Status status = ops::check_score(features, grid, width, prompt, view, prob);
  if (status.ok()) status = check_prompt(prompt);
  if (!status.ok()) return status;
  try {
    std::vector<float> logit(prob.size());
    all_cosines(cpu, features, width, prompt.data(), logit.data());
    if (!view.features.empty()) {
      std::vector<float> query(static_cast<std::size_t>(view.width));
      std::vector<float> fine(static_cast<std::size_t>(view.grid) * view.grid);
      project(view.weight.data(), view.bias.data(), view.width, width, prompt.data(), query.data());
      all_cosines(cpu, view.features, view.width, query.data(), fine.data());
      for (int row = 0; row < grid; ++row) {
        for (int col = 0; col < grid; ++col) {
          float best = -2.0f;  // below any cosine
          for (int y = ops::window_begin(row, view.grid, grid); y < ops::window_end(row, view.grid, grid); ++y) {
            for (int x = ops::window_begin(col, view.grid, grid); x < ops::window_end(col, view.grid, grid); ++x) {
              const float value = fine[static_cast<std::size_t>(y) * view.grid + x];
              best = value > best || std::isnan(value) ? value : best;
            }
          }
          float& place = logit[static_cast<std::size_t>(row) * grid + col];
          place = (place + best) / 2;
        }
      }
    }
    for (std::size_t i = 0; i < logit.size(); ++i) {
      if (std::isnan(logit[i])) {
        return ops::fail(Code::kInvalidArgument, "[score] the features at place %zu give no number; needs finite features. Check the frame and the network.", i);
      }
    }
    for (std::size_t i = 0; i < logit.size(); ++i) prob[i] = ops::probability(logit[i]);
    return {};
  } catch (const std::bad_alloc&) {
    return ops::fail(Code::kOutOfMemory, "[score] no memory for %zu cosines; needs a few hundred kB. Free memory.", prob.size());
  } catch (...) {
    return ops::fail(Code::kInternal, "[score] stopped by an unexpected exception; this is a defect. Please report it.");
  }
}

}  // namespace ps3
