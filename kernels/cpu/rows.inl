// The loops every ISA tier shares. Included inside the tier's own namespace, after it has defined
//
//   TILE_ROWS, TILE_TOKENS     shape of a register tile; TILE_ROWS 0: the tier has none
//   Lanes, zero(), total()     eight fp32 partial sums of one output, and their sum in the order of v4k.h
//   block<F>(...)              adds 8 groups of one row (row.inl) times one token to the lanes
//   pack<F>(...), tile<F, T>() codes of TILE_ROWS rows by 8 groups in tile order, PANEL_QUADS dwords of a row and group
//                              at most; that panel times T tokens
//
// so that each tier instantiates them for itself: nothing here has external linkage.

static const int FETCH_AHEAD = 2048;  // bytes of codes: the machine's own prefetchers stop at the end of a page

// The last, partial block of a row: inputs and their scales are padded with zeros, so it may run on into the rows behind,
// unless the matrix ends there (`inside` false), and the file with it.
template <int F>
static inline Lanes last_block(const Row &w, int64_t n_groups, bool inside, const int8_t *q, const float *xs,
                               const int32_t *offset, Lanes acc) {
  if (inside) return block<F>(w, q, xs, offset, acc);
  uint8_t codes[V4K_BLOCK * 32] = {0}, second[V4K_BLOCK * 4] = {0}, scale[V4K_BLOCK * 2] = {0};
  __builtin_memcpy(codes, w.codes, n_groups * Format<F>::first_bytes);
  __builtin_memcpy(second, w.second, n_groups * Format<F>::second_bytes);
  __builtin_memcpy(scale, w.scale, n_groups * Format<F>::scale_bytes);
  return block<F>(Row{codes, second, scale, w.factor}, q, xs, offset, acc);
}

// One output: a row of `groups` groups times one token. Fetches FETCH_AHEAD codes further on, in the rows behind.
template <int F>
static inline float dot(const Row &row, int64_t groups, bool inside, v4k_acts x) {
  const int cb = Format<F>::code_bytes, sb = Format<F>::scale_bytes;
  Lanes acc = zero();
  int64_t g = 0;
  for (; g + V4K_BLOCK <= groups; g += V4K_BLOCK) {
    const Row w = from_group<F>(row, g);
    for (int k = 0; k < V4K_BLOCK * Format<F>::first_bytes; k += 64) __builtin_prefetch(w.codes + FETCH_AHEAD + k);
    if (Format<F>::second_bytes) __builtin_prefetch(w.second + FETCH_AHEAD);
    __builtin_prefetch(w.scale + FETCH_AHEAD / cb * sb);
    acc = block<F>(w, x.q + g * V4K_GROUP, x.scale + g, x.offset + g, acc);
  }
  if (g < groups)
    acc = last_block<F>(from_group<F>(row, g), groups - g, inside, x.q + g * V4K_GROUP, x.scale + g, x.offset + g, acc);
  return total(acc);
}

// Few tokens: each row is read once, a block of rows stays in L1 for the next token. One row after the other, so that
// memory is read in one stream.
template <int F>
static void by_dots(const v4k_matrix *w, int64_t row0, int64_t n_rows, const v4k_acts *x, const int32_t *tokens,
                    int64_t n_tokens, float *y, int64_t stride) {
  const int64_t groups = w->cols / V4K_GROUP;
  for (int64_t r0 = 0; r0 < n_rows; r0 += 8) {
    const int64_t stop = r0 + 8 < n_rows ? r0 + 8 : n_rows;
    for (int64_t i = 0; i < n_tokens; ++i) {
      const int64_t token = tokens ? tokens[i] : i;
      const v4k_acts t = {x->q + token * x->groups * V4K_GROUP, x->scale + token * x->groups,
                          x->offset + token * x->groups, x->groups};
      for (int64_t r = r0; r < stop; ++r)
        y[i * stride + r] = dot<F>(row_at<F>(w, row0 + r), groups, (w->rows - 1 - row0 - r) * groups >= V4K_BLOCK, t);
    }
  }
}

#ifdef V4K_HAS_TILES
static const int ACC = V4K_BLOCK * TILE_ROWS;  // floats of one token's accumulators: [lane][row]

// Pointers of up to TILE_TOKENS tokens, at the first group of a block.
struct Tokens {
  const int8_t *q[TILE_TOKENS];
  const float *scale[TILE_TOKENS];
  const int32_t *offset[TILE_TOKENS];
  float *acc[TILE_TOKENS];
};

