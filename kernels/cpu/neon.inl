// What the tiers of Arm processors have in common. Included inside a tier's namespace, behind arm_neon.h and tier.h.
// vdotq adds four signed byte products to each int32.

#define V4K_HAS_TILES

static const int TILE_ROWS = 8, TILE_TOKENS = 4, KEY_ROWS = 8;

template <int F>
static constexpr int steps() {
  return 8;
}

template <int F>
static constexpr int behind() {
  return 0;
}

#include "row.inl"

struct Lanes {
  float32x4_t low, high;
};

static inline Lanes zero() { return Lanes{vdupq_n_f32(0), vdupq_n_f32(0)}; }

static inline float total(Lanes a) {
  const float32x4_t s = vaddq_f32(a.low, a.high);
  const float32x2_t t = vadd_f32(vget_low_f32(s), vget_high_f32(s));
  return vget_lane_f32(t, 0) + vget_lane_f32(t, 1);
}

static inline Lanes load(const float *p) { return Lanes{vld1q_f32(p), vld1q_f32(p + 4)}; }

static inline void store(float *p, Lanes a) {
  vst1q_f32(p, a.low);
  vst1q_f32(p + 4, a.high);
}

static inline Lanes splat(float x) { return Lanes{vdupq_n_f32(x), vdupq_n_f32(x)}; }
static inline Lanes add(Lanes a, Lanes b) { return Lanes{vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
static inline Lanes sub(Lanes a, Lanes b) { return Lanes{vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
static inline Lanes mul(Lanes a, Lanes b) { return Lanes{vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
static inline Lanes div(Lanes a, Lanes b) { return Lanes{vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }

static inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  return Lanes{vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}

static inline Lanes max(Lanes a, Lanes b) {  // of NaN and a number b, as x86 has it
  return Lanes{vbslq_f32(vcgtq_f32(a.low, b.low), a.low, b.low), vbslq_f32(vcgtq_f32(a.high, b.high), a.high, b.high)};
}

static inline Lanes min(Lanes a, Lanes b) {
  return Lanes{vbslq_f32(vcltq_f32(a.low, b.low), a.low, b.low), vbslq_f32(vcltq_f32(a.high, b.high), a.high, b.high)};
}

static inline Lanes root(Lanes a) { return Lanes{vsqrtq_f32(a.low), vsqrtq_f32(a.high)}; }

static inline Lanes choose(Lanes a, Lanes b, Lanes x, Lanes y) {
  return Lanes{vbslq_f32(vcltq_f32(a.low, b.low), x.low, y.low), vbslq_f32(vcltq_f32(a.high, b.high), x.high, y.high)};
}

static inline float32x4_t power(float32x4_t shifted) {
  const uint32x4_t bits = vshlq_n_u32(vreinterpretq_u32_f32(shifted), 23);
  return vreinterpretq_f32_u32(vaddq_u32(bits, vdupq_n_u32(0x3f800000)));
}

static inline Lanes times_power(Lanes a, Lanes shifted) {
  return Lanes{vmulq_f32(a.low, power(shifted.low)), vmulq_f32(a.high, power(shifted.high))};
}

static inline Lanes load_bf16(const uint8_t *p) {
  const uint16x8_t v = vreinterpretq_u16_u8(vld1q_u8(p));
  return Lanes{vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16)),
               vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(v), 16))};
}

static inline Lanes load_fp8(const uint8_t *p) {
  const uint16x8_t v = vmovl_u8(vld1_u8(p));
  const uint16x8_t bits = vorrq_u16(vshlq_n_u16(vandq_u16(v, vdupq_n_u16(0x80)), 8),
                                    vshlq_n_u16(vandq_u16(v, vdupq_n_u16(0x7f)), 4));
  return Lanes{vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16)),
               vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(bits), 16))};
}

