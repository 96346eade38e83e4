// The arithmetic of gather; gather.h states the formulas. Templates take a scalar or a vector of lanes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

#include "hd.h"
#include "resample_math.h"

namespace ps3::ops {

constexpr int kWeightBits = 22;                                     // Pillow's: 32 - 8 - 2
constexpr std::int32_t kHalf = std::int32_t{1} << (kWeightBits - 1);

/// Step 1: where base index i lies on an axis of the frame.
PS3_HD double base_center(int i, int in_px, int base_px) { return (i + 0.5) * (static_cast<double>(in_px) / base_px); }

PS3_HD std::int32_t fixed_weight(double weight) {
  const double scaled = weight * (1 << kWeightBits);
  return static_cast<std::int32_t>(weight < 0 ? -0.5 + scaled : 0.5 + scaled);
}

/// A sum that started at kHalf, back to 0..255.
template <class Int>
PS3_HD Int to_byte_range(Int sum) {
  Int value = sum >> kWeightBits;
  value = value < 0 ? value - value : value;
  return value > 255 ? value - value + 255 : value;
}

/// An odd integer ratio samples the middle of every group: all phases are 0.
PS3_HD bool is_exact(int base_px, int size_px) { return base_px % size_px == 0 && base_px / size_px % 2 == 1; }

/// Step 2, one axis: where output i of `size` samples the base picture. Float, as torch computes it.
struct Phase {
  int index;   // floor of the position
  float part;  // 0 <= part < 1; exactly 0: that one pixel
};

PS3_HD Phase phase_of(int i, int base, int size) {
  const float ratio = static_cast<float>(base) / static_cast<float>(size);
  const float position = fmaf(ratio, static_cast<float>(i) + 0.5f, -0.5f);  // one rounding, as in torch's kernels
  int index = static_cast<int>(floorf(position));
  index = index > base - 1 ? base - 1 : index;
  float part = position - static_cast<float>(index);
  part = part < 0.0f ? 0.0f : (part > 1.0f ? 1.0f : part);
  return {index, part};
}

/// Weights of the pixels index - 1 .. index + 2: the cubic with a = -0.75. In double, for their sum to be 1 to the last bit.
PS3_HD void cubic_taps(float part, float (&weights)[4]) {
  constexpr double a = -0.75;
  const double here = part, next = 1.0 - here, before = 1.0 + here, after = 2.0 - here;
  weights[0] = static_cast<float>(((a * before - 5 * a) * before + 8 * a) * before - 4 * a);
  weights[1] = static_cast<float>(((a + 2) * here - (a + 3)) * here * here + 1);
  weights[2] = static_cast<float>(((a + 2) * next - (a + 3)) * next * next + 1);
  weights[3] = static_cast<float>(((a * after - 5 * a) * after + 8 * a) * after - 4 * a);
}

/// value / 255, correctly rounded for the bytes 0..255 without a division: 1/255 in two floats, the first of 16 bits, so that
/// its product with a byte is exact. For other values the error is one rounding more.
template <class Float>
PS3_HD Float over_255(Float value) {
  constexpr float high = 257.0f / 65536.0f;                               // 1/255 = 257/65535
  constexpr float low = static_cast<float>(1.0 / 255.0 - 257.0 / 65536.0);
  return value * high + value * low;
}

/// (value / 255 - mean) / std of a byte. scale is 1 / std where that is exact (a power of two), else the division is done.
template <bool kExactScale, class Float>
PS3_HD Float normalize_byte(Float value, float mean, float std, float scale) {
  const Float centered = over_255(value) - mean;
  if constexpr (kExactScale) {
    (void)std;
    return centered * scale;
  } else {
    (void)scale;
    return centered / std;
  }
}

/// The same for an interpolated value: within one part in 10^6.
template <class Float>
PS3_HD Float normalize_sample(Float value, float mean, float scale) {
  return (over_255(value) - mean) * scale;
}

/// To IEEE half, nearest even; overflow becomes infinity, a NaN stays one.
PS3_HD std::uint16_t float_to_half(float value) {
#if defined(__CUDA_ARCH__)
  return __half_as_ushort(__float2half_rn(value));
#else
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint16_t sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7fffu);
  if (bits >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 rounds up to infinity
  if (bits < 0x38800000u) {  // subnormal: adding 0.5 leaves the value in units of 2^-24 in the low bits, rounded
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, sizeof bits);
    return static_cast<std::uint16_t>(sign | (bits - 0x3f000000u));
  }
  bits += 0xfffu + (bits >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | ((bits - 0x38000000u) >> 13));
#endif
}

}  // namespace ps3::ops