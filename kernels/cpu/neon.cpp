// NEON with the dot product instructions: vdotq adds four signed byte products to each int32.
#include <arm_neon.h>
#include <stdint.h>

#include "tier.h"

#define V4K_HAS_TILES

namespace v4k_neon {

static const int TILE_ROWS = 8, TILE_TOKENS = 4;

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
static inline float32x4_t scales4(const uint8_t *scale, int g) {
  if (V4K_FORMATS[F].scale == V4K_SCALE_E8M0) {
    const uint32_t b[4] = {scale[g], scale[g + 1], scale[g + 2], scale[g + 3]};
    return vreinterpretq_f32_u32(vmaxq_u32(vshlq_n_u32(vld1q_u32(b), 23), vdupq_n_u32(0x400000)));
  }
  return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(scale + 2 * g)), 16));
}

template <int F>
static inline int8x16_t signed_codes(uint8x16_t nibbles) {
  static_assert(F == V4K_FP4 || F == V4K_INT4 || F == V4K_INT8, "no decoding");  // INT8 comes here in dead code only
  if (F == V4K_INT4) return vsubq_s8(vreinterpretq_s8_u8(nibbles), vdupq_n_s8(8));
  const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  return vqtbl1q_s8(vld1q_s8(doubled), nibbles);
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
static inline Lanes block(const uint8_t *codes, const uint8_t *scale, const int8_t *q, const float *xs, const int32_t *,
                          Lanes acc) {
  float32x4_t *half[2] = {&acc.low, &acc.high};
  for (int k = 0; k < 2; ++k) {
    const int g = 4 * k;
    const int32x4_t a = vpaddq_s32(group_dot<F>(codes, q, g), group_dot<F>(codes, q, g + 1));
    const int32x4_t b = vpaddq_s32(group_dot<F>(codes, q, g + 2), group_dot<F>(codes, q, g + 3));
    const float32x4_t s = vmulq_f32(scales4<F>(scale, g), vld1q_f32(xs + g));
    *half[k] = vfmaq_f32(*half[k], vcvtq_f32_s32(vpaddq_s32(a, b)), s);
  }
  return acc;
}

template <int F>
static inline void pack_scales(const v4k_matrix *w, int64_t row0, int rows, int64_t g0, int n_groups, float *scales);

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

// n_groups groups of TILE_ROWS rows, of which there are `rows`, to panel [group][dword 8][row] of 4 signed codes.
template <int F>
static void pack_codes(const uint8_t *codes, int64_t row_bytes, int rows, int n_groups, uint8_t *panel) {
  for (int r0 = 0; r0 < TILE_ROWS; r0 += 4) {
    const uint8_t *row[4];
    for (int k = 0; k < 4; ++k) row[k] = codes + (r0 + k < rows ? r0 + k : rows - 1) * row_bytes;
    for (int part = 0; part < n_groups * (F == V4K_INT8 ? 2 : 1); ++part) {
      uint8x16_t a[4], d[4];
      for (int k = 0; k < 4; ++k) a[k] = vld1q_u8(row[k] + part * 16);
      transpose(a, d);
      for (int j = 0; j < 4; ++j) {
        if (F == V4K_INT8) {
          vst1q_u8(panel + ((part * 4 + j) * TILE_ROWS + r0) * 4, d[j]);
          continue;
        }
        uint8_t *low = panel + ((part * 8 + j) * TILE_ROWS + r0) * 4;
        vst1q_u8(low, vreinterpretq_u8_s8(signed_codes<F>(vandq_u8(d[j], vdupq_n_u8(15)))));
        vst1q_u8(low + 4 * TILE_ROWS * 4, vreinterpretq_u8_s8(signed_codes<F>(vshrq_n_u8(d[j], 4))));
      }
    }
  }
}

// The same of a matrix from row0 and group g0 on, and scales [group][row].
template <int F>
static void pack(const v4k_matrix *w, int64_t row0, int rows, int64_t g0, int n_groups, uint8_t *panel,
                 float *scales) {
  const int code_bytes = V4K_FORMATS[F].info.code_bytes;
  const int64_t row_bytes = w->cols / V4K_GROUP * code_bytes;
  pack_codes<F>((const uint8_t *)w->codes + row0 * row_bytes + g0 * code_bytes, row_bytes, rows, n_groups, panel);
  pack_scales<F>(w, row0, rows, g0, n_groups, scales);
}

#include "plain.inl"
#include "rows.inl"

static const int ROWS_ONCE = 1, PAIR_ROWS = 4, PAIR_PARTS = 1;

#include "elementary.inl"
#include "fused.inl"

template <int F, int T>
static void tile(const uint8_t *panel, const float *scales, int n_groups, const Tokens &x) {
  for (int g = 0; g < n_groups; ++g) {
    const int8_t *w = (const int8_t *)panel + g * 8 * TILE_ROWS * 4;
    int32x4_t d[T][2];
    for (int t = 0; t < T; ++t) d[t][0] = d[t][1] = vdupq_n_s32(0);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const int8x16_t w0 = vld1q_s8(w + j * 32), w1 = vld1q_s8(w + j * 32 + 16);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        int32_t four;
        __builtin_memcpy(&four, x.q[t] + quad_at<F>(g, j), 4);
        const int8x16_t q = vreinterpretq_s8_s32(vdupq_n_s32(four));
        d[t][0] = vdotq_s32(d[t][0], w0, q);
        d[t][1] = vdotq_s32(d[t][1], w1, q);
      }
    }
    for (int t = 0; t < T; ++t)
      for (int k = 0; k < 2; ++k) {
        float *acc = x.acc[t] + g * TILE_ROWS + 4 * k;
        const float32x4_t s = vmulq_n_f32(vld1q_f32(scales + g * TILE_ROWS + 4 * k), x.scale[t][g]);
        vst1q_f32(acc, vfmaq_f32(vld1q_f32(acc), vcvtq_f32_s32(d[t][k]), s));
      }
  }
}

// -- index scores -------------------------------------------------------------------------------------------------

static const int INDEX_HEADS = 4;

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

static inline Dots no_dots() { return Dots{vdupq_n_s32(0), vdupq_n_s32(0)}; }
static inline Dots add_dots(Dots d, Quads codes, Quads q) {
  return Dots{vdotq_s32(d.low, codes.low, q.low), vdotq_s32(d.high, codes.high, q.high)};
}
static inline Wide from_dots(Dots d, int32_t) { return Wide{vcvtq_f32_s32(d.low), vcvtq_f32_s32(d.high)}; }

static inline unsigned above(Wide a, Wide least) {
  const uint32_t bits[4] = {1, 2, 4, 8};
  const uint32x4_t at = vld1q_u32(bits);
  return vaddvq_u32(vandq_u32(vcgtq_f32(a.low, least.low), at)) |
         vaddvq_u32(vandq_u32(vcgtq_f32(a.high, least.high), at)) << 4;
}

#include "index.inl"
#include "sample.inl"

}  // namespace v4k_neon

extern "C" const v4k_tier v4k_tier_neon = {
    "neon",                  v4k_neon::quantize,      v4k_neon::rows,
    v4k_neon::swiglu,        v4k_neon::rows_fp32,     v4k_neon::sum_squares,
    v4k_neon::rms_norm,      v4k_neon::exponentials,  v4k_neon::sqrt_softplus,
    v4k_neon::unpack,        v4k_neon::attend,        v4k_neon::pool,
    v4k_neon::index_panel,   v4k_neon::index_scores,  v4k_neon::logit_peak,
    v4k_neon::logit_weights,  v4k_neon::read};
