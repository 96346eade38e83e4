// The arithmetic of position_rows; position_rows.h states the formulas.
#pragma once

#include <cstdint>
#include <cstring>

#include "hd.h"
#include "resample_math.h"

namespace ps3::ops {

/// Where row (or column) i of the n x n table lies on the g x g one; rounded to float as torch does.
PS3_HD double table_center(int i, int g, int n) {
  const float scale = static_cast<float>(g) / static_cast<float>(n);
  return static_cast<float>(scale * (i + 0.5));
}

/// IEEE half to float, subnormals and infinities included; a NaN stays a NaN.
PS3_HD float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t rest = static_cast<std::uint32_t>(half & 0x7fffu) << 13;
  // Read as a float, `rest` is the value times 2^-112; the product is exact and turns subnormals into normal numbers.
  float value;
  std::memcpy(&value, &rest, sizeof value);
  value *= 5.192296858534828e33f;  // 2^112
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((half & 0x7c00u) == 0x7c00u) bits |= 0x7f800000u;
  bits |= sign;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace ps3::ops
