// What the AVX2 and AVX-512 tiers share, in AVX2 and FMA intrinsics. Included inside the tier's namespace, after
// TILE_ROWS (a multiple of 8), UNSIGNED8, steps<F>() and behind<F>() (tiles.inl). With UNSIGNED8 panels hold INT8 codes + 128,
// and levels of Q3 and Q2 times multiplier + 128. If not, INT8 codes as int16, and of Q3 and Q2 level + 16, quads of two
// inputs of one run and two of the other, and behind them in each dword the multipliers of both.

#include "row.inl"

struct Lanes {
  __m256 v;
};

static inline Lanes zero() { return Lanes{_mm256_setzero_ps()}; }

static inline Lanes load(const float *p) { return Lanes{_mm256_loadu_ps(p)}; }
static inline void store(float *p, Lanes a) { _mm256_storeu_ps(p, a.v); }
static inline Lanes splat(float x) { return Lanes{_mm256_set1_ps(x)}; }
static inline Lanes add(Lanes a, Lanes b) { return Lanes{_mm256_add_ps(a.v, b.v)}; }
static inline Lanes sub(Lanes a, Lanes b) { return Lanes{_mm256_sub_ps(a.v, b.v)}; }
static inline Lanes mul(Lanes a, Lanes b) { return Lanes{_mm256_mul_ps(a.v, b.v)}; }
static inline Lanes div(Lanes a, Lanes b) { return Lanes{_mm256_div_ps(a.v, b.v)}; }
static inline Lanes max(Lanes a, Lanes b) { return Lanes{_mm256_max_ps(a.v, b.v)}; }
static inline Lanes min(Lanes a, Lanes b) { return Lanes{_mm256_min_ps(a.v, b.v)}; }
static inline Lanes fma(Lanes a, Lanes b, Lanes c) { return Lanes{_mm256_fmadd_ps(a.v, b.v, c.v)}; }
static inline Lanes root(Lanes a) { return Lanes{_mm256_sqrt_ps(a.v)}; }

static inline Lanes choose(Lanes a, Lanes b, Lanes x, Lanes y) {
  return Lanes{_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}

static inline Lanes times_power(Lanes a, Lanes shifted) {
  const __m256i bits = _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23);
  return Lanes{_mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32(0x3f800000))))};
}

static inline Lanes load_bf16(const uint8_t *p) {
  return Lanes{_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16))};
}

static inline Lanes load_fp8(const uint8_t *p) {
  const __m256i b = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
  const __m256i sign = _mm256_and_si256(b, _mm256_set1_epi32(INT32_MIN));
  const __m256i rest = _mm256_slli_epi32(_mm256_and_si256(b, _mm256_set1_epi32(0x7f)), 20);
  return Lanes{_mm256_castsi256_ps(_mm256_or_si256(sign, rest))};
}

static inline float total(Lanes a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));  // l0+l4 .. l3+l7
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));                                             // + (l2+l6), + (l3+l7)
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

// total() of each of eight, as a tree of them all: 21 instructions.
static inline Lanes totals(const Lanes a[8]) {
  __m256 s[4], t[2];
  for (int k = 0; k < 4; ++k)
    s[k] = _mm256_add_ps(_mm256_permute2f128_ps(a[k].v, a[k + 4].v, 0x20),
                         _mm256_permute2f128_ps(a[k].v, a[k + 4].v, 0x31));
  for (int k = 0; k < 2; ++k) {
    const __m256d x = _mm256_castps_pd(s[2 * k]), y = _mm256_castps_pd(s[2 * k + 1]);
    t[k] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
  }
  return Lanes{_mm256_add_ps(_mm256_shuffle_ps(t[0], t[1], 0x88), _mm256_shuffle_ps(t[0], t[1], 0xdd))};
}

// 8 consecutive weight scales in fp32.
template <int F>
static inline __m256 scales8(const Row &w) {
  const uint8_t *scale = w.scale;
  if (V4K_FORMATS[F].scale == V4K_SCALE_RUNS) return _mm256_set1_ps(w.factor);
  if (V4K_FORMATS[F].scale == V4K_SCALE_E8M0) {
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)scale)), 23);
    return _mm256_castsi256_ps(_mm256_max_epi32(bits, _mm256_set1_epi32(0x400000)));  // byte 0 is 2^-127
  }
  const __m256i spread = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7, -1, -1, 8, 9, -1, -1,
                                          10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
  const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)scale));
  return _mm256_castsi256_ps(_mm256_shuffle_epi8(both, spread));
}

