#include "ps3/gather.h"

#include <new>

#include "checks.h"
#include "fail.h"
#include "gather_tile.h"
#include "parallel.h"

namespace ps3 {

namespace {

Status check_arguments(const FrameView& frame, const Scale& scale, Span<const std::int32_t> ids, const Normalize& normalize,
                       Span<float> out) {
  Status status = check(frame);
  if (status.ok()) status = ops::check_scale(scale);
  if (status.ok()) status = ops::check_normalize(normalize);
  if (status.ok()) status = ops::check_out(scale, ids.size(), out.size());
  if (!status.ok()) return status;
  return ops::check_ids("gather", ids.data(), ids.size(), scale.size_px / scale.patch_px, scale.size_px / scale.patch_px);
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
