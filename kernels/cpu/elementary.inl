// exp, log1p and what is made of them, for results that do not depend on a machine's libm: fp32 operations that every
// tier, and a GPU, rounds alike. Included inside a namespace that has defined `Lanes`, one fp32 number or several, with
// splat, add, sub, mul, div, max (a > b ? a : b), min (a < b ? a : b), fma (a * b + c), root (square root), choose
// (a < b ? x : y) and times_power (a * 2^n, n the integer that was added to 1.5 * 2^23). NaN gives NaN.

// e^x for x clamped to [-87, 88]: x = n ln 2 + r, Taylor to r^7 (|r| <= 0.35: below 2^-27). Within 0.94 ulp.
static inline Lanes exp_lanes(Lanes x) {
  const Lanes shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
  x = min(splat(88.0f), max(splat(-87.0f), x));
  const Lanes shifted = add(mul(x, splat(1.44269504f)), shift), n = sub(shifted, shift);
  Lanes r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  const float taylor[7] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  Lanes p = splat(1.0f / 5040);
  for (int k = 0; k < 7; ++k) p = fma(p, r, splat(taylor[k]));
  return times_power(p, shifted);
}

// log(1 + t) for t in [-0.3, 1], of t itself near zero: with s = t / (2 + t) and z = s^2 it is 2 atanh(s) =
// t - s (t - z (2/3 + 2/5 z + ...)). Within 1.06 ulp.
static inline Lanes log1p_lanes(Lanes t) {
  const Lanes s = div(t, add(splat(2.0f), t)), z = mul(s, s);
  const float series[5] = {0.2429026f, 0.21430278f, 0.28616676f, 0.39998883f, 0.66666675f};
  Lanes p = splat(series[0]);
  for (int k = 1; k < 5; ++k) p = fma(p, z, splat(series[k]));
  return fma(sub(splat(0.0f), s), sub(t, mul(z, p)), t);
}

// sqrt(log(1 + e^x)): sqrt(max(x, 0) + log1p(e^-|x|)), and e^(x/2) below -20, where that is the same but for the last
// bit and e^x would leave 0/0 behind. Within 1.51 ulp for x >= -174.
static inline Lanes sqrt_softplus_lanes(Lanes x) {
  const Lanes zero = splat(0.0f), magnitude = max(sub(zero, x), x);
  const Lanes above = root(add(max(zero, x), log1p_lanes(exp_lanes(sub(zero, magnitude)))));
  return choose(x, splat(-20.0f), exp_lanes(mul(x, splat(0.5f))), above);
}
