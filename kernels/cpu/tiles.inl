// Many tokens times many rows: one micro-kernel for all formats. Included inside the tier's namespace, behind fused.inl
// (Wide), after the tier has defined
//
//   TILE_ROWS, TILE_TOKENS    shape of a register tile; rows are a multiple of WIDE
//   pack<F>()                 8 groups of TILE_ROWS rows, or fewer at the end, to a panel [group][quad][row] and scales
//                             [group][row] as fp32. A quad is four codes of a row, as int8, or two as int16
//   steps<F>(), behind<F>()   quads of a group that are multiplied, and those behind them that product() reads
//   in_order<F>()             a block of q, in the order that follows from that of inputs (tier.h) unless a quad holds int16
//   Quads, load_quads(), splat_quads()  a quad of each of WIDE rows; one of a token, for all of them
//   Dots, first_dots<F>(), add_dots<F>(), product<F>()  integer sums: at the start, with a quad more, and as Wide
//
// A panel is unpacked once and multiplied with every token of a block, so what a format costs beyond its quads is paid
// once per block.

static const int TILE_VECTORS = TILE_ROWS / WIDE;
static const int ACC = V4K_BLOCK * TILE_ROWS;  // floats of one token's accumulators: [lane][row]
static const int MOST_QUADS = 16;              // of a row and group, those behind included

// Pointers of up to TILE_TOKENS tokens, at the first group of a block.
struct Tokens {
  const int8_t *q[TILE_TOKENS];
  const float *scale[TILE_TOKENS];
  const int32_t *offset[TILE_TOKENS];
  float *acc[TILE_TOKENS];
};

// Bytes from a block's start in q to group g, and from there to the input of the group's j-th quad.
template <int F>
static inline int group_at(int g) {
  if (Format<F>::fours) return g * 8;
  return V4K_FORMATS[F].order == V4K_NATURAL ? g * steps<F>() * 4 : (g >> 2) * 128 + (g & 3) * 16;
}

template <int F>
static inline int quad_at(int j) {
  if (Format<F>::fours) return (j >> 1) * 64 + (j & 1) * 4;
  return V4K_FORMATS[F].order == V4K_NATURAL ? j * 4 : (j & 3) * 4 + (j >> 2) * 64;
}

// Integer sums of group g: TILE_ROWS rows by T tokens.
template <int F, int T>
static inline void products(const uint8_t *panel, int g, const Tokens &x, Dots d[T][TILE_VECTORS]);

#ifndef V4K_OWN_PRODUCTS
template <int F, int T>
static inline void products(const uint8_t *panel, int g, const Tokens &x, Dots d[T][TILE_VECTORS]) {
  const int8_t *q[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    q[t] = x.q[t] + group_at<F>(g);
    const Dots first = first_dots<F>(x.offset[t] + g);
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; ++v) d[t][v] = first;
  }
  constexpr int quads = steps<F>();
#pragma GCC unroll 16
  for (int j = 0; j < quads; ++j) {
    Quads w[TILE_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; ++v) w[v] = load_quads(panel + (j * TILE_ROWS + v * WIDE) * 4);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const Quads four = splat_quads(q[t] + quad_at<F>(j));
#pragma GCC unroll 4
      for (int v = 0; v < TILE_VECTORS; ++v) d[t][v] = add_dots<F>(d[t][v], w[v], four);
    }
  }
}
#endif

template <int F, int T>
static void tile(const uint8_t *panel, const float *scales, int n_groups, const Tokens &x) {
  for (int g = 0; g < n_groups; ++g, panel += (steps<F>() + behind<F>()) * TILE_ROWS * 4, scales += TILE_ROWS) {
    Dots d[T][TILE_VECTORS];
    products<F, T>(panel, g, x, d);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const Wide scale = splat_wide(x.scale[t][g]);
      float *acc = x.acc[t] + g * TILE_ROWS;
#pragma GCC unroll 4
      for (int v = 0; v < TILE_VECTORS; ++v, acc += WIDE) {
        const Wide sum = product<F>(d[t][v], panel + (steps<F>() * TILE_ROWS + v * WIDE) * 4);
        store_wide(acc, fma(sum, mul(load_wide(scales + v * WIDE), scale), load_wide(acc)));
      }
    }
  }
}