// 4 consecutive weight scales in fp32, from group g on.
template <int F>
static inline float32x4_t scales4(const Row &w, int g) {
  const uint8_t *scale = w.scale;
  if (V4K_FORMATS[F].scale == V4K_SCALE_RUNS) return vdupq_n_f32(w.factor);
  if (V4K_FORMATS[F].scale == V4K_SCALE_E8M0) {
    const uint32_t b[4] = {scale[g], scale[g + 1], scale[g + 2], scale[g + 3]};
    return vreinterpretq_f32_u32(vmaxq_u32(vshlq_n_u32(vld1q_u32(b), 23), vdupq_n_u32(0x400000)));
  }
  return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(scale + 2 * g)), 16));
}

template <int F>
static inline int8x16_t signed_codes(uint8x16_t nibbles) {
  static_assert(F == V4K_FP4 || F == V4K_INT4 || F == V4K_INT8 || Format<F>::fours, "no decoding");  // these: dead code
  if (F == V4K_INT4) return vsubq_s8(vreinterpretq_s8_u8(nibbles), vdupq_n_s8(8));
  const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  return vqtbl1q_s8(vld1q_s8(doubled), nibbles);
}

// Of 2 groups of Q3 or Q2 from g on the levels of inputs 4i + v.
template <int F>
static inline void four_levels(const Row &w, int g, int8x16_t c[4]) {
  static constexpr v4k_levels levels = v4k_levels_of(F, 0);
  const uint8x16_t bytes = vld1q_u8(w.codes + g * 8), low = vandq_u8(bytes, vdupq_n_u8(15)), high = vshrq_n_u8(bytes, 4);
  uint8x16_t n[4] = {low, low, high, high};
  if (F == V4K_Q3) {
    const uint8x8_t second = vld1_u8(w.second + g * 4);
    const uint32x2x2_t runs = vzip_u32(vreinterpret_u32_u8(vand_u8(second, vdup_n_u8(15))),
                                       vreinterpret_u32_u8(vshr_n_u8(second, 4)));
    n[1] = high;
    n[2] = vreinterpretq_u8_u32(vcombine_u32(runs.val[0], runs.val[1]));
    n[3] = vorrq_u8(vandq_u8(low, vdupq_n_u8(8)),
                    vorrq_u8(vandq_u8(high, vdupq_n_u8(4)), vandq_u8(n[2], vdupq_n_u8(2))));
  }
  for (int v = 0; v < 4; ++v) c[v] = vqtbl1q_s8(vld1q_s8(levels.of[v]), n[v]);
}

// The multipliers of 8 groups: of the runs of group 0, of group 1 ...
static inline int8x16_t multipliers(const uint8_t *scale) {
  const uint8x8_t pairs = vld1_u8(scale);
  const uint8x8x2_t runs = vzip_u8(vand_u8(pairs, vdup_n_u8(15)), vshr_n_u8(pairs, 4));
  return vqtbl1q_s8(vld1q_s8(V4K_MULTIPLIERS), vcombine_u8(runs.val[0], runs.val[1]));
}

// Dots of 8 groups of Q3 or Q2, times their multipliers.
template <int F>
static inline void fours_dots(const Row &w, const int8_t *q, int32x4_t out[2]) {
  const int8x16_t m = multipliers(w.scale);
  const int16x8_t wide[2] = {vmovl_s8(vget_low_s8(m)), vmovl_s8(vget_high_s8(m))};
  int32x4_t runs[4];
  for (int k = 0; k < 4; ++k) {
    int8x16_t c[4];
    four_levels<F>(w, 2 * k, c);
    int32x4_t d = vdupq_n_s32(0);
    for (int v = 0; v < 4; ++v) d = vdotq_s32(d, c[v], vld1q_s8(q + 64 * v + 16 * k));
    runs[k] = vmulq_s32(d, vmovl_s16(k % 2 ? vget_high_s16(wide[k / 2]) : vget_low_s16(wide[k / 2])));
  }
  for (int k = 0; k < 2; ++k) out[k] = vpaddq_s32(runs[2 * k], runs[2 * k + 1]);
}

