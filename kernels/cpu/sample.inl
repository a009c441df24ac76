// What the sampler asks of all logits, a block of V4K_LOGITS at a time. Included inside the tier's namespace. Plain C++,
// which compilers turn into the tier's vectors; without fused multiply-adds, which numpy has not: the plain statement of
// the sampler (v4kernels/sampling.py) gives the same bits.

// The highest of a block; NaN if one is NaN or plus infinity. As integers in the order of the floats.
static float logit_peak(const float *x) {
  int32_t order[V4K_LOGITS], high = INT32_MIN, low = INT32_MAX;
  __builtin_memcpy(order, x, sizeof order);
  for (int i = 0; i < V4K_LOGITS; ++i) {
    const int32_t key = order[i] ^ ((order[i] >> 31) & INT32_MAX);
    high = key > high ? key : high;
    low = key < low ? key : low;
  }
  if (high >= 0x7f800000 || low < (int32_t)0x807fffff) return __builtin_nanf("");  // NaN lies beyond the infinities
  high ^= (high >> 31) & INT32_MAX;
  float peak;
  __builtin_memcpy(&peak, &high, 4);
  return peak;
}

// w = 2^44 * e^((x - top) * inverse), rounded to integers, for x <= top; returns their sum. With y = n ln 2 + r, |r| <=
// 0.35, Taylor to r^11 (below 2^-47). Adding `whole` rounds to an integer, which is then in the low bits.
static int64_t logit_weights(const float *x, double top, double inverse, int64_t *w) {
  const double whole = 0x1.8p52, inverse_factorials[10] = {1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                                                           1.0 / 720,     1.0 / 120,    1.0 / 24,    1.0 / 6,
                                                           0.5,           1.0};
  const int64_t whole_bits = 0x4338000000000000;
  double y[V4K_LOGITS];
  for (int i = 0; i < V4K_LOGITS; ++i) {
    y[i] = ((double)x[i] - top) * inverse;
    y[i] = y[i] > -32.0 ? y[i] : -32.0;  // whose weight is 0
  }
  int64_t sum = 0;
  for (int i = 0; i < V4K_LOGITS; ++i) {
    const double shifted = y[i] * 0x1.71547652b82fep0 + whole, n = shifted - whole;
    const double r = (y[i] - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
    double p = 1.0 / 39916800;
    for (int k = 0; k < 10; ++k) p = p * r + inverse_factorials[k];
    p = p * r + 1.0;
    int64_t bits;
    __builtin_memcpy(&bits, &shifted, 8);
    bits = (bits - whole_bits + 1023 + 44) << 52;
    double power;
    __builtin_memcpy(&power, &bits, 8);
    const double rounded = p * power + whole;
    __builtin_memcpy(&bits, &rounded, 8);
    w[i] = bits - whole_bits;
    sum += w[i];
  }
  return sum;
}
