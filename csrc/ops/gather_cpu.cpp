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

/// May throw std::bad_alloc.
void run(Cpu cpu, const FrameView& frame, const GatherPart& part, const Normalize& normalize, const ops::Rider* rider, float* rider_out) {
  const ops::GatherPlan plan = ops::plan_gather(frame, part.scale, part.ids, rider == nullptr ? 1 : rider->side);
  const ops::GatherJob job{frame, normalize, &plan, part.out.data(), rider, rider_out};
  const long num_tiles = static_cast<long>(plan.tiles.size());
  const int workers = ops::num_workers(cpu, num_tiles, 2);
  std::vector<ops::GatherScratch> scratch(static_cast<std::size_t>(workers));
  for (ops::GatherScratch& each : scratch) each.allocate(job);
  ops::parallel_for(workers, num_tiles, [&](long item, int worker) {
    ops::gather_tile(job, plan.tiles[static_cast<std::size_t>(item)], scratch[static_cast<std::size_t>(worker)]);
  });
}

}  // namespace

Status gather(Cpu cpu, const FrameView& frame, Span<const GatherPart> parts, const Normalize& normalize) noexcept {
  for (const GatherPart& part : parts) {
    if (!part.out_f16.empty()) return ops::fail(Code::kUnsupported, "[gather] halves are written by a GPU alone. Pass floats: out.");
    const Status status = check_arguments(frame, part.scale, part.ids, normalize, part.out);
    if (!status.ok()) return status;
  }
  try {
    std::vector<char> done(parts.size(), 0);
    for (std::size_t i = 0; i < parts.size(); ++i) {  // those that take another along first
      for (std::size_t k = 0; k < parts.size() && !done[i]; ++k) {
        const int side = k == i || done[k] ? 0 : ops::tile_to_share(parts[i].scale, parts[i].ids, parts[k].scale, parts[k].ids);
        if (side == 0) continue;
        const ops::Rider rider = ops::plan_rider(parts[k].scale, side);
        run(cpu, frame, parts[i], normalize, &rider, parts[k].out.data());
        done[i] = done[k] = 1;
      }
    }
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (!done[i] && !parts[i].ids.empty()) run(cpu, frame, parts[i], normalize, nullptr, nullptr);
    }
    return {};
  } catch (const std::bad_alloc&) {
    return ops::fail(Code::kOutOfMemory, "[gather] no memory for the buffers of a tile; needs a few MB a thread. Free memory or use fewer threads.");
  } catch (...) {
    return ops::fail(Code::kInternal, "[gather] stopped by an unexpected exception; this is a defect. Please report it.");
  }
}

Status gather(Cpu cpu, const FrameView& frame, const Scale& scale, Span<const std::int32_t> ids, const Normalize& normalize,
              Span<float> out) noexcept {
  const GatherPart part{scale, ids, out, {}};
  return gather(cpu, frame, Span<const GatherPart>(&part, 1), normalize);
}

}  // namespace ps3