// Four int32 partial sums of one group.
template <int F>
static inline int32x4_t group_dot(const uint8_t *codes, const int8_t *q, int g) {
  if (F == V4K_INT8) {
    const int8_t *w = (const int8_t *)codes + g * 32, *x = q + g * 32;
    return vdotq_s32(vdotq_s32(vdupq_n_s32(0), vld1q_s8(w), vld1q_s8(x)), vld1q_s8(w + 16), vld1q_s8(x + 16));
  }
  const uint8x16_t packed = vld1q_u8(codes + g * 16);
  const int8_t *even = q + (g / 4) * 128 + (g % 4) * 16;
  const int32x4_t d = vdotq_s32(vdupq_n_s32(0), signed_codes<F>(vandq_u8(packed, vdupq_n_u8(15))), vld1q_s8(even));
  return vdotq_s32(d, signed_codes<F>(vshrq_n_u8(packed, 4)), vld1q_s8(even + 64));
}

template <int F>
static inline Lanes block(const Row &w, const int8_t *q, const float *xs, const int32_t *, Lanes acc) {
  float32x4_t *half[2] = {&acc.low, &acc.high};
  const uint8_t *codes = w.codes;
  int32x4_t fours[2];
  if (Format<F>::fours) fours_dots<F>(w, q, fours);
  for (int k = 0; k < 2; ++k) {
    const int g = 4 * k;
    const float32x4_t s = vmulq_f32(scales4<F>(w, g), vld1q_f32(xs + g));
    if (Format<F>::fours) {
      *half[k] = vfmaq_f32(*half[k], vcvtq_f32_s32(fours[k]), s);
      continue;
    }
    const int32x4_t a = vpaddq_s32(group_dot<F>(codes, q, g), group_dot<F>(codes, q, g + 1));
    const int32x4_t b = vpaddq_s32(group_dot<F>(codes, q, g + 2), group_dot<F>(codes, q, g + 3));
    *half[k] = vfmaq_f32(*half[k], vcvtq_f32_s32(vpaddq_s32(a, b)), s);
  }
  return acc;
}

// 4 dwords of 4 rows -> d[j] = dword j of the rows.
static inline void transpose(const uint8x16_t a[4], uint8x16_t d[4]) {
  uint32x4_t r[4];
  for (int k = 0; k < 4; ++k) r[k] = vreinterpretq_u32_u8(a[k]);
  const uint64x2_t t0 = vreinterpretq_u64_u32(vtrn1q_u32(r[0], r[1]));
  const uint64x2_t t1 = vreinterpretq_u64_u32(vtrn2q_u32(r[0], r[1]));
  const uint64x2_t t2 = vreinterpretq_u64_u32(vtrn1q_u32(r[2], r[3]));
  const uint64x2_t t3 = vreinterpretq_u64_u32(vtrn2q_u32(r[2], r[3]));
  d[0] = vreinterpretq_u8_u64(vtrn1q_u64(t0, t2));
  d[1] = vreinterpretq_u8_u64(vtrn1q_u64(t1, t3));
  d[2] = vreinterpretq_u8_u64(vtrn2q_u64(t0, t2));
  d[3] = vreinterpretq_u8_u64(vtrn2q_u64(t1, t3));
}

