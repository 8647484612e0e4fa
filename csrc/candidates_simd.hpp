#ifndef IVDTOOL_CANDIDATES_SIMD_HPP_
#define IVDTOOL_CANDIDATES_SIMD_HPP_

// IVDTOOL_AVX2 marks functions compiled for AVX2 in a program for any x86-64 processor: to be
// called only if has_avx2(). AVX2 without FMA, so that arithmetic rounds as it does everywhere
// else.
#if defined(__x86_64__) && defined(__GNUC__)
#define IVDTOOL_AVX2 __attribute__((target("avx2")))
#endif

namespace ivdtool {

inline bool has_avx2() {
#ifdef IVDTOOL_AVX2
  return __builtin_cpu_supports("avx2");
#else
  return false;
#endif
}

}  // namespace ivdtool

#endif  // IVDTOOL_CANDIDATES_SIMD_HPP_
