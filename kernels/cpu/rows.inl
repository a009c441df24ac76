// The loops every ISA tier shares. Included inside the tier's own namespace, after it has defined
//
//   Lanes, zero(), total()     eight fp32 partial sums of one output, and their sum in the order of v4k.h
//   block<F>(...)              adds 8 groups of one row (row.inl) times one token to the lanes
//
// so that each tier instantiates them for itself: nothing here has external linkage.

static const int FETCH_AHEAD = 2048;  // bytes of codes: the machine's own prefetchers stop at the end of a page

// The last, partial block of a row: inputs and their scales are padded with zeros, so it may run on into the rows behind,
// unless the matrix ends there (`inside` false), and the file with it.
template <int F>
static inline Lanes last_block(const Row &w, int64_t n_groups, bool inside, const int8_t *q, const float *xs,
                               const int32_t *offset, Lanes acc) {
  if (inside) return block<F>(w, q, xs, offset, acc);
  Padded copy;
  return block<F>(padded<F>(w, n_groups, &copy), q, xs, offset, acc);
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
template <int F>
static void by_tiles(const v4k_matrix *w, int64_t row0, int64_t n_rows, const v4k_acts *x, const int32_t *tokens,
                     int64_t n_tokens, float *y, int64_t stride);
#endif

template <int F>
static void rows_of(const v4k_matrix *w, int64_t row0, int64_t n_rows, const v4k_acts *x, const int32_t *tokens,
                    int64_t n_tokens, float *y, int64_t stride) {
#ifdef V4K_HAS_TILES
  const int packing = steps<F>() > 8 ? 3 : 2;  // tokens that take as long
  if (n_tokens > packing) return by_tiles<F>(w, row0, n_rows, x, tokens, n_tokens, y, stride);
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
