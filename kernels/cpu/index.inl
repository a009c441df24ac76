// Index scores, the same in every tier. Included inside the tier's namespace, after it has defined
//
//   KEY_ROWS, INDEX_HEADS         keys and heads of a register tile
//   above(a, b)                   a bit for each of WIDE keys (fused.inl has Wide)
//   Quads, load_quads, splat_quads  four codes of each of WIDE keys; four of a query for all of them
//   Dots, no_dots, add_dots<F>    integer sums of their products
//   from_dots(dots, offset)       Wide, adding the offset of a query where codes are unsigned
//   pack_codes<F, R>              codes [group][dword 8][key] of R keys
//
// A panel holds the codes of 64 keys, KEY_ROWS at a time, then their scales in fp32, [group][key] of each KEY_ROWS.

static const int KEY_VECTORS = KEY_ROWS / WIDE;

// Scale bytes of `rows` keys as fp32 [group][key], of KEY_ROWS keys.
static inline void key_scales(const uint8_t *scales, int rows, int64_t groups, float *out) {
  for (int64_t g0 = 0; g0 < groups; g0 += 4) {
    uint32_t bytes[KEY_ROWS], bits[KEY_ROWS];
    for (int r = 0; r < KEY_ROWS; ++r) {
      const uint8_t *s = scales + (r < rows ? r : rows - 1) * groups + g0;
      if (groups >= 4)
        __builtin_memcpy(bytes + r, s, 4);
      else
        bytes[r] = s[0] | s[groups - 1] << 8;
    }
    for (int g = 0; g < 4 && g0 + g < groups; ++g) {
      for (int r = 0; r < KEY_ROWS; ++r) {
        bits[r] = (bytes[r] >> 8 * g & 255) << 23;
        bits[r] = bits[r] > 0x400000 ? bits[r] : 0x400000;  // byte 0 is 2^-127
      }
      __builtin_memcpy(out + (g0 + g) * KEY_ROWS, bits, sizeof bits);
    }
  }
}

static void index_panel(const uint8_t *codes, const uint8_t *scales, int64_t n_keys, int64_t dims, uint8_t *panel) {
  const int64_t groups = dims / V4K_GROUP;
  for (int64_t first = 0; first < V4K_PANEL_KEYS; first += KEY_ROWS) {
    const int64_t at = first < n_keys ? first : n_keys - 1;
    const int rows = n_keys - at < KEY_ROWS ? (int)(n_keys - at) : KEY_ROWS;
    pack_codes<V4K_FP4, KEY_ROWS>(codes + at * dims / 2, dims / 2, rows, (int)groups, panel + first * dims);
    key_scales(scales + at * groups, rows, groups, (float *)(panel + V4K_PANEL_KEYS * dims) + first * groups);
  }
}

// A sum over heads as a balanced tree: where bit i of `count` is set, part[i] is a whole subtree of 2^i heads.
struct HeadSum {
  Wide part[V4K_HEAD_LEVELS][KEY_VECTORS];
  unsigned count;
};

// Adds a subtree of 2^level heads; those so far are whole ones of that size.
static inline void add_subtree(HeadSum *sum, int level, Wide term[KEY_VECTORS]) {
  const unsigned heads = 1u << level;
  for (; sum->count >> level & 1; ++level)
    for (int k = 0; k < KEY_VECTORS; ++k) term[k] = add(sum->part[level][k], term[k]);
  for (int k = 0; k < KEY_VECTORS; ++k) sum->part[level][k] = term[k];
  sum->count += heads;
}

// start + the sum of what there is so far: a subtree whose sibling is missing goes up as it is.
static inline void add_heads(const Wide start[KEY_VECTORS], const HeadSum *sum, Wide score[KEY_VECTORS]) {
  Wide all[KEY_VECTORS];
  for (int k = 0; k < KEY_VECTORS; ++k) all[k] = splat_wide(0);
  for (unsigned left = sum->count; left; left &= left - 1)
    for (int k = 0; k < KEY_VECTORS; ++k) all[k] = add(sum->part[__builtin_ctz(left)][k], all[k]);
  for (int k = 0; k < KEY_VECTORS; ++k) score[k] = add(start[k], all[k]);
}

