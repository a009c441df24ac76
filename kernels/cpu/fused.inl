// fp32 kernels on eight lanes, the same in every tier. Included inside the tier's namespace, after Lanes with load,
// load_bf16, load_fp8 (e4m3 * 2^-120), splat, store, add, sub, mul, fma (a * b + c), max, exp_lanes, zero, total, and
// totals of eight Lanes.

static const int ATTEND_KEYS = 64;  // of one call of attend

template <int F>
static inline Lanes weights8(const uint8_t *row, int64_t i) {
  return F == V4K_BF16 ? load_bf16(row + 2 * i) : load((const float *)row + i);
}

// R rows times T tokens.
template <int F, int R, int T>
static inline void fp32_tile(const uint8_t *codes, int64_t row_bytes, int64_t cols, const float *x, int64_t x_stride,
                             float *y, int64_t stride) {
  Lanes acc[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) acc[r][t] = zero();
  for (int64_t i = 0; i < cols; i += 8) {
    Lanes in[T];
    for (int t = 0; t < T; ++t) in[t] = load(x + t * x_stride + i);
    for (int r = 0; r < R; ++r) {
      const Lanes w = weights8<F>(codes + r * row_bytes, i);
      for (int t = 0; t < T; ++t) acc[r][t] = fma(w, in[t], acc[r][t]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) y[t * stride + r] = total(acc[r][t]);
}

template <int F, int T>
static void fp32_rows(const uint8_t *codes, int64_t row_bytes, int64_t cols, int64_t n_rows, const float *x,
                      int64_t x_stride, float *y, int64_t stride) {
  int64_t r = 0;
  for (; r + 4 <= n_rows; r += 4)
    fp32_tile<F, 4, T>(codes + r * row_bytes, row_bytes, cols, x, x_stride, y + r, stride);
  for (; r < n_rows; ++r)
    fp32_tile<F, 1, T>(codes + r * row_bytes, row_bytes, cols, x, x_stride, y + r, stride);
}

template <int F>
static void rows_fp32_of(const v4k_matrix *w, int64_t row0, int64_t n_rows, const float *x, int64_t x_stride,
                         int64_t n_tokens, float *y, int64_t stride) {
  const int64_t row_bytes = w->cols * (F == V4K_BF16 ? 2 : 4);
  const uint8_t *codes = (const uint8_t *)w->codes + row0 * row_bytes;
  int64_t t = 0;
  for (; t + 2 <= n_tokens; t += 2)
    fp32_rows<F, 2>(codes, row_bytes, w->cols, n_rows, x + t * x_stride, x_stride, y + t * stride, stride);
  if (t < n_tokens)
    fp32_rows<F, 1>(codes, row_bytes, w->cols, n_rows, x + t * x_stride, x_stride, y + t * stride, stride);
}

static void rows_fp32(const v4k_matrix *w, int64_t row0, int64_t n_rows, const float *x, int64_t x_stride,
                      int64_t n_tokens, float *y, int64_t stride) {
  if (w->format == V4K_BF16) return rows_fp32_of<V4K_BF16>(w, row0, n_rows, x, x_stride, n_tokens, y, stride);
  rows_fp32_of<V4K_F32>(w, row0, n_rows, x, x_stride, n_tokens, y, stride);
}

static void rms_norm(const float *x, const float *weight, int64_t n, float eps, float *y) {
  Lanes sum = zero();
  for (int64_t i = 0; i < n; i += 8) {
    const Lanes v = load(x + i);
    sum = fma(v, v, sum);
  }
  const Lanes factor = splat(1.0f / __builtin_sqrtf(total(sum) / (float)n + eps));
  for (int64_t i = 0; i < n; i += 8) {
    const Lanes v = mul(load(x + i), factor);
    store(y + i, weight ? mul(v, load(weight + i)) : v);
  }
}

static void unpack(const uint8_t *const *entries, int64_t n, int64_t plain, int64_t rope, float *out) {
  for (int64_t k = 0; k < n; ++k, out += plain + rope) {
    const uint8_t *e = entries[k], *scales = e + plain + 2 * rope;
    for (int64_t i = 0; i < plain; i += 64) {
      const uint32_t bits = (uint32_t)(scales[i / 64] + 120) << 23;
      float factor;
      __builtin_memcpy(&factor, &bits, 4);
      const Lanes s = splat(factor);
      for (int j = 0; j < 64; j += 8) store(out + i + j, mul(load_fp8(e + i + j), s));
    }
    for (int64_t i = 0; i < rope; i += 8) store(out + plain + i, load_bf16(e + plain + 2 * i));
  }
}

// Scores of H heads times K keys, at most 8.
template <int H, int K>
static inline void score_tile(const float *q, const float *keys, int64_t d, float *s) {
  Lanes acc[8];
  for (int i = 0; i < 8; ++i) acc[i] = zero();
  for (int64_t i = 0; i < d; i += 8) {
    Lanes key[K];
    for (int k = 0; k < K; ++k) key[k] = load(keys + k * d + i);
    for (int h = 0; h < H; ++h) {
      const Lanes v = load(q + h * d + i);
      for (int k = 0; k < K; ++k) acc[h * K + k] = fma(v, key[k], acc[h * K + k]);
    }
  }
  float sums[8];
  store(sums, totals(acc));
  for (int h = 0; h < H; ++h)
    for (int k = 0; k < K; ++k) s[h * ATTEND_KEYS + k] = sums[h * K + k];
}

// out [H, d] = out * factor[H] + p [H, n_keys] times values [n_keys, d].
template <int H>
static inline void weigh(const float *p, const float *factor, const float *values, int64_t n_keys, int64_t d,
                         float *out) {
  for (int64_t i = 0; i < d; i += 16) {
    Lanes acc[H][2];
    for (int h = 0; h < H; ++h) {
      const Lanes f = splat(factor[h]);
      for (int c = 0; c < 2; ++c) acc[h][c] = mul(load(out + h * d + i + 8 * c), f);
    }
    for (int64_t k = 0; k < n_keys; ++k) {
      const Lanes v0 = load(values + k * d + i), v1 = load(values + k * d + i + 8);
      for (int h = 0; h < H; ++h) {
        const Lanes w = splat(p[h * ATTEND_KEYS + k]);
        acc[h][0] = fma(w, v0, acc[h][0]);
        acc[h][1] = fma(w, v1, acc[h][1]);
      }
    }
    for (int h = 0; h < H; ++h)
      for (int c = 0; c < 2; ++c) store(out + h * d + i + 8 * c, acc[h][c]);
  }
}

// The highest of `top` and scores [n, whole lanes]; NaN if one of these is not finite.
static inline float highest(const float *s, int64_t n, float top) {
  Lanes high = splat(top), check = zero();
  for (int64_t k = 0; k < n; k += 8) {
    const Lanes v = load(s + k);
    high = max(v, high);
    check = fma(v, zero(), check);
  }
  float each[8];
  store(each, high);
  for (int i = 0; i < 8; ++i) top = each[i] > top ? each[i] : top;
  return top + total(check);
}

// Scores [n_keys] to weights e^(score - top), with zeros up to whole lanes; returns their sum.
static inline float soften(float *s, int64_t n_keys, float top) {
  Lanes sum = zero();
  for (int64_t k = 0; k < n_keys; k += 8) {
    store(s + k, exp_lanes(sub(load(s + k), splat(top))));
    for (int64_t j = n_keys; j < k + 8; ++j) s[j] = 0.0f;
    sum = add(sum, load(s + k));
  }
  return total(sum);
}

template <int H>
static inline void attend_heads(const float *q, const float *keys, int64_t n_keys, int64_t d, v4k_part part) {
  alignas(64) float s[H * ATTEND_KEYS];
  float before[8] = {0}, top[8] = {0}, factor[8];
  int64_t k = 0;
  for (; k + 2 <= n_keys; k += 2) score_tile<H, 2>(q, keys + k * d, d, s + k);
  if (k < n_keys) score_tile<H, 1>(q, keys + k * d, d, s + k);
  const int64_t padded = (n_keys + 7) / 8 * 8;
  for (int h = 0; h < H; ++h) {
    for (k = n_keys; k < padded; ++k) s[h * ATTEND_KEYS + k] = s[h * ATTEND_KEYS];
    before[h] = part.peak[h];
    part.peak[h] = top[h] = highest(s + h * ATTEND_KEYS, padded, before[h]);
  }
  store(factor, exp_lanes(sub(load(before), load(top))));  // by which what was summed before has shrunk
  for (int h = 0; h < H; ++h) {
    if (part.total[h] == 0.0f) factor[h] = 0.0f;
    part.total[h] = part.total[h] * factor[h] + soften(s + h * ATTEND_KEYS, n_keys, top[h]);
  }
  weigh<H>(s, factor, keys, n_keys, d, part.out);
}

static void attend(const float *q, int64_t heads, const float *keys, int64_t n_keys, int64_t d, v4k_part part) {
  int64_t h = 0;
  for (; h + 4 <= heads; h += 4)
    attend_heads<4>(q + h * d, keys, n_keys, d, {part.peak + h, part.total + h, part.out + h * d});
  for (; h < heads; ++h)
    attend_heads<1>(q + h * d, keys, n_keys, d, {part.peak + h, part.total + h, part.out + h * d});
}

static void pool(const float *const *kv, const float *const *gate, int64_t slots, int64_t channels, float *out) {
  for (int64_t c = 0; c < channels; c += 8) {
    Lanes top = load(gate[0] + c), sum = zero(), mixed = zero();
    for (int64_t s = 1; s < slots; ++s) top = max(load(gate[s] + c), top);
    for (int64_t s = 0; s < slots; ++s) {
      const Lanes e = exp_lanes(sub(load(gate[s] + c), top));
      sum = add(sum, e);
      mixed = fma(e, load(kv[s] + c), mixed);
    }
    store(out + c, div(mixed, sum));
  }
}
