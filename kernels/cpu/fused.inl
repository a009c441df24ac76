// fp32 kernels, the same in every tier. Included inside the tier's namespace, after Lanes with load, load_bf16, load_fp8
// (e4m3 * 2^-120), store, zero, total, totals of eight Lanes, what elementary.inl needs and defines, and
//
//   ROWS_ONCE               rows whose 64 lanes fit the registers, for one token
//   PAIR_ROWS, PAIR_PARTS   rows times two tokens, and Wide of their lanes, that do

static const int ATTEND_KEYS = 64;  // of one call of attend
static const int64_t COLS = 1024;   // of a tile's rows at a time, in L1

// The widest vectors of fp32 numbers, for sums in 64 lanes: Lanes unless the tier has V4K_OWN_WIDE.
#ifndef V4K_OWN_WIDE
typedef Lanes Wide;
static const int WIDE = 8;
static inline Wide splat_wide(float x) { return splat(x); }
static inline Wide load_wide(const float *p) { return load(p); }
static inline void store_wide(float *p, const Wide &a) { store(p, a); }
static inline Wide load_bf16_wide(const uint8_t *p) { return load_bf16(p); }
#endif
static const int STEP = 64, PARTS = STEP / WIDE;

// 64 lanes to 8: halves are added to halves, as total() goes on to do.
static inline Lanes folded(const float *lanes) {
  Lanes a[8];
  for (int c = 0; c < 8; ++c) a[c] = load(lanes + 8 * c);
  return add(add(add(a[0], a[4]), add(a[2], a[6])), add(add(a[1], a[5]), add(a[3], a[7])));
}

template <int F>
static inline Wide weights_wide(const uint8_t *row, int64_t i) {
  return F == V4K_BF16 ? load_bf16_wide(row + 2 * i) : load_wide((const float *)row + i);
}

// Products in fp32 of some rows times some tokens, `lanes` [rows, tokens, STEP], over the columns [at, stop) of a block.
struct Products {
  const uint8_t *codes;
  const float *x;
  float *lanes;
  int64_t row_bytes, x_stride, tokens, at, stop;
};

// R rows times T tokens, P parts of the lanes at a time, so that R * T * P sums stay in registers.
template <int F, int R, int T, int P>
static inline void fp32_tile(const Products &of, int64_t row, int64_t token) {
  const uint8_t *codes = of.codes + row * of.row_bytes;
  const float *x = of.x + token * of.x_stride;
  float *lanes = of.lanes + (row * of.tokens + token) * STEP;
  for (int c = 0; c < STEP; c += P * WIDE) {
    Wide acc[R][T][P];
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t)
        for (int p = 0; p < P; ++p)
          acc[r][t][p] = of.at ? load_wide(lanes + (r * of.tokens + t) * STEP + c + p * WIDE) : splat_wide(0);
    for (int64_t i = of.at + c; i < of.stop; i += STEP)
      for (int p = 0; p < P; ++p) {
        if (p * WIDE == V4K_GROUP && i + V4K_GROUP >= of.stop) break;
        Wide in[T];
        for (int t = 0; t < T; ++t) in[t] = load_wide(x + t * of.x_stride + i + p * WIDE);
        for (int r = 0; r < R; ++r) {
          const Wide w = weights_wide<F>(codes + r * of.row_bytes, i + p * WIDE);
          for (int t = 0; t < T; ++t) acc[r][t][p] = fma(w, in[t], acc[r][t][p]);
        }
      }
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t)
        for (int p = 0; p < P; ++p) store_wide(lanes + (r * of.tokens + t) * STEP + c + p * WIDE, acc[r][t][p]);
  }
}

// R rows times all tokens.
template <int F, int R>
static inline void fp32_tiles(const Products &of, int64_t row) {
  int64_t t = 0;
  for (; t + 2 <= of.tokens; t += 2) fp32_tile<F, R, 2, PAIR_PARTS>(of, row, t);
  if (t < of.tokens) fp32_tile<F, R, 1, 2 * PAIR_PARTS>(of, row, t);
}

