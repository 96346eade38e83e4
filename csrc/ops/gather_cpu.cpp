#include "ps3/gather.h"

#include <cmath>
#include <new>

#include "fail.h"
#include "gather_tile.h"
#include "parallel.h"

namespace ps3 {

namespace {

Status check_arguments(const FrameView& frame, const Scale& scale, Span<const std::int32_t> ids, const Normalize& normalize,
                       Span<float> out) {
  Status status = check(frame);
  if (!status.ok()) return status;
  const int base = scale.base_px, size = scale.size_px, patch = scale.patch_px;
  if (base < 1 || base > 65536 || size < 1 || patch < 1 || patch > 1024) {
    return ops::fail(Code::kInvalidArgument,
                     "[gather] base_px %d, size_px %d, patch_px %d; needs 1..65536, 1..base_px and 1..1024. Pass the model's geometry.",
                     base, size, patch);
  }
  if (size > base) {
    return ops::fail(Code::kInvalidArgument, "[gather] size_px %d is above base_px %d; a scale is at most the base. Pass a scale of this model.",
                     size, base);
  }
  if (size % patch != 0) {
    return ops::fail(Code::kInvalidArgument,
                     "[gather] size_px %d is no multiple of patch_px %d; needs whole patches. Pass a scale of this model.", size, patch);
  }
  for (int c = 0; c < 3; ++c) {
    if (!std::isfinite(normalize.mean[c]) || !std::isfinite(normalize.std[c]) || normalize.std[c] <= 0.0f) {
      return ops::fail(Code::kInvalidArgument, "[gather] channel %d has mean %g and std %g; needs finite numbers and std above 0. Pass the model's own.",
                       c, static_cast<double>(normalize.mean[c]), static_cast<double>(normalize.std[c]));
    }
  }
  const std::size_t needed = ids.size() * 3 * patch * patch;
  if (out.size() != needed) {
    return ops::fail(Code::kInvalidArgument, "[gather] out holds %zu floats; %zu patches of 3x%dx%d need %zu. Pass a buffer of that size.",
                     out.size(), ids.size(), patch, patch, needed);
  }
  return ops::check_ids("gather", ids.data(), ids.size(), size / patch, size / patch);
}

}  // namespace

Status gather(Cpu cpu, const FrameView& frame, const Scale& scale, Span<const std::int32_t> ids, const Normalize& normalize,
              Span<float> out) noexcept {
  Status status = check_arguments(frame, scale, ids, normalize, out);
  if (!status.ok() || ids.empty()) return status;
  try {
    const ops::GatherPlan plan = ops::plan_gather(frame, scale, ids);
    const ops::GatherJob job{frame, normalize, &plan, out.data()};
    const long num_tiles = static_cast<long>(plan.tiles.size());
    const int workers = ops::num_workers(cpu, num_tiles, 2);
    std::vector<ops::GatherScratch> scratch(static_cast<std::size_t>(workers));
    for (ops::GatherScratch& each : scratch) each.allocate(job);
    ops::parallel_for(workers, num_tiles, [&](long item, int worker) {
      ops::gather_tile(job, plan.tiles[static_cast<std::size_t>(item)], scratch[static_cast<std::size_t>(worker)]);
    });
    return {};
  } catch (const std::bad_alloc&) {
    return ops::fail(Code::kOutOfMemory, "[gather] no memory for the buffers of a tile; needs a few MB a thread. Free memory or use fewer threads.");
  } catch (...) {
    return ops::fail(Code::kInternal, "[gather] stopped by an unexpected exception; this is a defect. Please report it.");
  }
}

}  // namespace ps3