// n_groups groups of R rows, of which there are `rows`, to panel [group][dword 8][row] of 4 signed codes.
template <int F, int R>
static void pack_codes(const uint8_t *codes, int64_t row_bytes, int rows, int n_groups, uint8_t *panel) {
  for (int r0 = 0; r0 < R; r0 += 4) {
    const uint8_t *row[4];
    for (int k = 0; k < 4; ++k) row[k] = codes + (r0 + k < rows ? r0 + k : rows - 1) * row_bytes;
    for (int part = 0; part < n_groups * (F == V4K_INT8 ? 2 : 1); ++part) {
      uint8x16_t a[4], d[4];
      for (int k = 0; k < 4; ++k) a[k] = vld1q_u8(row[k] + part * 16);
      transpose(a, d);
      for (int j = 0; j < 4; ++j) {
        if (F == V4K_INT8) {
          vst1q_u8(panel + ((part * 4 + j) * R + r0) * 4, d[j]);
          continue;
        }
        uint8_t *low = panel + ((part * 8 + j) * R + r0) * 4;
        vst1q_u8(low, vreinterpretq_u8_s8(signed_codes<F>(vandq_u8(d[j], vdupq_n_u8(15)))));
        vst1q_u8(low + 4 * R * 4, vreinterpretq_u8_s8(signed_codes<F>(vshrq_n_u8(d[j], 4))));
      }
    }
  }
}