// Unsigned codes (code + Z) of 16 bytes per half, low or high nibbles already isolated.
template <int F>
static inline __m256i unsigned_codes(__m256i nibbles) {
  static_assert(F == V4K_FP4 || F == V4K_INT4 || F == V4K_INT8 || Format<F>::fours, "no decoding");  // these: dead code
  if (F == V4K_INT4) return nibbles;
  const __m256i table = _mm256_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0, 12, 13, 14, 15, 16,
                                         18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
  return _mm256_shuffle_epi8(table, nibbles);
}

// Levels of Q3 and Q2 plus 16 by nibble, for inputs 4i + v.
template <int F>
static inline __m256i levels(int v) {
  static constexpr v4k_levels table = v4k_levels_of(F, 16);
  return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table.of[v]));
}

// From the bytes of a part of Q3 or Q2 the levels plus 16 of inputs 4i + v; `n2` of Q3 in low nibbles.
template <int F>
static inline void four_levels(__m256i bytes, __m256i n2, __m256i c[4]) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i low = _mm256_and_si256(bytes, nibble), high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
  if (F == V4K_Q2) {
    const __m256i n[4] = {low, low, high, high};
    for (int v = 0; v < 4; ++v) c[v] = _mm256_shuffle_epi8(levels<F>(v), n[v]);
    return;
  }
  const __m256i bits = _mm256_or_si256(
      _mm256_and_si256(low, _mm256_set1_epi8(8)),
      _mm256_or_si256(_mm256_and_si256(high, _mm256_set1_epi8(4)), _mm256_and_si256(n2, _mm256_set1_epi8(2))));
  const __m256i n[4] = {low, high, n2, bits};
  for (int v = 0; v < 4; ++v) c[v] = _mm256_shuffle_epi8(levels<F>(v), n[v]);
}

// The multipliers of 8 groups, int8: of the runs of group 0, of group 1 ...
static inline __m128i multipliers(const uint8_t *scale) {
  const __m128i nibble = _mm_set1_epi8(15), pairs = _mm_loadl_epi64((const __m128i *)scale);
  const __m128i low = _mm_and_si128(pairs, nibble), high = _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble);
  return _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)V4K_MULTIPLIERS), _mm_unpacklo_epi8(low, high));
}

// -- packing -----------------------------------------------------------------------------------------------------

// 4 dwords of 8 rows, a[k] = row k in the low half and row k+4 in the high one -> d[j] = dword j of rows 0..7.
static inline void transpose_4x8(const __m256i a[4], __m256i d[4]) {
  const __m256i lo01 = _mm256_unpacklo_epi32(a[0], a[1]), hi01 = _mm256_unpackhi_epi32(a[0], a[1]);
  const __m256i lo23 = _mm256_unpacklo_epi32(a[2], a[3]), hi23 = _mm256_unpackhi_epi32(a[2], a[3]);
  d[0] = _mm256_unpacklo_epi64(lo01, lo23);
  d[1] = _mm256_unpackhi_epi64(lo01, lo23);
  d[2] = _mm256_unpacklo_epi64(hi01, hi23);
  d[3] = _mm256_unpackhi_epi64(hi01, hi23);
}

// Dwords of 8 rows, 4 of each from `at` bytes behind its start.
static inline void dwords(const uint8_t *const row[8], int64_t at, __m256i d[4]) {
  __m256i a[4];
  for (int k = 0; k < 4; ++k)
    a[k] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(row[k] + at))),
                                   _mm_loadu_si128((const __m128i *)(row[k + 4] + at)), 1);
  transpose_4x8(a, d);
}

// 8 dwords of 8 rows, a[k] = row k -> a[j] = dword j of rows 0..7.
static inline void transpose_8x8(__m256i a[8]) {
  __m256i low[4], high[4], d[8];
  for (int k = 0; k < 4; ++k) {
    low[k] = _mm256_permute2x128_si256(a[k], a[k + 4], 0x20);
    high[k] = _mm256_permute2x128_si256(a[k], a[k + 4], 0x31);
  }
  transpose_4x8(low, d);
  transpose_4x8(high, d + 4);
  for (int k = 0; k < 8; ++k) a[k] = d[k];
}

