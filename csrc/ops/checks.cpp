#include "checks.h"

#include <cmath>

#include "fail.h"

namespace ps3::ops {

namespace {

Status check_size(const char* name, std::size_t got, std::size_t needed) {
  if (got == needed) return {};
  return fail(Code::kInvalidArgument, "[score] %s holds %zu floats; needs %zu. Pass arrays of one model and one frame.", name, got, needed);
}

}  // namespace

Status check_scale(const Scale& scale) noexcept {
  const int base = scale.base_px, size = scale.size_px, patch = scale.patch_px;
  if (base < 1 || base > 65536 || size < 1 || patch < 1 || patch > 1024) {
    return fail(Code::kInvalidArgument,
                "[gather] base_px %d, size_px %d, patch_px %d; needs 1..65536, 1..base_px and 1..1024. Pass the model's geometry.", base, size, patch);
  }
  if (size > base) {
    return fail(Code::kInvalidArgument, "[gather] size_px %d is above base_px %d; a scale is at most the base. Pass a scale of this model.", size, base);
  }
  if (size % patch != 0) {
    return fail(Code::kInvalidArgument, "[gather] size_px %d is no multiple of patch_px %d; needs whole patches. Pass a scale of this model.",
                size, patch);
  }
  return {};
}

Status check_normalize(const Normalize& normalize) noexcept {
  for (int c = 0; c < 3; ++c) {
    if (!std::isfinite(normalize.mean[c]) || !std::isfinite(normalize.std[c]) || normalize.std[c] <= 0.0f) {
      return fail(Code::kInvalidArgument, "[gather] channel %d has mean %g and std %g; needs finite numbers and std above 0. Pass the model's own.",
                  c, static_cast<double>(normalize.mean[c]), static_cast<double>(normalize.std[c]));
    }
  }
  return {};
}

Status check_out(const Scale& scale, std::size_t num_ids, std::size_t num_out) noexcept {
  const std::size_t needed = num_ids * 3 * scale.patch_px * scale.patch_px;
  if (num_out == needed) return {};
  return fail(Code::kInvalidArgument, "[gather] out holds %zu values; %zu patches of 3x%dx%d need %zu. Pass a buffer of that size.", num_out,
              num_ids, scale.patch_px, scale.patch_px, needed);
}

Status check_score(Span<const float> features, int grid, int width, Span<const float> prompt, const ScoreView& view, Span<float> prob) noexcept {
  if (grid < 1 || width < 1 || grid > 4096) {
    return fail(Code::kInvalidArgument, "[score] grid %d and width %d; needs 1..4096 and at least 1. Pass the low-res grid.", grid, width);
  }
  const std::size_t places = static_cast<std::size_t>(grid) * grid;
  Status status = check_size("features", features.size(), places * width);
  if (status.ok()) status = check_size("prompt", prompt.size(), static_cast<std::size_t>(width));
  if (status.ok()) status = check_size("prob", prob.size(), places);
  if (!status.ok()) return status;
  if (view.features.empty()) return {};
  if (view.grid < grid || view.width < 1 || view.grid > 4096) {
    return fail(Code::kInvalidArgument, "[score] view grid %d of width %d over grid %d; needs at least the grid. Pass the view of this frame.",
                     view.grid, view.width, grid);
  }
  status = check_size("view features", view.features.size(), static_cast<std::size_t>(view.grid) * view.grid * view.width);
  if (status.ok()) status = check_size("view weight", view.weight.size(), static_cast<std::size_t>(view.width) * width);
  if (status.ok()) status = check_size("view bias", view.bias.size(), static_cast<std::size_t>(view.width));
  return status;
}

Status check_select(const ProbMap& prob, int rows, int cols, Span<std::uint8_t> taken) noexcept {
  if (prob.height < 1 || prob.width < 1 || prob.values.size() != static_cast<std::size_t>(prob.height) * prob.width) {
    return fail(Code::kInvalidArgument, "[select] prob holds %zu values for %dx%d; needs one each. Pass the map score() made.",
                     prob.values.size(), prob.height, prob.width);
  }
  if (rows < 1 || cols < 1 || rows > 32768 || cols > 32768) {
    return fail(Code::kInvalidArgument, "[select] grid is %dx%d; needs 1..32768 each. Pass the grid of a scale.", rows, cols);
  }
  if (taken.size() != static_cast<std::size_t>(rows) * cols) {
    return fail(Code::kInvalidArgument, "[select] taken holds %zu bytes; a %dx%d grid needs %zu. Pass one byte a patch.", taken.size(),
                     rows, cols, static_cast<std::size_t>(rows) * cols);
  }
  return {};
}

Status check_position_rows(const PositionTable& table, int n, std::size_t num_ids, Span<float> out) noexcept {
  const int g = table.grid;
  if (g < 1 || n < 1 || g > 16384 || n > 16384 || table.width < 1) {
    return fail(Code::kInvalidArgument, "[position_rows] grid %d, n %d, width %d; needs 1..16384, 1..16384 and at least 1. Pass the model's tables.",
                     g, n, table.width);
  }
  if (table.values.size() != static_cast<std::size_t>(g) * g * table.width) {
    return fail(Code::kInvalidArgument, "[position_rows] table holds %zu floats; %dx%d rows of %d need %zu. Pass the table and its grid.",
                     table.values.size(), g, g, table.width, static_cast<std::size_t>(g) * g * table.width);
  }
  if (table.crop && n > g) {
    return fail(Code::kInvalidArgument, "[position_rows] crop of a %dx%d table to %dx%d; needs n <= grid. Pass crop=false to resample.", g, g, n, n);
  }
  if (!table.residual_f32.empty() && !table.residual_f16.empty()) {
    return fail(Code::kInvalidArgument, "[position_rows] an f32 and an f16 residual; needs at most one. Pass one.");
  }
  const std::size_t residual = table.residual_f32.size() + table.residual_f16.size();
  if (residual != 0 && residual != static_cast<std::size_t>(n) * n * table.width) {
    return fail(Code::kInvalidArgument, "[position_rows] residual holds %zu values; %dx%d rows of %d need %zu. Pass the residual of this scale.",
                     residual, n, n, table.width, static_cast<std::size_t>(n) * n * table.width);
  }
  if (out.size() != num_ids * table.width) {
    return fail(Code::kInvalidArgument, "[position_rows] out holds %zu floats; %zu rows of %d need %zu. Pass a buffer of that size.",
                     out.size(), num_ids, table.width, num_ids * table.width);
  }
  return {};
}

Status check_scatter(Span<const float> tokens, int channels, std::size_t num_ids, int rows, int cols, Span<float> map) noexcept {
  if (channels < 1 || rows < 1 || cols < 1 || rows > 32768 || cols > 32768) {
    return fail(Code::kInvalidArgument, "[scatter] %d channels on a %dx%d grid; needs at least 1 and 1..32768 each. Pass the grid of a scale.",
                     channels, rows, cols);
  }
  const std::size_t places = static_cast<std::size_t>(rows) * cols;
  if (tokens.size() != num_ids * channels || map.size() != places * channels) {
    return fail(Code::kInvalidArgument, "[scatter] %zu token values for %zu ids and a map of %zu; needs %zu and %zu. Pass arrays of one scale.",
                     tokens.size(), num_ids, map.size(), num_ids * channels, places * channels);
  }
  return {};
}

}  // namespace ps3::ops
