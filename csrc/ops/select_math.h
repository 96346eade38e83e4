// The arithmetic of select; select.h states the rules.
#pragma once

#include "hd.h"

namespace ps3::ops {

/// Nearest: the row (or column) of the map that row r of a grid of n rows takes its value from.
PS3_HD int nearest(int r, int map, int n) { return static_cast<int>(static_cast<long long>(r) * map / n); }

/// -0 and +0 are one value; no NaN may reach this.
PS3_HD bool more_probable(float a, float b) { return a > b; }

}  // namespace ps3::ops
