// Vectors of 16 lanes in the compiler's own notation. The compiler lowers them to what the target has: one 512-bit
// register, two of 256 or four of 128. All helpers are always_inline so that they take on their caller's target.
#pragma once

#include <cstdint>
#include <cstring>

namespace ps3::ops {

using Bytes16 = std::uint8_t __attribute__((vector_size(16)));
using Ints16 = std::int32_t __attribute__((vector_size(64)));
using Floats16 = float __attribute__((vector_size(64)));
using Floats4 = float __attribute__((vector_size(16)));

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

PS3_LANES Ints16 widen(Bytes16 v) { return __builtin_convertvector(v, Ints16); }
PS3_LANES Bytes16 narrow(Ints16 v) { return __builtin_convertvector(v, Bytes16); }
PS3_LANES Floats16 to_float(Ints16 v) { return __builtin_convertvector(v, Floats16); }

PS3_LANES Bytes16 interleave_low(Bytes16 a, Bytes16 b) {
  return __builtin_shuffle(a, b, Bytes16{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
}
PS3_LANES Bytes16 interleave_high(Bytes16 a, Bytes16 b) {
  return __builtin_shuffle(a, b, Bytes16{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
}

/// 16 x 16 bytes: row r, column q becomes row q, column r. Four rounds of a perfect shuffle.
PS3_LANES void transpose(Bytes16 (&m)[16]) {
  for (int round = 0; round < 4; ++round) {
    Bytes16 next[16];
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = interleave_low(m[i], m[i + 8]);
      next[2 * i + 1] = interleave_high(m[i], m[i + 8]);
    }
    for (int i = 0; i < 16; ++i) m[i] = next[i];
  }
}

PS3_LANES Floats4 pick(Floats4 a, Floats4 b, const std::int32_t __attribute__((vector_size(16))) which) {
  return __builtin_shuffle(a, b, which);
}

/// Lane i of the result is the sum of the four lanes of v_i.
PS3_LANES Floats4 sum_each(Floats4 v0, Floats4 v1, Floats4 v2, Floats4 v3) {
  using Which = std::int32_t __attribute__((vector_size(16)));
  const Floats4 low01 = pick(v0, v1, Which{0, 4, 1, 5}), high01 = pick(v0, v1, Which{2, 6, 3, 7});
  const Floats4 low23 = pick(v2, v3, Which{0, 4, 1, 5}), high23 = pick(v2, v3, Which{2, 6, 3, 7});
  const Floats4 lane0 = pick(low01, low23, Which{0, 1, 4, 5}), lane1 = pick(low01, low23, Which{2, 3, 6, 7});
  const Floats4 lane2 = pick(high01, high23, Which{0, 1, 4, 5}), lane3 = pick(high01, high23, Which{2, 3, 6, 7});
  return ((lane0 + lane1) + lane2) + lane3;
}

}  // namespace ps3::ops