// Of signed bytes the even and the odd ones as int16.
static inline __m256i even_bytes(__m256i v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); }
static inline __m256i odd_bytes(__m256i v) { return _mm256_srai_epi16(v, 8); }

// One group of 8 rows, `at` bytes behind their start, into its quads of a panel of R rows.
template <int F, int R>
static inline void pack_group(const uint8_t *const row[8], int64_t at, uint8_t *panel) {
  const __m256i low_nibble = _mm256_set1_epi8(15);
  for (int half = 0; half < (F == V4K_INT8 ? 2 : 1); ++half) {
    __m256i d[4];
    dwords(row, at + 16 * half, d);
    for (int j = 0; j < 4; ++j) {
      __m256i *to = (__m256i *)(panel + (4 * half + j) * R * 4);
      if (F == V4K_INT8 && UNSIGNED8) {
        _mm256_store_si256(to, _mm256_xor_si256(d[j], _mm256_set1_epi8(-128)));
      } else if (F == V4K_INT8) {
        _mm256_store_si256(to, even_bytes(d[j]));
        _mm256_store_si256(to + R, odd_bytes(d[j]));
      } else {
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(d[j], 4), low_nibble);
        _mm256_store_si256(to, unsigned_codes<F>(_mm256_and_si256(d[j], low_nibble)));
        _mm256_store_si256(to + R / 2, unsigned_codes<F>(high));
      }
    }
  }
}

// n_groups groups of R rows, of which there are `rows`, to panel [group][dword 8][row] of 4 codes.
template <int F, int R>
static void pack_codes(const uint8_t *codes, int64_t row_bytes, int rows, int n_groups, uint8_t *panel) {
  for (int r0 = 0; r0 < R; r0 += 8) {
    const uint8_t *row[8];
    for (int k = 0; k < 8; ++k) row[k] = codes + (r0 + k < rows ? r0 + k : rows - 1) * row_bytes;
    for (int g = 0; g < n_groups; ++g)
      pack_group<F, R>(row, g * V4K_FORMATS[F].info.code_bytes, panel + (g * 8 * R + r0) * 4);
  }
}

// Bytes (level + 16) times the multiplier that their half of a dword holds: plus 128.
static inline __m256i multiplied(__m256i codes, __m256i multiplier) {
  const __m256i low_byte = _mm256_set1_epi16(0xff);
  const __m256i each = _mm256_and_si256(multiplier, low_byte);  // of a pair the even byte only is multiplied
  const __m256i even = _mm256_maddubs_epi16(codes, each), odd = _mm256_maddubs_epi16(codes, _mm256_slli_epi16(each, 8));
  const __m256i products = _mm256_or_si256(_mm256_and_si256(even, low_byte), _mm256_slli_epi16(odd, 8));
  const __m256i sixteen = _mm256_slli_epi16(_mm256_or_si256(each, _mm256_slli_epi16(each, 8)), 4);
  const __m256i excess = _mm256_and_si256(sixteen, _mm256_set1_epi8(-16));  // 16 * multiplier, modulo 256
  return _mm256_xor_si256(_mm256_sub_epi8(products, excess), _mm256_set1_epi8(-128));
}

// One group of Q3 or Q2 of 8 rows: `runs` the code bytes of both runs, n2 of Q3, `multipliers` of both in each dword.
template <int F>
static inline void pack_runs(const __m256i runs[2], __m256i n2, __m256i multipliers, uint8_t *panel) {
  const __m256i nibble = _mm256_set1_epi8(15);
  __m256i of[2][2] = {{runs[0], runs[1]}, {_mm256_and_si256(n2, nibble), _mm256_and_si256(_mm256_srli_epi16(n2, 4), nibble)}};
  for (int k = 0; k < 2 && !UNSIGNED8; ++k) {  // two inputs of each run
    const __m256i first = _mm256_blend_epi16(of[k][0], _mm256_slli_epi32(of[k][1], 16), 0xaa);
    of[k][1] = _mm256_blend_epi16(_mm256_srli_epi32(of[k][0], 16), of[k][1], 0xaa);
    of[k][0] = first;
  }
  const __m256i both[2] = {_mm256_shufflehi_epi16(_mm256_shufflelo_epi16(multipliers, 0xa0), 0xa0),
                           _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(multipliers, 0xf5), 0xf5)};
  for (int half = 0; half < 2; ++half) {
    __m256i c[4];
    four_levels<F>(of[0][half], of[1][half], c);
    for (int v = 0; v < 4; ++v)
      _mm256_store_si256((__m256i *)(panel + (2 * v + half) * TILE_ROWS * 4),
                         UNSIGNED8 ? multiplied(c[v], both[half]) : c[v]);
  }
  if (!UNSIGNED8) _mm256_store_si256((__m256i *)(panel + steps<F>() * TILE_ROWS * 4), multipliers);
}