// Q3 and Q2: n_groups groups of one row to its dwords of the panel, levels times multipliers.
template <int F>
static void pack_fours(Row w, int n_groups, uint8_t *panel) {
  for (int g = 0; g < n_groups; ++g) {
    uint8_t codes[16] = {0}, second[8] = {0}, scale[8] = {0};  // of 2 groups: there may be no other behind this one
    __builtin_memcpy(codes, w.codes + g * Format<F>::first_bytes, Format<F>::first_bytes);
    __builtin_memcpy(second, w.second + g * Format<F>::second_bytes, Format<F>::second_bytes);
    scale[0] = w.scale[g];
    int8x16_t c[4];
    four_levels<F>(Row{codes, second, scale, 0}, 0, c);
    const int8_t m0 = V4K_MULTIPLIERS[scale[0] & 15], m1 = V4K_MULTIPLIERS[scale[0] >> 4];
    const int8x8_t m = vreinterpret_s8_s32(vzip1_s32(vreinterpret_s32_s8(vdup_n_s8(m0)), vreinterpret_s32_s8(vdup_n_s8(m1))));
    for (int v = 0; v < 4; ++v) {
      int32_t runs[2];
      vst1_s32(runs, vreinterpret_s32_s8(vmul_s8(vget_low_s8(c[v]), m)));
      for (int run = 0; run < 2; ++run)
        __builtin_memcpy(panel + (g * 8 + 2 * v + run) * TILE_ROWS * 4, runs + run, 4);
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

// The same of a matrix from row0 and group g0 on, and scales [group][row].
template <int F>
static void pack(const v4k_matrix *w, int64_t row0, int rows, int64_t g0, int n_groups, uint8_t *panel,
                 float *scales) {
  if constexpr (Format<F>::fours) {
    for (int r = 0; r < TILE_ROWS; ++r)
      pack_fours<F>(from_group<F>(row_at<F>(w, row0 + (r < rows ? r : rows - 1)), g0), n_groups, panel + r * 4);
    return pack_scales<F>(w, row0, rows, g0, n_groups, scales);
  }
  const int code_bytes = V4K_FORMATS[F].info.code_bytes;
  const int64_t row_bytes = w->cols / V4K_GROUP * code_bytes;
  pack_codes<F, TILE_ROWS>((const uint8_t *)w->codes + row0 * row_bytes + g0 * code_bytes, row_bytes, rows, n_groups, panel);
  pack_scales<F>(w, row0, rows, g0, n_groups, scales);
}

#include "plain.inl"
#include "rows.inl"

static const int ROWS_ONCE = 1, PAIR_ROWS = 4, PAIR_PARTS = 1;

#include "elementary.inl"
#include "fused.inl"

// -- tiles ---------------------------------------------------------------------------------------------------------

struct Quads {
  int8x16_t low, high;
};
struct Dots {
  int32x4_t low, high;
};

static inline Quads load_quads(const uint8_t *p) {
  return Quads{vld1q_s8((const int8_t *)p), vld1q_s8((const int8_t *)p + 16)};
}

static inline Quads splat_quads(const int8_t *q) {
  int32_t four;
  __builtin_memcpy(&four, q, 4);
  const int8x16_t all = vreinterpretq_s8_s32(vdupq_n_s32(four));
  return Quads{all, all};
}

template <int F>
static inline Dots add_dots(Dots d, Quads codes, Quads q) {
  return Dots{vdotq_s32(d.low, codes.low, q.low), vdotq_s32(d.high, codes.high, q.high)};
}

template <int F>
static inline Dots first_dots(const int32_t *) {
  return Dots{vdupq_n_s32(0), vdupq_n_s32(0)};
}

template <int F>
static inline Wide product(Dots d, const uint8_t *) {
  return Wide{vcvtq_f32_s32(d.low), vcvtq_f32_s32(d.high)};
}

template <int F>
static inline const int8_t *in_order(const int8_t *q, int8_t *) {
  return q;
}

#ifdef __ARM_FEATURE_MATMUL_INT8
#define V4K_OWN_PRODUCTS
#endif
#include "tiles.inl"

#ifdef V4K_OWN_PRODUCTS
// vmmlaq does eight bytes of two rows by two tokens.
template <int F, int T>
static inline void products(const uint8_t *panel, int g, const Tokens &x, Dots d[T][TILE_VECTORS]) {
  const int32_t *w = (const int32_t *)panel;
  const int PAIRS = (T + 1) / 2;  // of tokens; one without another is its own neighbour
  int32x4_t sums[PAIRS][4];
  for (int p = 0; p < PAIRS; ++p)
    for (int k = 0; k < 4; ++k) sums[p][k] = vdupq_n_s32(0);
#pragma GCC unroll 4
  for (int j = 0; j < 8; j += 2) {
    int8x16_t rows[4];
    for (int k = 0; k < 2; ++k) {
      const int32x4_t one = vld1q_s32(w + j * TILE_ROWS + k * 4);
      const int32x4_t next = vld1q_s32(w + (j + 1) * TILE_ROWS + k * 4);
      rows[2 * k] = vreinterpretq_s8_s32(vzip1q_s32(one, next));
      rows[2 * k + 1] = vreinterpretq_s8_s32(vzip2q_s32(one, next));
    }
#pragma GCC unroll 2
    for (int p = 0; p < PAIRS; ++p) {
      const int at = group_at<F>(g) + quad_at<F>(j), second = 2 * p + 1 < T ? 2 * p + 1 : 2 * p;
      const int8x16_t q = vcombine_s8(vld1_s8(x.q[2 * p] + at), vld1_s8(x.q[second] + at));
      for (int k = 0; k < 4; ++k) sums[p][k] = vmmlaq_s32(sums[p][k], rows[k], q);
    }
  }
  for (int t = 0; t < T; ++t) {
    const int32x4_t *s = sums[t / 2];
    d[t][0] = t % 2 ? Dots{vuzp2q_s32(s[0], s[1]), vuzp2q_s32(s[2], s[3])}
                    : Dots{vuzp1q_s32(s[0], s[1]), vuzp1q_s32(s[2], s[3])};
  }
}
#endif

// -- index scores -------------------------------------------------------------------------------------------------

static const int INDEX_HEADS = 4;

static inline Dots no_dots() { return Dots{vdupq_n_s32(0), vdupq_n_s32(0)}; }
static inline Wide from_dots(Dots d, int32_t) { return Wide{vcvtq_f32_s32(d.low), vcvtq_f32_s32(d.high)}; }

static inline unsigned above(Wide a, Wide least) {
  const uint32_t bits[4] = {1, 2, 4, 8};
  const uint32x4_t at = vld1q_u32(bits);
  return vaddvq_u32(vandq_u32(vcgtq_f32(a.low, least.low), at)) |
         vaddvq_u32(vandq_u32(vcgtq_f32(a.high, least.high), at)) << 4;
}

#include "index.inl"
#include "sample.inl"
#include "lowbit.inl"
#include "carry.inl"
