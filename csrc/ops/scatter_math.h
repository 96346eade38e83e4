// The arithmetic of scatter: where a token's channel goes.
#pragma once

#include <cstddef>

#include "hd.h"

namespace ps3::ops {

PS3_HD std::size_t map_index(int channel, int id, int places) { return static_cast<std::size_t>(channel) * places + id; }

}  // namespace ps3::ops