// Q3 and Q2: 8 groups of 8 rows to their quads of the panel.
template <int F>
static inline void pack_fours(const Row w[8], uint8_t *panel) {
  const uint8_t *codes[8], *second[8];
  __m256i m[8], runs[8], n2[4] = {};
  for (int k = 0; k < 8; ++k) {
    codes[k] = w[k].codes, second[k] = w[k].second;
    m[k] = _mm256_cvtepi8_epi16(multipliers(w[k].scale));
  }
  transpose_8x8(m);
  for (int g = 0; g < V4K_BLOCK; g += 4) {
    dwords(codes, g * 8, runs);
    dwords(codes, g * 8 + 16, runs + 4);
    if (F == V4K_Q3) dwords(second, g * 4, n2);
    for (int k = 0; k < 4; ++k)
      pack_runs<F>(runs + 2 * k, n2[k], m[g + k], panel + (g + k) * (steps<F>() + behind<F>()) * TILE_ROWS * 4);
  }
}

// Scales of 8 rows by 8 groups as fp32 [group][row], TILE_ROWS of them apart.
template <int F>
static inline void pack_scales(const Row w[8], float *scales) {
  __m256i s[8];
  for (int k = 0; k < 8; ++k) s[k] = _mm256_castps_si256(scales8<F>(w[k]));
  transpose_8x8(s);
  for (int g = 0; g < V4K_BLOCK; ++g) _mm256_store_si256((__m256i *)(scales + g * TILE_ROWS), s[g]);
}

// Up to 8 groups of a matrix from row0 and group g0 on; rows past the last repeat it.
template <int F>
static void pack(const v4k_matrix *w, int64_t row0, int rows, int64_t g0, int n_groups, uint8_t *panel,
                 float *scales) {
  for (int r0 = 0; r0 < TILE_ROWS; r0 += 8, panel += 8 * 4, scales += 8) {
    Row eight[8];
    Padded copies[8];
    const uint8_t *codes[8];
    for (int k = 0; k < 8; ++k) {
      eight[k] = from_group<F>(row_at<F>(w, row0 + (r0 + k < rows ? r0 + k : rows - 1)), g0);
      if (n_groups < V4K_BLOCK) eight[k] = padded<F>(eight[k], n_groups, copies + k);
      codes[k] = eight[k].codes;
      for (int ahead = 0; ahead < V4K_BLOCK * Format<F>::first_bytes; ahead += 64)  // of the next block: rows are far apart
        __builtin_prefetch(codes[k] + V4K_BLOCK * Format<F>::first_bytes + ahead);
    }
    pack_scales<F>(eight, scales);
    if constexpr (Format<F>::fours)
      pack_fours<F>(eight, panel);
    else
      for (int g = 0; g < n_groups; ++g)
        pack_group<F, TILE_ROWS>(codes, g * Format<F>::code_bytes, panel + g * steps<F>() * TILE_ROWS * 4);
  }
}

// -- activations -------------------------------------------------------------------------------------------------

