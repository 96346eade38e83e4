// The arithmetic of score; score.h states the formulas.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "hd.h"

namespace ps3::ops {

/// Sums of a.b, a.a and b.b in 16 partial sums, folded in halves: one order on every machine.
struct Products {
  float ab, aa, bb;
};

PS3_HD float fold16(float (&part)[16]) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  }
  return part[0];
}

PS3_HD Products products(const float* a, const float* b, int n) {
  float ab[16] = {}, aa[16] = {}, bb[16] = {};
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int l = 0; l < 16; ++l) ab[l] += a[i + l] * b[i + l];
    for (int l = 0; l < 16; ++l) aa[l] += a[i + l] * a[i + l];
    for (int l = 0; l < 16; ++l) bb[l] += b[i + l] * b[i + l];
  }
  for (int l = 0; i < n; ++i, ++l) {
    ab[l] += a[i] * b[i];
    aa[l] += a[i] * a[i];
    bb[l] += b[i] * b[i];
  }
  return {fold16(ab), fold16(aa), fold16(bb)};
}

PS3_HD float dot(const float* a, const float* b, int n) {
  float ab[16] = {};
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int l = 0; l < 16; ++l) ab[l] += a[i + l] * b[i + l];
  }
  for (int l = 0; i < n; ++i, ++l) ab[l] += a[i] * b[i];
  return fold16(ab);
}

PS3_HD float cosine(const Products& p) {
  constexpr float eps = 1e-12f;
  const float a = sqrtf(p.aa), b = sqrtf(p.bb);
  return p.ab / ((a > eps ? a : eps) * (b > eps ? b : eps));
}

/// Place i of g looks at view places window_begin(i) .. window_end(i) - 1 of v; windows overlap where g does not divide v.
PS3_HD int window_begin(int i, int v, int g) { return i * v / g; }
PS3_HD int window_end(int i, int v, int g) { return ((i + 1) * v + g - 1) / g; }

/// e^x for |x| <= 80, within 2 parts in 10^7; beyond, the bound's. Of products and sums only: the C library's differs between machines.
PS3_HD float exp_same(float x) {
  if (!(x == x)) return x;
  x = x < -80.0f ? -80.0f : (x > 80.0f ? 80.0f : x);
  const float n = floorf(x * 1.44269504f + 0.5f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two floats, the first of 9 bits: its product is exact
  float sum = 1.0f / 5040.0f;
  sum = sum * r + 1.0f / 720.0f;
  sum = sum * r + 1.0f / 120.0f;
  sum = sum * r + 1.0f / 24.0f;
  sum = sum * r + 1.0f / 6.0f;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const std::int32_t bits = (static_cast<std::int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return sum * power;
}

PS3_HD float probability(float logit) { return 1.0f / (1.0f + exp_same(-5.0f * logit)); }

}  // namespace ps3::ops