// R heads from h on times KEY_ROWS keys, added to their sums.
template <int R>
static inline void index_tile(const uint8_t *codes, const float *scales, int64_t groups, const v4k_index_query *query,
                              int64_t h, HeadSum *heads) {
  const int8_t *q = query->q + h * groups * V4K_GROUP;
  const float *q_scale = query->scale + h * groups;
  const int32_t *offset = query->offset + h * groups;
  Wide sum[R][KEY_VECTORS];
  for (int r = 0; r < R; ++r)
    for (int k = 0; k < KEY_VECTORS; ++k) sum[r][k] = splat_wide(0);
  for (int64_t g = 0; g < groups; ++g, codes += V4K_GROUP * KEY_ROWS) {
    Dots dots[R][KEY_VECTORS];
    for (int r = 0; r < R; ++r)
      for (int k = 0; k < KEY_VECTORS; ++k) dots[r][k] = no_dots();
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      Quads quads[KEY_VECTORS];
      for (int k = 0; k < KEY_VECTORS; ++k) quads[k] = load_quads(codes + (j * KEY_ROWS + k * WIDE) * 4);
      for (int r = 0; r < R; ++r) {
        const Quads four = splat_quads(q + (r * groups + g) * V4K_GROUP + 4 * j);
        for (int k = 0; k < KEY_VECTORS; ++k) dots[r][k] = add_dots<V4K_FP4>(dots[r][k], quads[k], four);
      }
    }
    for (int k = 0; k < KEY_VECTORS; ++k) {
      const Wide scale = load_wide(scales + g * KEY_ROWS + k * WIDE);
      for (int r = 0; r < R; ++r)
        sum[r][k] = fma(from_dots(dots[r][k], offset[r * groups + g]),
                        mul(scale, splat_wide(q_scale[r * groups + g])), sum[r][k]);
    }
  }
  for (int r = 0; r < R; ++r) {
    const Wide weight = splat_wide(query->weight[h + r]);
    for (int k = 0; k < KEY_VECTORS; ++k) sum[r][k] = mul(weight, max(sum[r][k], splat_wide(0)));
  }
  if constexpr (R == 4) {  // tiles of four come first
    for (int k = 0; k < KEY_VECTORS; ++k) sum[0][k] = add(add(sum[0][k], sum[1][k]), add(sum[2][k], sum[3][k]));
    return add_subtree(heads, 2, sum[0]);
  }
  for (int r = 0; r < R; ++r) add_subtree(heads, 0, sum[r]);
}

// Heads [h, last), R at a time.
template <int R>
static inline void index_heads(const uint8_t *codes, const float *scales, int64_t groups, const v4k_index_query *query,
                               int64_t h, int64_t last, HeadSum *sum) {
  for (; h + R <= last; h += R) index_tile<R>(codes, scales, groups, query, h, sum);
  if constexpr (R > 1) index_heads<R - 1>(codes, scales, groups, query, h, last, sum);
}

static inline uint64_t bits_above(const Wide score[KEY_VECTORS], float least) {
  uint64_t bits = 0;
  for (int k = 0; k < KEY_VECTORS; ++k) bits |= (uint64_t)above(score[k], splat_wide(least)) << k * WIDE;
  return bits;
}

static uint64_t index_scores(const uint8_t *panel, int64_t dims, const v4k_index_query *query, float least,
                             float *out) {
  const int64_t groups = dims / V4K_GROUP, raising = query->raising, heads = query->heads;
  const float *scales = (const float *)(panel + V4K_PANEL_KEYS * dims);
  uint64_t bits = 0;
  for (int64_t first = 0; first < V4K_PANEL_KEYS; first += KEY_ROWS) {
    const uint8_t *codes = panel + first * dims;
    Wide none[KEY_VECTORS], raised[KEY_VECTORS], score[KEY_VECTORS];
    for (int k = 0; k < KEY_VECTORS; ++k) none[k] = splat_wide(0);
    HeadSum up, down;
    up.count = down.count = 0;
    index_heads<INDEX_HEADS>(codes, scales + first * groups, groups, query, 0, raising, &up);
    add_heads(none, &up, raised);
    for (int k = 0; k < KEY_VECTORS; ++k) score[k] = raised[k];
    uint64_t some = bits_above(score, least);
    for (int64_t h = raising; some && h < heads; h += INDEX_HEADS) {  // rounding is monotonic: these can only lower it
      const int64_t stop = h + INDEX_HEADS < heads ? h + INDEX_HEADS : heads;
      index_heads<INDEX_HEADS>(codes, scales + first * groups, groups, query, h, stop, &down);
      add_heads(raised, &down, score);
      some = bits_above(score, least);
    }
    for (int k = 0; k < KEY_VECTORS; ++k) store_wide(out + first + k * WIDE, score[k]);
    bits |= some << first;
  }
  return bits;
}