// Bytes from a block's start in q to the j-th dword (of 8) of its group g.
template <int F>
static inline int quad_at(int g, int j) {
  if (Format<F>::fours) return (j >> 1) * 64 + g * 8 + (j & 1) * 4;
  if (V4K_FORMATS[F].order == V4K_NATURAL) return g * V4K_GROUP + 4 * j;
  return (g >> 2) * 128 + (g & 3) * 16 + (j & 3) * 4 + (j >> 2) * 64;
}

template <int F, int T>
static void tile(const uint8_t *panel, const float *scales, int n_groups, const Tokens &x);

// A panel times n tokens, whose accumulators start at acc.
template <int F>
static void panel_times(const uint8_t *panel, const float *scales, int64_t g0, int n_groups, const v4k_acts *x,
                        const int32_t *tokens, int64_t first, int64_t n, float *acc) {
  for (int64_t i = 0; i < n; i += TILE_TOKENS) {
    const int count = n - i < TILE_TOKENS ? (int)(n - i) : TILE_TOKENS;
    Tokens t;
    for (int k = 0; k < count; ++k) {
      const int64_t token = tokens ? tokens[first + i + k] : first + i + k;
      t.q[k] = x->q + (token * x->groups + g0) * V4K_GROUP;
      t.scale[k] = x->scale + token * x->groups + g0;
      t.offset[k] = x->offset + token * x->groups + g0;
      t.acc[k] = acc + (i + k) * ACC;
    }
    switch (count) {
      case 1: tile<F, 1>(panel, scales, n_groups, t); break;
      case 2: tile<F, 2>(panel, scales, n_groups, t); break;
      case 3: tile<F, 3>(panel, scales, n_groups, t); break;
      default: tile<F, 4>(panel, scales, n_groups, t);
    }
  }
}

// Many tokens: 8 groups of TILE_ROWS rows are unpacked once and multiplied with every token of a block.
template <int F>
static void by_tiles(const v4k_matrix *w, int64_t row0, int64_t n_rows, const v4k_acts *x, const int32_t *tokens,
                     int64_t n_tokens, float *y, int64_t stride) {
  alignas(64) float acc[V4K_TOKEN_BLOCK * ACC];
  alignas(64) uint8_t panel[V4K_BLOCK * PANEL_QUADS * 4 * TILE_ROWS];
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
        panel_times<F>(panel, scales, g0, n_groups, x, tokens, first, n, acc);
      }
      for (int64_t i = 0; i < n; ++i) {
        const float *a = acc + i * ACC;
        for (int r = 0; r < rows; ++r, ++a)
          y[(first + i) * stride + r0 + r] =
              ((a[0] + a[4 * TILE_ROWS]) + (a[2 * TILE_ROWS] + a[6 * TILE_ROWS])) +
              ((a[1 * TILE_ROWS] + a[5 * TILE_ROWS]) + (a[3 * TILE_ROWS] + a[7 * TILE_ROWS]));
      }
    }
  }
}

// Scales of TILE_ROWS rows by n_groups groups as fp32 [group][row]; rows past the last repeat it.
template <int F>
static inline void pack_scales(const v4k_matrix *w, int64_t row0, int rows, int64_t g0, int n_groups, float *scales) {
  for (int r = 0; r < TILE_ROWS; ++r) {
    const Row w_r = from_group<F>(row_at<F>(w, row0 + (r < rows ? r : rows - 1)), g0);
    for (int g = 0; g < n_groups; ++g) scales[g * TILE_ROWS + r] = scale_of<F>(w_r, g);
  }
}
#endif

template <int F>
static void rows_of(const v4k_matrix *w, int64_t row0, int64_t n_rows, const v4k_acts *x, const int32_t *tokens,
                    int64_t n_tokens, float *y, int64_t stride) {
#ifdef V4K_HAS_TILES
  if (n_tokens > 2) return by_tiles<F>(w, row0, n_rows, x, tokens, n_tokens, y, stride);  // packing costs 2 tokens
#endif
  by_dots<F>(w, row0, n_rows, x, tokens, n_tokens, y, stride);
}

static void rows(const v4k_matrix *w, int64_t row0, int64_t n_rows, const v4k_acts *x, const int32_t *tokens,
                 int64_t n_tokens, float *y, int64_t stride) {
  switch (w->format) {
#define V4K_ROWS_OF(F) \
  case F: return rows_of<F>(w, row0, n_rows, x, tokens, n_tokens, y, stride);
    V4K_QUANTIZED(V4K_ROWS_OF)
#undef V4K_ROWS_OF
  }
  __builtin_trap();  // the callers have checked it (check.h)
}
