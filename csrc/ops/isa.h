// Compile one always_inline loop for several instruction sets and pick at run time, so that one wheel fits every machine.
//
//   PS3_FOR_EACH_ISA(gather_tile, (const Job& job, Scratch& scratch), (job, scratch), gather_tile_loop)
// defines `void gather_tile(const Job&, Scratch&)` that calls gather_tile_loop<16>, <8> or <4>, compiled for AVX-512, AVX2
// or the baseline; the number is the 32-bit lanes of the target's registers.
// None of the targets includes contraction of a multiply and an add (-ffp-contract=off): results are the same on all.
#pragma once

namespace ps3::ops {

enum class Isa { kBaseline, kAvx2, kAvx512 };

inline Isa isa() noexcept {
#if defined(__x86_64__) && defined(__GNUC__)
  static const Isa found = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
      return Isa::kAvx512;
    }
    return __builtin_cpu_supports("avx2") ? Isa::kAvx2 : Isa::kBaseline;
  }();
  return found;
#else
  return Isa::kBaseline;
#endif
}

inline const char* isa_name(Isa which) noexcept {
  return which == Isa::kAvx512 ? "avx512" : which == Isa::kAvx2 ? "avx2" : "baseline";
}

}  // namespace ps3::ops

#define PS3_UNPACK(...) __VA_ARGS__

#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#define PS3_AVX512 "avx512f,avx512bw,avx512vl,avx512dq"
#else
#define PS3_AVX512 "avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512"
#endif
#define PS3_FOR_EACH_ISA(name, parameters, arguments, loop)                                   \
  __attribute__((target(PS3_AVX512))) static void name##_avx512 parameters { loop<16> arguments; } \
  __attribute__((target("avx2"))) static void name##_avx2 parameters { loop<8> arguments; }       \
  static void name##_baseline parameters { loop<4> arguments; }                                  \
  void name parameters {                                                                      \
    switch (::ps3::ops::isa()) {                                                              \
      case ::ps3::ops::Isa::kAvx512: return name##_avx512 arguments;                          \
      case ::ps3::ops::Isa::kAvx2: return name##_avx2 arguments;                              \
      case ::ps3::ops::Isa::kBaseline: return name##_baseline arguments;                      \
    }                                                                                         \
  }
#else
#define PS3_FOR_EACH_ISA(name, parameters, arguments, loop) \
  void name parameters { loop<4> arguments; }
#endif
