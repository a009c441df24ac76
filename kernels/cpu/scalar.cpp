// The tier for any machine: plain C++ with baseline flags.
#include <stdint.h>

#include "tier.h"

namespace v4k_scalar {

struct Lanes {
  float l[8];
};

static inline Lanes zero() { return Lanes{{0, 0, 0, 0, 0, 0, 0, 0}}; }

static inline float total(const Lanes &a) {
  return ((a.l[0] + a.l[4]) + (a.l[2] + a.l[6])) + ((a.l[1] + a.l[5]) + (a.l[3] + a.l[7]));
}

static inline Lanes load(const float *p) {
  Lanes a;
  __builtin_memcpy(a.l, p, sizeof a.l);
  return a;
}

static inline void store(float *p, const Lanes &a) { __builtin_memcpy(p, a.l, sizeof a.l); }

static inline Lanes from_bits(const uint32_t bits[8]) {
  Lanes a;
  __builtin_memcpy(a.l, bits, sizeof a.l);
  return a;
}

static inline Lanes load_bf16(const uint8_t *p) {
  uint32_t bits[8];
  for (int i = 0; i < 8; ++i) bits[i] = (uint32_t)(p[2 * i] | p[2 * i + 1] << 8) << 16;
  return from_bits(bits);
}

static inline Lanes load_fp8(const uint8_t *p) {
  uint32_t bits[8];
  for (int i = 0; i < 8; ++i) bits[i] = (uint32_t)(p[i] & 0x80) << 24 | (uint32_t)(p[i] & 0x7f) << 20;
  return from_bits(bits);
}

template <class Op>
static inline Lanes each(Op op) {
  Lanes r;
  for (int i = 0; i < 8; ++i) r.l[i] = op(i);
  return r;
}

static inline Lanes splat(float x) {
  return each([&](int) { return x; });
}
static inline Lanes add(const Lanes &a, const Lanes &b) {
  return each([&](int i) { return a.l[i] + b.l[i]; });
}
static inline Lanes sub(const Lanes &a, const Lanes &b) {
  return each([&](int i) { return a.l[i] - b.l[i]; });
}
static inline Lanes mul(const Lanes &a, const Lanes &b) {
  return each([&](int i) { return a.l[i] * b.l[i]; });
}
static inline Lanes div(const Lanes &a, const Lanes &b) {
  return each([&](int i) { return a.l[i] / b.l[i]; });
}
static inline Lanes max(const Lanes &a, const Lanes &b) {
  return each([&](int i) { return a.l[i] > b.l[i] ? a.l[i] : b.l[i]; });
}
static inline Lanes min(const Lanes &a, const Lanes &b) {
  return each([&](int i) { return a.l[i] < b.l[i] ? a.l[i] : b.l[i]; });
}
static inline Lanes fma(const Lanes &a, const Lanes &b, const Lanes &c) {
  return each([&](int i) { return __builtin_fmaf(a.l[i], b.l[i], c.l[i]); });
}
static inline Lanes root(const Lanes &a) {
  return each([&](int i) { return __builtin_sqrtf(a.l[i]); });
}
static inline Lanes choose(const Lanes &a, const Lanes &b, const Lanes &x, const Lanes &y) {
  return each([&](int i) { return a.l[i] < b.l[i] ? x.l[i] : y.l[i]; });
}

static inline Lanes times_power(const Lanes &a, const Lanes &shifted) {
  uint32_t bits[8];
  __builtin_memcpy(bits, shifted.l, sizeof bits);
  for (int i = 0; i < 8; ++i) bits[i] = (bits[i] << 23) + 0x3f800000;
  return mul(a, from_bits(bits));
}

static const int8_t FP4_DOUBLED[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

#include "row.inl"

// Products of one group of Q3 or Q2, of every run of 16 times its multiplier.
template <int F>
static inline int fours_dot(const Row &w, const int8_t *q, int g) {
  static constexpr v4k_levels levels = v4k_levels_of(F, 0);
  int sums[2] = {0, 0};
  for (int i = 0; i < 8; ++i) {
    const int byte = w.codes[g * 8 + i], low = byte & 15, high = byte >> 4;
    const int n2 = F == V4K_Q3 ? w.second[g * 4 + i % 4] >> i / 4 * 4 & 15 : high;
    const int n1 = F == V4K_Q3 ? high : low, n3 = F == V4K_Q3 ? (low & 8) | (high & 4) | (n2 & 2) : high;
    const int nibbles[4] = {low, n1, n2, n3};
    for (int v = 0; v < 4; ++v) sums[i / 4] += levels.of[v][nibbles[v]] * q[v * 64 + g * 8 + i];
  }
  return sums[0] * V4K_MULTIPLIERS[w.scale[g] & 15] + sums[1] * V4K_MULTIPLIERS[w.scale[g] >> 4];
}

template <int F>
static inline int group_dot(const Row &w, const int8_t *q, int g) {
  static_assert(F == V4K_FP4 || F == V4K_INT8 || F == V4K_INT4 || Format<F>::fours, "no decoding");
  if (Format<F>::fours) return fours_dot<F>(w, q, g);
  const uint8_t *codes = w.codes;
  int sum = 0;
  if (F == V4K_INT8) {
    for (int i = 0; i < 32; ++i) sum += (int8_t)codes[g * 32 + i] * q[g * 32 + i];
    return sum;
  }
  const int8_t *even = q + (g / 4) * 128 + (g % 4) * 16;
  for (int i = 0; i < 16; ++i) {
    const int low = codes[g * 16 + i] & 15, high = codes[g * 16 + i] >> 4;
    if (F == V4K_FP4)
      sum += FP4_DOUBLED[low] * even[i] + FP4_DOUBLED[high] * even[64 + i];
    else
      sum += (low - 8) * even[i] + (high - 8) * even[64 + i];
  }
  return sum;
}

template <int F>
static inline Lanes block(const Row &w, const int8_t *q, const float *xs, const int32_t *, Lanes acc) {
  for (int g = 0; g < V4K_BLOCK; ++g)
    acc.l[g] = __builtin_fmaf((float)group_dot<F>(w, q, g), scale_of<F>(w, g) * xs[g], acc.l[g]);
  return acc;
}

#include "plain.inl"
#include "rows.inl"

static const int ROWS_ONCE = 1, PAIR_ROWS = 1, PAIR_PARTS = 1;

#include "elementary.inl"
#include "fused.inl"

// -- index scores -------------------------------------------------------------------------------------------------

static const int KEY_ROWS = 8, INDEX_HEADS = 1;

struct Quads {
  int8_t b[32];
};
struct Dots {
  int32_t d[8];
};

static inline Quads load_quads(const uint8_t *p) {
  Quads r;
  __builtin_memcpy(r.b, p, sizeof r.b);
  return r;
}

static inline Quads splat_quads(const int8_t *q) {
  Quads r;
  for (int k = 0; k < 8; ++k) __builtin_memcpy(r.b + 4 * k, q, 4);
  return r;
}

static inline Dots no_dots() { return Dots{{0, 0, 0, 0, 0, 0, 0, 0}}; }

template <int F>
static inline Dots add_dots(Dots d, const Quads &codes, const Quads &q) {
  for (int i = 0; i < 32; ++i) d.d[i / 4] += codes.b[i] * q.b[i];
  return d;
}

static inline Wide from_dots(const Dots &d, int32_t) {
  return each([&](int i) { return (float)d.d[i]; });
}

static inline unsigned above(const Wide &a, const Wide &least) {
  unsigned bits = 0;
  for (int i = 0; i < 8; ++i) bits |= (unsigned)(a.l[i] > least.l[i]) << i;
  return bits;
}

template <int F, int R>
static void pack_codes(const uint8_t *codes, int64_t row_bytes, int rows, int n_groups, uint8_t *panel) {
  for (int i = 0; i < n_groups * 16; ++i)  // byte i of a row: inputs 2i and 2i + 1
    for (int r = 0; r < R; ++r) {
      const uint8_t pair = codes[(r < rows ? r : rows - 1) * row_bytes + i];
      uint8_t *even = panel + ((i / 16 * 8 + i % 16 / 4) * R + r) * 4 + i % 4;
      even[0] = (uint8_t)FP4_DOUBLED[pair & 15];
      even[4 * R * 4] = (uint8_t)FP4_DOUBLED[pair >> 4];
    }
}

#include "index.inl"
#include "sample.inl"
#include "lowbit.inl"
#include "carry.inl"

}  // namespace v4k_scalar

extern "C" const v4k_tier v4k_tier_scalar = {
    "scalar",                  v4k_scalar::quantize,      v4k_scalar::rows,
    v4k_scalar::swiglu,        v4k_scalar::rows_fp32,     v4k_scalar::sum_squares,
    v4k_scalar::rms_norm,      v4k_scalar::exponentials,  v4k_scalar::sqrt_softplus,
    v4k_scalar::unpack,        v4k_scalar::attend,        v4k_scalar::pool,
    v4k_scalar::index_panel,   v4k_scalar::index_scores,  v4k_scalar::logit_peak,
    v4k_scalar::logit_weights,  v4k_scalar::encode_lowbit,  v4k_scalar::carry_lowbit,
    v4k_scalar::carry_step,     v4k_scalar::read};
