// Vectors of the processor's own length, and the functions of a transformer on them.
#pragma once

#include <cstdint>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace simflow {

// kRows x kVectors sums stay in registers, of which AVX-512 has 32 and the others 16.
constexpr int64_t kRows = 8;
#if defined(__AVX512F__)
constexpr int64_t kLanes = 16, kVectors = 2;
#elif defined(__AVX__)
constexpr int64_t kLanes = 8, kVectors = 1;
#else
constexpr int64_t kLanes = 4, kVectors = 1;
#endif
constexpr int64_t kPanel = kVectors * kLanes;

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef float LooseVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline int64_t padded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

inline Vec load(const float* from) { return *reinterpret_cast<const LooseVec*>(from); }
inline void store(float* to, Vec values) { *reinterpret_cast<LooseVec*>(to) = values; }

inline float sum(Vec values) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(values);
#elif defined(__AVX__)
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
#else
  float total = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) total += values[lane];
  return total;
#endif
}

// exp to 2 units in the last place: 2^n e^r with |r| <= log(2) / 2 and the polynomial of Cephes' expf.
inline Vec exp_of(Vec x) {
  const float low = -87.0f, high = 88.0f, magic = 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
  x = x < low ? Vec{} + low : x;  // NaN stays NaN
  x = x > high ? Vec{} + high : x;
  const Vec n = (x * 1.44269504088896341f + magic) - magic;
  const Vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const IntVec exponent = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return p * (Vec)exponent;  // the same bits, not the same numbers
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp_of(-x)); }

// x Phi(x), erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
inline Vec gelu(Vec x) {
  const Vec z = x * 0.70710678118654752f, magnitude = z < 0 ? -z : z;
  const Vec t = 1.0f / (1.0f + 0.3275911f * magnitude);
  Vec p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vec tail = p * t * exp_of(-magnitude * magnitude);  // erfc(|z|)
  return 0.5f * x * (z < 0 ? tail : 2.0f - tail);
}

inline Vec gelu_tanh(Vec x) { return x * sigmoid(1.5957691216057308f * (x + 0.044715f * x * x * x)); }

}  // namespace simflow