// Few rows and tokens. Of several tokens block of columns after block: a row's weights stay in L1 for all tokens.
template <int F>
static void fp32_rows(Products of, int64_t n_rows, int64_t cols, float *y, int64_t stride) {
  const int64_t block = of.tokens > 1 ? COLS : cols;
  for (of.at = 0; of.at < cols; of.at = of.stop) {
    of.stop = of.at + block < cols ? of.at + block : cols;
    int64_t r = 0;
    if (of.tokens == 1)
      for (; r + ROWS_ONCE <= n_rows; r += ROWS_ONCE) fp32_tile<F, ROWS_ONCE, 1, PARTS>(of, r, 0);
    for (; r + PAIR_ROWS <= n_rows; r += PAIR_ROWS) fp32_tiles<F, PAIR_ROWS>(of, r);
    for (; r < n_rows; ++r) fp32_tiles<F, 1>(of, r);
  }
  for (int64_t t = 0; t < of.tokens; ++t) {
    const float *lanes = of.lanes + t * STEP;
    const int64_t row = of.tokens * STEP;
    int64_t r = 0;
    for (; r + 8 <= n_rows; r += 8) {
      Lanes each[8];
      for (int k = 0; k < 8; ++k) each[k] = folded(lanes + (r + k) * row);
      store(y + t * stride + r, totals(each));
    }
    for (; r < n_rows; ++r) y[t * stride + r] = total(folded(lanes + r * row));
  }
}

template <int F>
static void rows_fp32_of(const v4k_matrix *w, int64_t row0, int64_t n_rows, const float *x, int64_t x_stride,
                         int64_t n_tokens, float *y, int64_t stride) {
  const int64_t most = 128, most_tokens = 16;  // rows by tokens, and tokens, of 256 bytes of lanes each
  alignas(64) float lanes[most * STEP];
  const int64_t row_bytes = w->cols * (F == V4K_BF16 ? 2 : 4);
  const uint8_t *codes = (const uint8_t *)w->codes + row0 * row_bytes;
  for (int64_t t = 0; t < n_tokens; t += most_tokens) {
    const int64_t tokens = n_tokens - t < most_tokens ? n_tokens - t : most_tokens;
    for (int64_t r = 0, rows = most / tokens / 4 * 4; r < n_rows; r += rows) {
      const Products of = {codes + r * row_bytes, x + t * x_stride, lanes, row_bytes, x_stride, tokens, 0, 0};
      fp32_rows<F>(of, n_rows - r < rows ? n_rows - r : rows, w->cols, y + t * stride + r, stride);
    }
  }
}

static void rows_fp32(const v4k_matrix *w, int64_t row0, int64_t n_rows, const float *x, int64_t x_stride,
                      int64_t n_tokens, float *y, int64_t stride) {
  if (w->format == V4K_BF16) return rows_fp32_of<V4K_BF16>(w, row0, n_rows, x, x_stride, n_tokens, y, stride);
  rows_fp32_of<V4K_F32>(w, row0, n_rows, x, x_stride, n_tokens, y, stride);
}

static float sum_squares(const float *x, int64_t n) {
  Wide acc[PARTS];
  for (int c = 0; c < PARTS; ++c) acc[c] = splat_wide(0);
  const int64_t whole = n / STEP * STEP;
  for (int64_t i = 0; i < whole; i += STEP)
    for (int c = 0; c < PARTS; ++c) {
      const Wide v = load_wide(x + i + c * WIDE);
      acc[c] = fma(v, v, acc[c]);
    }
  float lanes[STEP];
  for (int c = 0; c < PARTS; ++c) store_wide(lanes + c * WIDE, acc[c]);
  for (int64_t i = whole; i < n; i += 8) {
    const Lanes v = load(x + i);
    store(lanes + i - whole, fma(v, v, load(lanes + i - whole)));
  }
  return total(folded(lanes));
}

static void rms_norm(const float *x, const float *weight, int64_t n, float eps, float *y) {
  const Lanes factor = splat(1.0f / __builtin_sqrtf(sum_squares(x, n) / (float)n + eps));
  for (int64_t i = 0; i < n; i += 8) {
    const Lanes v = mul(load(x + i), factor);
    store(y + i, weight ? mul(v, load(weight + i)) : v);
  }
}

// x = op(x) for n values.
template <class Op>
static inline void map(float *x, int64_t n, Op op) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) store(x + i, op(load(x + i)));
  if (i == n) return;
  float rest[8] = {0};
  __builtin_memcpy(rest, x + i, (n - i) * sizeof(float));
  store(rest, op(load(rest)));
  __builtin_memcpy(x + i, rest, (n - i) * sizeof(float));
}

static void exponentials(float *x, int64_t n) {
  map(x, n, [](const Lanes &v) { return exp_lanes(v); });
}

static void sqrt_softplus(float *x, int64_t n) {
  map(x, n, [](const Lanes &v) { return sqrt_softplus_lanes(v); });
}

static void swiglu(const float *gate, const float *up, int64_t n, float weight, float limit, float *z) {
  const Lanes high = splat(limit), low = splat(-limit), one = splat(1.0f), factor = splat(weight);
  for (int64_t i = 0; i < n; i += 8) {
    const Lanes g = min(high, load(gate + i)), u = max(low, min(high, load(up + i)));
    const Lanes silu = div(g, add(one, exp_lanes(sub(zero(), g))));
    store(z + i, mul(mul(silu, u), factor));
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
