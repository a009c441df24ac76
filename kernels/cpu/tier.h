// What an ISA tier offers to the code above it. Plain structs and function pointers: this header is compiled with
// different flags in every tier, so it must not define anything that the linker could merge.
#ifndef V4K_TIER_H
#define V4K_TIER_H

#include "formats.h"

#define V4K_BLOCK 8         // groups handled together; activation rows are padded to whole blocks
#define V4K_TOKEN_BLOCK 64  // tokens that weights are unpacked once for, and whose accumulators stay in L2
#define V4K_PANEL_KEYS 64   // index keys unpacked together
#define V4K_LOGITS 128      // logits weighed together
#define V4K_ABREAST 16       // rows whose errors are carried together
#define V4K_HEAD_LEVELS 16  // of the tree of sums over index heads, of which there are fewer than 2^16

// Quantized activations of some tokens, prepared for one weight format. `groups` counts the padded groups of a row.
//
// q      [tokens, groups * 32] int8. For weights of one byte in natural order. For packed nibbles, of every 4 groups first the
//        16 even inputs of each, then the 16 odd ones: group g's even inputs at (g/4)*128 + (g%4)*16, odd 64 further.
//        For Q3 and Q2, of every 8 groups first the first of every four inputs, and so on: input 4i + v of group g at
//        (g/8)*256 + v*64 + (g%8)*8 + i.
// scale  [tokens, groups] fp32; of FP4 half of it, because FP4 codes are doubled to be integers.
// offset [tokens, groups] what to add to a dot product of unsigned codes (code + Z) to get that of signed ones.
//        INT8 (Z = 128): -128 * sum of q. Nibbles: two int16, low half -Z * sum over inputs at bytes 0, 1 of each dword
//        of q, high half the same for bytes 2, 3; Z = 12 for FP4, 8 for INT4. Q3, Q2: likewise two int16, low half -16 *
//        sum over inputs 0 to 15, high half over the others.
// Padding is all zeros.
typedef struct {
  int8_t *q;
  float *scale;
  int32_t *offset;
  int64_t groups;
} v4k_acts;

// Unfinished attention of some heads: out [heads, d] = sum of e^(score - peak) * value, total [heads] = sum of
// e^(score - peak), peak [heads] the highest score so far.
typedef struct {
  float *peak, *total, *out;
} v4k_part;

// The index queries of one token. Heads with weights above zero come first, both parts in ascending order.
//
// q      [heads, dims] doubled e2m1 values; of every 32 first the 16 even dims, then the 16 odd ones.
// scale  [heads, dims / 32] a quarter of the query's, because both factors are doubled.
// offset [heads, dims / 32] -12 * sum of q: what unsigned codes (code + 12) add to a dot product.
// weight [heads], the first `raising` of them above zero.
typedef struct {
  const int8_t *q;
  const float *scale;
  const int32_t *offset;
  const float *weight;
  int64_t heads, raising;
} v4k_index_query;

typedef struct {
  const char *name;

  // Quantize x [n * 32] into groups first .. first+n-1 of one row; row.q, row.scale, row.offset point to its start.
  void (*quantize)(const float *x, int64_t first, int64_t n, int64_t format, v4k_acts row);

  // y[i * stride + r] = row (row0 + r) of w times token tokens[i] of x, for i < n_tokens and r < n_rows.
  // tokens NULL: token i.
  void (*rows)(const v4k_matrix *w, int64_t row0, int64_t n_rows, const v4k_acts *x, const int32_t *tokens,
               int64_t n_tokens, float *y, int64_t stride);

  // z[i] = silu(min(gate[i], limit)) * clamp(up[i], -limit, limit) * weight for i < n, n a multiple of 32.
  // z may be gate.
  void (*swiglu)(const float *gate, const float *up, int64_t n, float weight, float limit, float *z);

  // The same for BF16 and F32 weights: token i is x + i * x_stride.
  void (*rows_fp32)(const v4k_matrix *w, int64_t row0, int64_t n_rows, const float *x, int64_t x_stride,
                    int64_t n_tokens, float *y, int64_t stride);

  // Sum of x^2 over n values, a multiple of 8.
  float (*sum_squares)(const float *x, int64_t n);

  // y = x / rms(x) * weight (NULL: 1) for n values, a multiple of 8; y may be x.
  void (*rms_norm)(const float *x, const float *weight, int64_t n, float eps, float *y);

  // In place: e^x, and sqrt(log(1 + e^x)), of n values (elementary.inl).
  void (*exponentials)(float *x, int64_t n);
  void (*sqrt_softplus)(float *x, int64_t n);

  // n KV entries (v4k.h) of `plain` e4m3 and `rope` bf16 values -> out [n, plain + rope].
  void (*unpack)(const uint8_t *const *entries, int64_t n, int64_t plain, int64_t rope, float *out);

  // n_keys <= 64 more keys (= values) [n_keys, d] for `heads` queries q [heads, d]: online softmax into part.
  void (*attend)(const float *q, int64_t heads, const float *keys, int64_t n_keys, int64_t d, v4k_part part);

  // out[c] = sum over slots of softmax over slots(gate[slot][c]) * kv[slot][c], c < channels, a multiple of 8.
  void (*pool)(const float *const *kv, const float *const *gate, int64_t slots, int64_t channels, float *out);

  // n_keys <= 64 index keys (v4k.h) of `dims` -> panel [64 * (dims + dims / 8)] in an order of the tier's own, aligned
  // to 64 bytes. Keys past the last are like it.
  void (*index_panel)(const uint8_t *codes, const uint8_t *scales, int64_t n_keys, int64_t dims, uint8_t *panel);

  // out [64] = index scores (v4k_index_scores) of the panel's keys, or no less than that for those not above `least`.
  // Bit k of what is returned: key k is above `least`.
  uint64_t (*index_scores)(const uint8_t *panel, int64_t dims, const v4k_index_query *query, float least, float *out);

  // The highest of V4K_LOGITS logits; NaN if one is NaN or plus infinity.
  float (*logit_peak)(const float *x);

  // Their weights w = 2^44 * e^((x - top) * inverse) as integers, for x <= top; returns the sum.
  int64_t (*logit_weights)(const float *x, double top, double inverse, int64_t *w);

  // One row of v4k_encode_lowbit; importance [cols] or NULL.
  void (*encode_lowbit)(const float *w, const float *importance, int64_t cols, int64_t format, uint8_t *codes,
                        uint8_t *scale);

  // n <= V4K_ABREAST rows of v4k_carry_lowbit; codes and scale hold what v4k_encode_lowbit makes of them, and what is better
  // then. found [V4K_ABREAST * (cols + cols / 16)]: memory to work in.
  void (*carry_lowbit)(const float *w, int64_t n, int64_t cols, int64_t format, const v4k_carry *carry, uint8_t *found,
                       uint8_t *codes, uint8_t *scale);

  // One input of v4k_carry_gains: left [rank, rank] -= (v / divisor) times v; next = sum over rows k of `before`[k] *
  // left[k], in order.
  void (*carry_step)(double *left, int64_t rank, const double *v, double divisor, const float *before, double *next);

  // Read bytes (a multiple of 4,096) and fold them into a checksum.
  uint64_t (*read)(const void *data, int64_t bytes);
} v4k_tier;

#ifdef __cplusplus
extern "C" {
#endif
extern const v4k_tier v4k_tier_scalar, v4k_tier_avx2, v4k_tier_avx512, v4k_tier_neon, v4k_tier_i8mm;
#ifdef __cplusplus
}
#endif
#endif