static inline int32_t sum8(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

// Scale and 32 codes of one group.
static inline __m256i quantize_group(const float *x, float *scale) {
  const __m256 v[4] = {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8), _mm256_loadu_ps(x + 16), _mm256_loadu_ps(x + 24)};
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);  // as integers, so that NaN is the largest
  __m256i top = _mm256_setzero_si256();
  for (int k = 0; k < 4; ++k) top = _mm256_max_epi32(top, _mm256_and_si256(_mm256_castps_si256(v[k]), magnitude));
  __m128i peak = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
  peak = _mm_max_epi32(peak, _mm_shuffle_epi32(peak, 0x4e));
  peak = _mm_max_epi32(peak, _mm_shuffle_epi32(peak, 0xb1));
  if (_mm_cvtsi128_si32(peak) >= 0x7f800000) {
    *scale = __builtin_nanf("");
    return _mm256_setzero_si256();
  }
  const float tight = _mm_cvtss_f32(_mm_castsi128_ps(peak)) / 127.0f;
  *scale = tight > 0x1p-120f ? tight : 0x1p-120f;
  const __m256 s = _mm256_set1_ps(*scale);
  __m256i i[4];
  for (int k = 0; k < 4; ++k) i[k] = _mm256_cvtps_epi32(_mm256_div_ps(v[k], s));
  const __m256i q = _mm256_packs_epi16(_mm256_packs_epi32(i[0], i[1]), _mm256_packs_epi32(i[2], i[3]));
  return _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// One group: inputs 4i + v to out + 64 v + i.
static inline void fours(__m256i q, int8_t *out) {
  const __m256i apart = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9, 13, 2,
                                         6, 10, 14, 3, 7, 11, 15);
  q = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(q, apart), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  alignas(32) int8_t v[32];
  _mm256_store_si256((__m256i *)v, q);
  for (int k = 0; k < 4; ++k) __builtin_memcpy(out + 64 * k, v + 8 * k, 8);
}

static void quantize(const float *x, int64_t first, int64_t n, int64_t format, v4k_acts row) {
  const __m256i ones = _mm256_set1_epi8(1);
  const __m256i split = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10, 12,
                                         14, 1, 3, 5, 7, 9, 11, 13, 15);
  const v4k_format_entry &f = V4K_FORMATS[format];
  for (int64_t g = first; g < first + n; ++g, x += V4K_GROUP) {
    __m256i q = quantize_group(x, row.scale + g);
    if (f.order == V4K_FOURS) {
      fours(q, row.q + (g / 8) * 256 + (g % 8) * 8);
      const __m256i pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, q), _mm256_set1_epi16(1));
      __m256i s = _mm256_add_epi32(pairs, _mm256_shuffle_epi32(pairs, 0x4e));
      s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));  // inputs 0 to 15 in the low half
      const int low = -f.zero * _mm256_extract_epi32(s, 0), high = -f.zero * _mm256_extract_epi32(s, 4);
      row.offset[g] = (int32_t)((uint32_t)high << 16 | ((uint32_t)low & 0xffff));
      continue;
    }
    if (f.order == V4K_NATURAL) {
      row.offset[g] = -f.zero * sum8(_mm256_madd_epi16(_mm256_maddubs_epi16(ones, q), _mm256_set1_epi16(1)));
      _mm256_storeu_si256((__m256i *)(row.q + g * V4K_GROUP), q);
      continue;
    }
    q = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(q, split), 0xd8);  // 16 even inputs, 16 odd ones
    int8_t *even = row.q + (g / 4) * 128 + (g % 4) * 16;
    _mm_storeu_si128((__m128i *)even, _mm256_castsi256_si128(q));
    _mm_storeu_si128((__m128i *)(even + 64), _mm256_extracti128_si256(q, 1));
    const __m256i pairs = _mm256_maddubs_epi16(ones, q);
    __m128i s = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 0xb1));
    row.offset[g] = _mm_cvtsi128_si32(_mm_mullo_epi16(s, _mm_set1_epi16(static_cast<short>(-f.zero))));
    if (f.doubled) row.scale[g] *= 0.5f;
  }
}

static uint64_t read(const void *data, int64_t bytes) {
  const __m256i *p = (const __m256i *)data;
  __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  for (int64_t i = 0; i < bytes / 32; i += 4)
    for (int k = 0; k < 4; ++k) sum[k] = _mm256_add_epi64(sum[k], _mm256_loadu_si256(p + i + k));
  const __m256i all = _mm256_add_epi64(_mm256_add_epi64(sum[0], sum[1]), _mm256_add_epi64(sum[2], sum[3]));
  const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  return (uint64_t)_mm_cvtsi128_si64(two) + (uint64_t)_mm_extract_epi64(two, 1);
}