// Tokens lie too far apart for the machine's own prefetchers.
static inline void fetch_token(const v4k_acts *x, int64_t token, int64_t g0) {
  const int64_t at = token * x->groups + g0;
  for (int line = 0; line < V4K_BLOCK * V4K_GROUP; line += 64) __builtin_prefetch(x->q + at * V4K_GROUP + line);
  __builtin_prefetch(x->scale + at);
  __builtin_prefetch(x->offset + at);
}

// A panel times tokens first .. first + n - 1 of x or of `tokens`, T at a time, whose accumulators start at acc.
template <int F, int T>
static inline void panel_times(const uint8_t *panel, const float *scales, int64_t g0, int n_groups, const v4k_acts *x,
                               const int32_t *tokens, int64_t first, int64_t n, float *acc) {
  alignas(64) int8_t ordered[T][V4K_BLOCK * V4K_GROUP * 2];
  int64_t i = 0;
  for (; i + T <= n; i += T) {
    Tokens t;
#pragma GCC unroll 4
    for (int k = 0; k < T; ++k) {
      const int64_t token = tokens ? tokens[first + i + k] : first + i + k, at = token * x->groups + g0;
      t.q[k] = in_order<F>(x->q + at * V4K_GROUP, ordered[k]);
      t.scale[k] = x->scale + at;
      t.offset[k] = x->offset + at;
      t.acc[k] = acc + (i + k) * ACC;
    }
    for (int64_t k = i + T; k < i + 2 * T && k < n; ++k) fetch_token(x, tokens ? tokens[first + k] : first + k, g0);
    tile<F, T>(panel, scales, n_groups, t);
  }
  if constexpr (T > 1)
    if (i < n) panel_times<F, T - 1>(panel, scales, g0, n_groups, x, tokens, first + i, n - i, acc + i * ACC);
}

// The outputs of `rows` rows from a token's accumulators.
static inline void sum_lanes(const float *acc, int rows, float *y) {
  alignas(64) float sums[TILE_ROWS];
  for (int r = 0; r < TILE_ROWS; r += WIDE) {
    Wide a[V4K_BLOCK];
    for (int g = 0; g < V4K_BLOCK; ++g) a[g] = load_wide(acc + g * TILE_ROWS + r);
    store_wide(sums + r, add(add(add(a[0], a[4]), add(a[2], a[6])), add(add(a[1], a[5]), add(a[3], a[7]))));
  }
  __builtin_memcpy(y, sums, rows * sizeof(float));
}

template <int F>
static void by_tiles(const v4k_matrix *w, int64_t row0, int64_t n_rows, const v4k_acts *x, const int32_t *tokens,
                     int64_t n_tokens, float *y, int64_t stride) {
  static_assert(steps<F>() + behind<F>() <= MOST_QUADS, "a panel has no room for this format");
  alignas(64) float acc[V4K_TOKEN_BLOCK * ACC];
  alignas(64) uint8_t panel[V4K_BLOCK * MOST_QUADS * 4 * TILE_ROWS];
  alignas(64) float scales[V4K_BLOCK * TILE_ROWS];
  const int64_t groups = w->cols / V4K_GROUP;
  for (int64_t r0 = 0; r0 < n_rows; r0 += TILE_ROWS) {
    const int rows = n_rows - r0 < TILE_ROWS ? (int)(n_rows - r0) : TILE_ROWS;
    for (int64_t first = 0; first < n_tokens; first += V4K_TOKEN_BLOCK) {
      const int64_t n = n_tokens - first < V4K_TOKEN_BLOCK ? n_tokens - first : V4K_TOKEN_BLOCK;
      __builtin_memset(acc, 0, n * ACC * sizeof(float));
      for (int64_t g0 = 0; g0 < groups; g0 += V4K_BLOCK) {
        const int n_groups = groups - g0 < V4K_BLOCK ? (int)(groups - g0) : V4K_BLOCK;
        pack<F>(w, row0 + r0, rows, g0, n_groups, panel, scales);
        panel_times<F, TILE_TOKENS>(panel, scales, g0, n_groups, x, tokens, first, n, acc);
      }
      for (int64_t i = 0; i < n; ++i) sum_lanes(acc + i * ACC, rows, y + (first + i) * stride + r0);
    }
  }
}
