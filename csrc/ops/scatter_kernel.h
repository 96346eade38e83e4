// The bodies of scatter's kernels: which token lies at each place, then the map. A block turns a tile of kTile places x kTile
// channels in shared memory, so that tokens are read along their channels and the map is written along its places.
#pragma once

#include "scatter_math.h"

#include <cstdint>

namespace ps3::ops {

constexpr int kTile = 32;
constexpr int kScatterThreads = 256;
constexpr int kScatterSharedBytes = kTile * (kTile + 1) * 4;  // one more a row: a column's entries lie in different banks

struct ScatterLaunch {
  const float* tokens;
  const std::int32_t* ids;
  float* map;
  std::int32_t* token_at;  // workspace [places]
  int num_ids, channels, places;
};

/// Item k of num_ids, after token_at was filled with -1.
template <class Block>
PS3_KERNEL void place_token(const Block& block, const ScatterLaunch& g, int k) {
  const int id = g.ids[k];
  if (id >= 0 && id < g.places) block.highest(&g.token_at[id], k);
}

/// Grid: x places / kTile, y channels / kTile, both rounded up.
template <class Block>
PS3_KERNEL void scatter_block(const Block& block, const ScatterLaunch& g, float* shared) {
  const int first_place = block.x() * kTile, first_channel = block.y() * kTile;
  block.each(kTile * kTile, [&](int i) {
    const int place = i / kTile, channel = i % kTile;
    const int token = first_place + place < g.places ? g.token_at[first_place + place] : -1;
    float value = 0.0f;
    if (token >= 0 && first_channel + channel < g.channels) value = g.tokens[static_cast<std::size_t>(token) * g.channels + first_channel + channel];
    shared[channel * (kTile + 1) + place] = value;
  });
  block.sync();
  block.each(kTile * kTile, [&](int i) {
    const int channel = i / kTile, place = i % kTile;
    if (first_place + place >= g.places || first_channel + channel >= g.channels) return;
    g.map[map_index(first_channel + channel, first_place + place, g.places)] = shared[channel * (kTile + 1) + place];
  });
}

}  // namespace ps3::ops
