// One tile of gather: frame pixels -> base positions -> normalised patches.
#pragma once

#include "gather_plan.h"
#include "lanes.h"

namespace ps3::ops {

struct GatherJob {
  FrameView frame;
  Normalize normalize;
  const GatherPlan* plan;
  float* out;
  const Rider* rider = nullptr;  // made along with it, into rider_out
  float* rider_out = nullptr;
};

/// A worker's buffers; all but `axis` are 64-byte aligned and allocated once a call.
struct GatherScratch {
  TileAxis x, y;
  std::vector<int> rider_x, rider_y;  // slots of the rider's patches, as TileAxis has them
  std::vector<std::uint8_t> memory;
  std::int32_t* strip = nullptr;      // [source byte][16 rows]
  std::int32_t* turned = nullptr;     // [3][position][16 rows]: result of the columns pass
  std::int32_t* columns = nullptr;    // [3][source row][pitch]: the same, turned back; bytes in 32 bits
  float* ring = nullptr;              // [4][pitch]: the last four rows of the base picture
  float* row = nullptr;               // [pitch]: one row after step 2 along y
  int pitch = 0, source_rows = 0;

  /// May throw std::bad_alloc.
  void allocate(const GatherJob& job);
};

void gather_tile(const GatherJob& job, const Tile& tile, GatherScratch& scratch);

}  // namespace ps3::ops
