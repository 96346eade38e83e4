// Vectors in the compiler's own notation, of as many 32-bit lanes as the target's registers have: kLanes is 16, 8 or 4
// (isa.h). All helpers are always_inline so that they take on their caller's target.
#pragma once

#include <cstdint>
#include <cstring>

namespace ps3::ops {

template <class T, int kLanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * kLanes)));
};
template <int kLanes>
using Ints = typename VectorOf<std::int32_t, kLanes>::type;
template <int kLanes>
using Floats = typename VectorOf<float, kLanes>::type;
using Floats4 = Floats<4>;

#define PS3_LANES static inline __attribute__((always_inline))

template <class Vector>
PS3_LANES Vector load(const void* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class Vector>
PS3_LANES void store(void* to, const Vector& v) {
  std::memcpy(to, &v, sizeof v);
}

template <int kLanes>
PS3_LANES Floats<kLanes> to_float(Ints<kLanes> v) {
  return __builtin_convertvector(v, Floats<kLanes>);
}

/// {a0, b0, a1, b1, ...} of the low halves, then of the high halves.
template <int kLanes>
PS3_LANES void interleave(Ints<kLanes>& a, Ints<kLanes>& b) {
  Ints<kLanes> low, high;
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i / 2 + (i % 2) * kLanes;
    high[i] = low[i] + kLanes / 2;
  }
  const Ints<kLanes> from_a = a, from_b = b;
  a = __builtin_shuffle(from_a, from_b, low);
  b = __builtin_shuffle(from_a, from_b, high);
}

/// kLanes x kLanes 32-bit numbers: row r, column q becomes row q, column r. A perfect shuffle, log2(kLanes) times.
template <int kLanes>
PS3_LANES void transpose(Ints<kLanes> (&m)[kLanes]) {
  for (int round = 1; round < kLanes; round *= 2) {
    Ints<kLanes> next[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = m[i];
      next[2 * i + 1] = m[i + kLanes / 2];
      interleave<kLanes>(next[2 * i], next[2 * i + 1]);
    }
    for (int i = 0; i < kLanes; ++i) m[i] = next[i];
  }
}

/// Lane i of the result is the sum of the four lanes of v_i.
PS3_LANES Floats4 sum_each(Floats4 v0, Floats4 v1, Floats4 v2, Floats4 v3) {
  using Which = VectorOf<std::int32_t, 4>::type;
  const Floats4 low01 = __builtin_shuffle(v0, v1, Which{0, 4, 1, 5}), high01 = __builtin_shuffle(v0, v1, Which{2, 6, 3, 7});
  const Floats4 low23 = __builtin_shuffle(v2, v3, Which{0, 4, 1, 5}), high23 = __builtin_shuffle(v2, v3, Which{2, 6, 3, 7});
  const Floats4 lane0 = __builtin_shuffle(low01, low23, Which{0, 1, 4, 5}), lane1 = __builtin_shuffle(low01, low23, Which{2, 3, 6, 7});
  const Floats4 lane2 = __builtin_shuffle(high01, high23, Which{0, 1, 4, 5}), lane3 = __builtin_shuffle(high01, high23, Which{2, 3, 6, 7});
  return ((lane0 + lane1) + lane2) + lane3;
}

}  // namespace ps3::ops
