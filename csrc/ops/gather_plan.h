// What one call of gather computes before it touches a pixel: weights per axis, and the picked patches grouped into tiles
// so that neighbours share the first pass.
#pragma once

#include <cstdint>
#include <vector>

#include "gather_math.h"
#include "ps3/gather.h"

namespace ps3::ops {

constexpr int kTilePositions = 240;  // a tile samples about this many base columns and rows: its buffers stay in L2
constexpr int kMaxTileSide = 16;

/// A rectangle of patches. Patch (i, j) is order[first[i] + j] of the call.
struct Tile {
  int row, col, num_rows, num_cols;
  std::int32_t first[kMaxTileSide];
};

/// Step 1 along one axis: the window and fixed-point weights of every base index that some patch needs.
struct BaseAxis {
  int max_count = 0;
  std::vector<Window> windows;
  std::vector<std::int32_t> weights;  // [base][max_count]
};

/// Step 2 along either axis (the picture is square): output i samples base pixels first[i] .. first[i] + taps - 1, which may
/// reach over the border and are clamped then.
struct ScaleAxis {
  int taps = 1;                // 1: every phase is exactly 0
  std::vector<int> first;
  std::vector<float> weights;  // [size + 3][4], only for taps == 4
};

struct GatherPlan {
  int base_px, patch_px, grid;
  BaseAxis x, y;
  ScaleAxis scale;
  std::vector<Tile> tiles;
  std::vector<std::int32_t> order;  // positions in ids, by ascending id
  int max_positions = 0;            // most base indices one axis of a tile samples
  int max_source_cols = 0, max_source_rows = 0;
};

/// A coarser whole grid whose patches are made in the tiles of a finer one, of base rows that are there already.
struct Rider {
  int patch_px = 0, grid = 0, side = 0;  // one of its patches is side x side of the finer ones
  ScaleAxis scale;
};

/// How many patches of `fine` lie along a side of one of `coarse`, if gathering both of one frame may share tiles: whole grids with ids 0, 1, 2, ..; else 0.
int tile_to_share(const Scale& fine, Span<const std::int32_t> fine_ids, const Scale& coarse, Span<const std::int32_t> coarse_ids);

/// May throw std::bad_alloc.
Rider plan_rider(const Scale& coarse, int side);

/// One axis of one tile. Position p stands for base index base[p]; output i starts at position slot[i].
struct TileAxis {
  int num_positions = 0;
  int source_first = 0, source_end = 0;  // frame pixels its windows cover
  std::vector<int> base, slot;
};

/// multiple: of patches along each side of a tile. May throw std::bad_alloc.
GatherPlan plan_gather(const FrameView& frame, const Scale& scale, Span<const std::int32_t> ids, int multiple = 1);

/// Fills axis for patches begin .. begin + count - 1 of that axis. Reuses its vectors.
void lay_out(const GatherPlan& plan, const BaseAxis& base, int begin, int count, TileAxis& axis);

}  // namespace ps3::ops
