// exp, log, log1p, cos and sin of our own: the same bits on every machine, whatever its libm. One number at a time, for
// baseline code; tiers include elementary.inl for theirs, with the same bits.
#ifndef V4K_ELEMENTARY_H
#define V4K_ELEMENTARY_H

#include <cmath>

#include "bits.h"

namespace v4k {
namespace elementary {

typedef float Lanes;

static inline Lanes splat(float x) { return x; }
static inline Lanes add(Lanes a, Lanes b) { return a + b; }
static inline Lanes sub(Lanes a, Lanes b) { return a - b; }
static inline Lanes mul(Lanes a, Lanes b) { return a * b; }
static inline Lanes div(Lanes a, Lanes b) { return a / b; }
static inline Lanes max(Lanes a, Lanes b) { return a > b ? a : b; }
static inline Lanes min(Lanes a, Lanes b) { return a < b ? a : b; }
static inline Lanes fma(Lanes a, Lanes b, Lanes c) { return __builtin_fmaf(a, b, c); }
static inline Lanes root(Lanes a) { return __builtin_sqrtf(a); }
static inline Lanes choose(Lanes a, Lanes b, Lanes x, Lanes y) { return a < b ? x : y; }
static inline Lanes times_power(Lanes a, Lanes shifted) { return a * from_bits((bits_of(shifted) << 23) + 0x3f800000); }

#include "elementary.inl"

}  // namespace elementary

// cos and sin of x, |x| < 2^31, by fp64 polynomials after taking off multiples of pi / 2: the nearest fp32 but for
// cases within 2^-20 of an ulp of the middle between two.
static inline void turn_of(float x, float *cosine, float *sine) {
  const double shift = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  const double n = (x * 0.63661977236758134308 + shift) - shift;
  // pi / 2 in three parts, of 22 bits each, so that the first two products are exact, and the rest
  double r = (x - n * 0x1.921fb00000000p+0) - n * 0x1.5110b00000000p-22;
  r -= n * 0x1.18469898cc517p-44;
  const double z = r * r;
  double s = 1.0 / 6227020800, c = 1.0 / 479001600;  // Taylor to r^13 and r^12: |r| <= pi / 4, below 2^-41
  const double sines[5] = {-1.0 / 39916800, 1.0 / 362880, -1.0 / 5040, 1.0 / 120, -1.0 / 6};
  const double cosines[5] = {-1.0 / 3628800, 1.0 / 40320, -1.0 / 720, 1.0 / 24, -0.5};
  for (int k = 0; k < 5; ++k) {
    s = s * z + sines[k];
    c = c * z + cosines[k];
  }
  s = r * z * s + r;
  c = z * c + 1.0;
  const int64_t quarter = static_cast<int64_t>(n) & 3;
  const double turned_c = quarter & 1 ? s : c, turned_s = quarter & 1 ? c : s;
  *cosine = static_cast<float>(quarter == 1 || quarter == 2 ? -turned_c : turned_c);
  *sine = static_cast<float>(quarter >= 2 ? -turned_s : turned_s);
}

}  // namespace v4k
#endif
