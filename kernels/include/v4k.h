/* v4k: the C ABI of the CPU kernels. Plain pointers and sizes; no Python, no torch, no exceptions.
 *
 * Numbers. Every result is a fixed sequence of fp32 operations that IEEE 754 rounds one way: +, -, *, /, square root,
 * fused multiply-add (only where "fma" is said), and of integers. It does not depend on ISA tier, thread count, number
 * of tokens or the machine's libm, so neither do the bits, and another processor can repeat them; subnormal numbers are
 * numbers. Inputs that are not finite give NaN outputs. Sums are taken in one of these ways:
 *
 *   lanes(L)   term i = 0, 1, ... goes to lane i mod L by fma onto what is there, 0 at first; then the upper half of the
 *              lanes is added to the lower one, l[i] + l[i + L/2], and so on until one is left.
 *   tree       neighbours 2i and 2i + 1 are added, then neighbours among these sums, until one is left; what has no
 *              neighbour goes up as it is. Of four: (a + b) + (c + d).
 *   in order   one term after the other.
 *
 *   quantized products  activations are int8 with one fp32 scale per 32 consecutive inputs (v4k_quantize). Of every
 *              group of 32 the product of codes is an exact integer d: lanes(8) of d times (weight scale * its scale). Of
 *              Q3 and Q2 multipliers are part of d, and the weight scale is the row's.
 *   BF16 and F32 products, norms  lanes(64) of w times x, of x times x. x * (1 / sqrt(sum / n + eps)), then * weight.
 *   swiglu     g / (1 + exp(-g)) * u * weight, g and u cut off at the limit.
 *   experts    onto what is there: shared, then by ascending id.
 *   hyper      rho = 1 / sqrt(lanes(64) of squares / n + eps); gates 1 / (1 + exp(-(m * rho * scale + base))), pre + eps,
 *              post * 2. comb: exp(c - the row's highest) / tree of the row + eps; by columns c / (tree + eps), then
 *              iters - 1 times by rows and by columns. Sums over streams in order, each product rounded, post * out
 *              first.
 *   rotation   a * cos - b * sin, a * sin + b * cos, each product rounded; cos and sin of the fp32 angle, to the nearest
 *              but for one in millions: host's work.
 *   attention  scores lanes(8) of q times key. A block of 64 keys: weights exp(score - peak), peak the highest so far,
 *              f = exp(last peak - peak), 0 at first; total * f + sum, this in lanes(8) of weights times 1; out * f, then
 *              the values in order by fma. Runs of 256 keys, in order: out * t + from * f, total likewise, with t and f =
 *              exp(own peak - the higher). Last out * (f / (total * f + exp(sink - peak))), f = exp(own peak - peak).
 *   pooling    weights exp(gate - the highest): in order; values by fma onto 0; their quotient.
 *   router     sqrt(softplus) of gate products; the weights of a token in order; weight / sum * scale.
 *   index      two trees, see v4k_index_scores.
 *
 *   exp(x)     x cut to [-87, 88]; n = x * 1.44269504f to the nearest integer, ties to even; r = fma(n, -0.693359375f, x),
 *              then r = fma(n, 2.12194440e-4f, r); p = 1/5040, then p = fma(p, r, c) for c = 1/720, 1/120, 1/24, 1/6,
 *              1/2, 1, 1, all fp32; p * 2^n. Within 0.94 ulp.
 *   log1p(t)   of 0 <= t <= 1: s = t / (2 + t), z = s * s; p = 0.2429026f, then p = fma(p, z, c) for c = 0.21430278f,
 *              0.28616676f, 0.39998883f, 0.66666675f; fma(-s, t - z * p, t). Within 1.06 ulp.
 *   sqrt(softplus)  sqrt(max(x, 0) + log1p(exp(-|x|))); below -20 exp(x / 2). Within 1.51 ulp above -174.
 *
 * Memory. The caller owns every buffer; the library keeps no pointer after a call, servers apart. Weights need no
 * alignment. All arrays are C-contiguous. Calls may come from any thread; calls that share the pool wait for each other.
 *
 * Functions that return int give 0, or a V4K_E code; outputs are then unspecified. */
#ifndef V4K_H
#define V4K_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define V4K_ABI_VERSION 12 /* of these functions, and of the bits of their results */
#ifndef V4K_API
#define V4K_API __attribute__((visibility("default")))
#endif
#define V4K_GROUP 32 /* inputs per scale, of weights and of activations */

/* Weight formats. Packed nibbles: the low one is the even input. BF16 and F32 are not quantized, nor are their inputs.
 *
 * Q3, Q2: a weight is row scale * multiplier * level. Scale: of each row bf16, then [cols/32] bytes, the low nibble for
 * inputs 0 to 15 of the group, the high one for the others: the number of a multiplier 2 3 4 5 6 8 10 12 or, from 8 on,
 * of the same below zero. Levels by code: Q3 -10 -6 -4 -2 0 2 4 7, Q2 -10 -3 2 7. Every four inputs, codes c0 .. c3, are
 * together: Q2 c0 | c1 << 2 | c2 << 4 | c3 << 6. Q3 three nibbles, n0 with c0 in bits 0 1 2, n1 with c1 in bits 0 1 3, n2
 * with c2 in bits 0 2 3, and bits 2, 1, 0 of c3 in bit 3 of n0, 2 of n1 and 1 of n2; a row is first all n0 | n1 << 4, 8
 * bytes of a group, then 4 of each: n2 of fours 0 to 3 in the low nibbles, of fours 4 to 7 in the high ones. */
enum {
  V4K_FP4 = 1,  /* codes [rows, cols/2] e2m1 pairs; scale [rows, cols/32] bytes b = 2^(b-127) */
  V4K_INT8 = 2, /* codes [rows, cols] int8; scale [rows, cols/32] bf16 */
  V4K_INT4 = 3, /* codes [rows, cols/2] pairs, value = nibble - 8; scale [rows, cols/32] bf16 */
  V4K_BF16 = 4, /* codes [rows, cols] bf16; scale NULL */
  V4K_F32 = 5,  /* codes [rows, cols] fp32; scale NULL */
  V4K_Q3 = 6,   /* codes [rows, cols * 3/8]; scale [rows, 2 + cols/32] bytes */
  V4K_Q2 = 7,   /* codes [rows, cols / 4]; scale [rows, 2 + cols/32] bytes */
};

enum {
  V4K_OK = 0,
  V4K_EARGUMENT = -1, /* null pointer, size or format out of range, expert id outside [0, n_experts) */
  V4K_EMEMORY = -2,   /* no memory for scratch */
  V4K_EVALUE = -3,    /* a value that is not finite */
  V4K_ETIMEOUT = -4,  /* the other side of a ring did not do its part in time */
  V4K_ESTOPPED = -5,  /* nobody serves a ring in this process any more */
  V4K_EFETCH = -6,    /* a v4k_fetch failed */
};

/* What the library knows of a format: bytes of the codes and of the scales of 32 inputs, and of the scale of a row, in
 * front of those; scale_bytes 0: not quantized. */
typedef struct {
  const char *name;
  int64_t code_bytes, scale_bytes, row_scale;
} v4k_format_info;

typedef struct {
  const void *codes;
  const void *scale;
  int64_t rows;   /* outputs */
  int64_t cols;   /* inputs, a multiple of 32 */
  int64_t format; /* one of the above */
} v4k_matrix;

/* w1 (gate) and w3 (up) [I, D], w2 (down) [D, I]; D and I multiples of 32; each of a format with scales. */
typedef struct {
  v4k_matrix w1, w3, w2;
} v4k_expert;

/* V4K_ABI_VERSION the library was built with. */
V4K_API int v4k_abi_version(void);

/* The format with this id; V4K_EARGUMENT if there is none. Ids are 1, 2, ... without holes. */
V4K_API int v4k_format(int64_t id, v4k_format_info *out);

/* Most bytes of scratch memory that calls have held at a time since the library was loaded. Each frees its own. */
V4K_API int64_t v4k_scratch_peak(void);

/* Name of the ISA tier in use: scalar, avx2, avx512, neon or i8mm. Chosen at first use: the best this machine can run, or
 * the one named by the environment variable V4_ISA if that is lower. */
V4K_API const char *v4k_isa(void);

/* Names of the tiers that may be chosen (see v4k_isa), lowest first, separated by blanks. */
V4K_API const char *v4k_isa_tiers(void);

/* Use the named tier from now on; V4K_EARGUMENT unless v4k_isa_tiers lists it. For tests; not during another call. */
V4K_API int v4k_set_isa(const char *name);

/* CPUs this process may compute on; where some are slower by design only the fast ones, if the system keeps threads on
 * them. */
V4K_API int v4k_cpus(void);

/* Threads that compute, the calling one included. At start: v4k_cpus. */
V4K_API int v4k_threads(void);

/* Set the above; 1 <= n <= 1024. */
V4K_API int v4k_set_threads(int n);

/* out [rows, cols] = w, any format, in fp32. */
V4K_API int v4k_decode(const v4k_matrix *w, float *out);

/* How far w, any format, is from values [rows, cols] fp32: out[0] = the sum of squared differences, out[1] = that of
 * squared values, in fp64: of a row eight sums, of input i in sum i mod 8, added in order, then rows in order. Not finite
 * where a value is not. */
V4K_API int v4k_rounding(const v4k_matrix *w, const float *values, double *out);

/* Weights [rows, cols] to INT8: codes [rows, cols], scale [rows, cols/32] bf16. Per group the better, by squared error, of
 * amax/127 rounded up to bf16 and the next power of two. `block_scale` NULL: values are bf16; else they are e4m3 with a
 * scale byte per 128x128 block [ceil(rows/128), ceil(cols/128)]. V4K_EVALUE if one is not finite. */
V4K_API int v4k_encode_int8(const void *values, const uint8_t *block_scale, int64_t rows, int64_t cols, int8_t *codes,
                            uint16_t *scale);

/* Weights w [rows, cols] fp32 to Q3 or Q2, codes and scale as stored; codes NULL: scales alone. An error counts
 * importance[r * stride + i], finite and above zero, stride 0 or cols; importance NULL: 1. For the search a row is divided
 * by a power of two, so that all of it is exact but each weight - level * step, its square, that times its importance,
 * and sums: over a run in order of inputs, over a row in order of runs. A weight has the nearest level, of two the one
 * with the lower code; a run the multiplier of the least sum, of equals the first. The row's scale is the best of bf16(
 * amax / 120 * s) for s = 0.55f, 0.7f, 0.85f, 1, of equals the first, divided by the power of two in amax / 120, by the
 * least sums of runs with the sign opposite to their largest weight's (of equals the first's) and three sizes: the least
 * with which level -10 reaches that weight, else the last, and its neighbours. Then multipliers are chosen, divided by
 * the power of two in the scale. Scale 0 where amax < 2^-100, infinity where a value is not finite: multipliers are the
 * first there, and codes mean nothing, but are the same everywhere. */
V4K_API int v4k_encode_lowbit(const float *w, int64_t rows, int64_t cols, int64_t format, const float *importance,
                              int64_t stride, uint8_t *codes, uint8_t *scale);

#define V4K_MAX_RANK 512

/* What is known of a matrix's inputs: their second moments are factor factor^T, and rest on the diagonal. All fp32. */
typedef struct {
  const float *importance; /* [cols]: what an error counts where scales are searched, finite and above zero */
  const float *factor;     /* [cols, rank]: of each input its part in every direction */
  const float *rest;       /* [cols], above zero */
  const float *gains;      /* [cols, rank], of v4k_carry_gains */
  const float *within;     /* [cols, 16], of v4k_carry_gains */
  int64_t rank;            /* a multiple of 4, up to V4K_MAX_RANK */
} v4k_carry;

/* How errors are carried: what is best to add to weight j when weights i before it have errors e_i is gains[j] * (sum over
 * i of e_i * factor[i]), where weights behind it make good what they can. In fp64, sums in order, each product rounded:
 * M = 1; from the last input to the first v = sum over rows k of factor[j][k] * M[k], s = rest[j] + sum of factor[j] * v,
 * gains[j] = v / s, M[k] -= (v[k] / s) * v. within[i][j mod 16] = sum of factor[i] * gains[j], i and j of the same 16. */
V4K_API int v4k_carry_gains(const float *factor, const float *rest, int64_t cols, int64_t rank, float *gains,
                            float *within);

/* v4k_encode_lowbit, where errors are carried from one input to the next, in each row that this makes better. A row is
 * divided by the power of two in its scale, which is the same with carrying. For every 16 inputs: weight j += gains[j][r] *
 * sums[r] by fma, r in order; the multipliers of the least sum for what the weights are now; then input by input the
 * nearest level, e = weight as it was - level * step, weight j of those behind it += within[i][j] * e by fma; last sums[r]
 * += factor[i][r] * e by fma, i in order. A row is better if (rest * e) * e of all inputs by fma in order, then sums[r]^2,
 * are less than the same of the codes that v4k_encode_lowbit gives. */
V4K_API int v4k_carry_lowbit(const float *w, int64_t rows, int64_t cols, int64_t format, const v4k_carry *carry,
                             uint8_t *codes, uint8_t *scale);

/* Quantize activations: x [n, k] fp32 -> q [n, k] int8 in [-127, 127], scale [n, k/32] fp32, x ~ q * scale.
 * scale = max(amax/127, 2^-120), q = x/scale rounded to the nearest, ties to even; for a group that is not finite NaN
 * and q = 0. k a multiple of 32. */
V4K_API int v4k_quantize(const float *x, int64_t n, int64_t k, int8_t *q, float *scale);

/* Linear, with activation quantization where the format has it: y[t, r] = sum over i of w[r, i] * x[t, r / (rows/groups), i].
 * w [rows, cols]; x [n, groups, cols] fp32; y [n, rows] fp32, overwritten; groups divides rows, 1 for a plain one. */
V4K_API int v4k_linear(const v4k_matrix *w, int64_t groups, const float *x, int64_t n, float *y);

/* One layer's expert MLPs for all tokens:
 *   out[t] += shared(x[t]) + sum over j of experts[ids[t, j]](x[t]) * weights[t, j]   (inside, before w2)
 * with expert(x) = w2(silu(min(w1 x, limit)) * clamp(w3 x, -limit, limit) * weight), the input of w2 quantized too.
 * experts [n_experts]; shared may be NULL; x [n, D] fp32; ids [n, top_k]; weights [n, top_k] fp32; out [n, D] fp32.
 * Added to out in this order: shared, then the token's experts by ascending id. top_k may be 0. Every matrix has a format
 * of its own; experts have one I, the shared one may have another. Scratch, whatever n: that of 8,192 (token, expert)
 * pairs, about 1.25 * (I + D) bytes each, D once for every format of w1 and w3 in use. */
V4K_API int v4k_experts(const v4k_expert *experts, int64_t n_experts, const v4k_expert *shared, const float *x,
                        int64_t n, const int64_t *ids, const float *weights, int64_t top_k, float limit, float *out);

/* -- the rest of a layer ---------------------------------------------------------------------------------------
 * Sizes: n tokens at positions start .. start + n - 1 of one timeline, D hidden, S streams, H heads, d head_dim,
 * R rope dims (the last of each head), E experts. x, streams and all other activations are fp32. Results for a token
 * do not depend on n, so decoding and any chunking of a prefill give the same bits. */

/* out [n, S, D] = rows ids[n] of table [V, D], any format, copied to S streams. */
V4K_API int v4k_embed(const v4k_matrix *table, const int64_t *ids, int64_t n, int64_t streams, float *out);

/* One hyper-connection (spec 3.2) and the norm behind it. */
typedef struct {
  v4k_matrix fn;     /* [S*S + 2S, S*D] F32; [S, S*D] of the final collapse */
  const float *base; /* [rows of fn] */
  const float *scale; /* [3]; [1] of the final collapse */
  const float *norm; /* [D] */
  int64_t streams, iters;
  float norm_eps, eps;
} v4k_hyper;

/* Sublayer input: x [n, D] = norm(sum over j of pre_j * streams[n, j, D]); mix [n, S + S*S] = post, then comb[j][k]. */
V4K_API int v4k_hyper_pre(const v4k_hyper *h, const float *streams, int64_t n, float *x, float *mix);

/* Sublayer output, in place: streams_k = post_k * out + sum over j of comb[j][k] * streams_j; out [n, D]. */
V4K_API int v4k_hyper_post(const float *out, const float *mix, int64_t n, int64_t n_streams, int64_t dim,
                           float *streams);

/* Final collapse and norm: x [n, D]. */
V4K_API int v4k_hyper_head(const v4k_hyper *h, const float *streams, int64_t n, float *x);

/* turns [n, R/2, 2] = cos, sin of freqs[R/2] * position, position = start, start + step, ... */
V4K_API int v4k_rotations(const float *freqs, int64_t half, int64_t start, int64_t step, int64_t n, float *turns);

/* KV entries as stored: d - R e4m3 bytes, R bf16, then a scale byte (ue8m0) per 64 e4m3, padded to 8. 584 B at V4's
 * sizes; NaN is stored as 0x7f and 0x7fc0. Index keys: c/2 bytes of e2m1 pairs and, in an array of their own, c/32 scale
 * bytes; 64 and 4 B. */

/* Attention of one layer. */
typedef struct {
  v4k_matrix wq_a, wq_b, wkv, wo_a, wo_b;
  const float *q_norm, *kv_norm; /* [rows of wq_a], [d] */
  const float *sink;             /* [H] */
  int64_t heads, head_dim, rope_dims, groups, window; /* groups of the output projection; d <= 1024 */
  float eps;
} v4k_attention;

/* q [n, H, d], normed, rotated; qr [n, rows of wq_a]. */
V4K_API int v4k_queries(const v4k_attention *a, const float *x, int64_t n, const float *turns, float *q, float *qr);

/* New window entries: entries [n, entry bytes]. */
V4K_API int v4k_window_entries(const v4k_attention *a, const float *x, int64_t n, const float *turns,
                               uint8_t *entries);

/* heads [n, H, d]: attention with sink of q over the window, `fresh` holding the entries of these n tokens and `ring`
 * those before (position p at p mod ring_rows, which is at least the window), and over the compressed entries: of token t those in selected[t, k] up to
 * the first -1, with only -1 behind it, or, with selected NULL, the first (t + 1) / ratio. Turned back by the query's
 * position. Then the last of `fresh` are put into `ring`. Keys are taken window first, each part in ascending order, in
 * blocks of 64 with online softmax, and runs of 256 are merged in order. ratio 0: no compressed entries. */
V4K_API int v4k_attend(const v4k_attention *a, const float *q, const float *turns, int64_t start, int64_t n,
                       uint8_t *ring, int64_t ring_rows, const uint8_t *fresh, const uint8_t *compressed,
                       int64_t ratio, const int32_t *selected, int64_t k, float *heads);

/* out [n, D] = wo_b(wo_a by groups of heads). */
V4K_API int v4k_attention_output(const v4k_attention *a, const float *heads, int64_t n, float *out);

/* Compressor (spec 3.6); with `index` its entries are index keys (3.7). */
typedef struct {
  v4k_matrix wkv, wgate; /* [C, D]: C the entry's dims, twice that for ratio 4, whose blocks overlap */
  const float *ape;      /* [ratio, C] */
  const float *norm;     /* [dims] */
  const float *freqs;    /* [R/2] */
  int64_t ratio, dims, rope_dims, index;
  float eps;
} v4k_compressor;

/* Rows that rings and tails should have beyond those they need: going back over up to so many of the tokens fed last is
 * then a matter of `start` alone, nothing that the state before them needs has been overwritten. */
#define V4K_SPARE_ROWS 16

/* What a compressor keeps: tails [slots, C] fp32 by position mod slots, slots >= ratio (2 * ratio for ratio 4, whose
 * blocks overlap) plus spare rows; and room for (start + n) / ratio entries. */
typedef struct {
  float *tail_kv, *tail_gate;
  uint8_t *entries, *scales; /* scales: of index keys only */
  int64_t slots;
  int64_t on_disk; /* entries are pages of a file: those selected are asked for before they are read */
} v4k_compressed;

/* Feed n tokens; entries start / ratio .. (start + n) / ratio - 1 are written. */
V4K_API int v4k_compress(const v4k_compressor *c, const float *x, int64_t start, int64_t n, const v4k_compressed *to);

typedef struct {
  v4k_matrix wq_b, weights_proj; /* [heads * dims, rows of wq_a], [heads, D] */
  int64_t heads, dims, rope_dims, top_k;
} v4k_indexer;

/* selected [n, top_k]: of token t the entries with the highest scores among the first (t + 1) / 4, ascending; the lower
 * id on a tie; -1 behind them. The choice is exact; a score that is NaN is never chosen. Scores are not kept: scratch,
 * whatever n, is that of 256 tokens' candidates, 24 * top_k bytes each (a few times that for the last of very few tokens
 * on many threads), beside the n queries. */
V4K_API int v4k_select(const v4k_indexer *ix, const float *x, const float *qr, const float *turns, int64_t start,
                       int64_t n, const uint8_t *keys, const uint8_t *scales, int32_t *selected);

/* Scores alone, of the first n_keys entries: q [heads, dims] as v4k_select rotates it, weights [heads], fewer than
 * 65,536. A head's product s is, over groups of 32 in order, the sum by fma onto 0 of an exact integer product times
 * (key scale * query scale); its term is weight * max(s, 0). The score is the tree over the terms of heads with weights
 * above zero, numbered by themselves in ascending order, plus the tree over those of the others, numbered likewise; that
 * of none is 0. As rounding is monotonic, each of the others can only lower it: v4k_select leaves them out where a key is
 * already too low to be chosen. For tests and benchmarks. */
V4K_API int v4k_index_scores(const v4k_indexer *ix, const float *q, const float *weights, const uint8_t *keys,
                             const uint8_t *scales, int64_t n_keys, float *out);

/* All of that for one layer. */
typedef struct {
  const v4k_attention *attention;
  const v4k_compressor *compressor; /* NULL: window only */
  const v4k_compressor *keys;       /* of index keys; with indexer, or both NULL */
  const v4k_indexer *indexer;
  int64_t number; /* of the layer in what a timeline remembers */
} v4k_attention_layer;

/* What a layer remembers of one timeline; parts as far as the layer has them. */
typedef struct {
  uint8_t *ring; /* see v4k_attend */
  const v4k_compressed *main, *keys;
  int64_t ring_rows;
} v4k_memory;

/* Consecutive new tokens of one timeline: `rows` of them from position `start` on; `memory` of its layers, by number. */
/* `together`: so many of its last tokens see each other, those behind them too, beside the window before the first of
 * them; in layers without compressed entries only. They are put into the ring as the others are: up to spare rows. */
typedef struct {
  const v4k_memory *memory;
  int64_t start, rows, together;
} v4k_span;

/* Bytes of scratch that v4k_self_attention needs for each token, or V4K_EARGUMENT. */
V4K_API int64_t v4k_attention_scratch(const v4k_attention_layer *l);

/* x, out [n, D], turns [n, R/2, 2]: the rows of all spans, one span behind the other; projections see all rows at once,
 * the rest goes span by span, each of its own timeline. For each span: queries, new window entries, compressed entries and
 * index keys; selection where more entries than top_k are visible to its last token; attention and its output. Equal to
 * those calls one after the other, and to a call for each span. */
V4K_API int v4k_self_attention(const v4k_attention_layer *l, const float *x, const float *turns, const v4k_span *spans,
                               int64_t n_spans, void *scratch, float *out);

typedef struct {
  v4k_matrix gate;        /* [E, D] */
  const float *bias;      /* [E]; NULL in hash layers */
  const int64_t *tid2eid; /* [V, top_k]; NULL in others */
  int64_t top_k;
  float scale;
} v4k_router;

/* ids and weights [n, top_k] (spec 3.10); tokens [n] are read in hash layers.
 * scores [n, E]: what the choice goes by, the bias included (none in hash layers). */
V4K_API int v4k_route(const v4k_router *r, const float *x, const int64_t *tokens, int64_t n, int64_t *ids,
                      float *weights, float *scores);

/* -- sampling --------------------------------------------------------------------------------------------------- */

/* Draw a token: logits [n], 1 <= n <= 2^18, and allowed [n] bytes, those to choose from, or NULL. v4kernels/sampling.py
 * is the same in a few lines. Temperature 0: the highest logit, the lowest id of equals; up to 10^6. Else logits are
 * divided by it, and the tokens kept are the top_k highest (0: all), of equals the lower ids; of these the ones with at
 * least min_p (0 <= min_p < 1) of the highest probability; of these the fewest, highest first, that make up top_p
 * (0 < top_p <= 1) of their mass. `random`, 64 of them, is where in the mass of these, by ascending id, the token lies.
 *
 * Probabilities are integers, 2^44 e^(logit - highest) to the nearest: sums do not depend on their order, nor does the
 * token on the ISA tier. norm: their sum over all tokens at temperature 1, so that the token's log-probability is
 * logit - highest - ln(norm / 2^44), within 10^-8. V4K_EVALUE for a logit that is NaN or plus infinity, and where all that
 * may be chosen from are minus infinity. */
V4K_API int v4k_sample(const float *logits, const uint8_t *allowed, int64_t n, double temperature, int64_t top_k,
                       double min_p, double top_p, uint64_t random, int64_t *token, int64_t *norm);

/* y = a function of x [n], as results are made of it; y may be x. For tests. */
enum { V4K_EXP = 1, V4K_SQRT_SOFTPLUS = 2 };
V4K_API int v4k_elementary(int64_t function, const float *x, int64_t n, float *y);

/* Read `bytes` bytes (rounded down to 4,096) with all threads as fast as possible: the probe kernels are compared to.
 * Returns a checksum. */
V4K_API uint64_t v4k_read_probe(const void *data, int64_t bytes);

/* -- experts for a device ----------------------------------------------------------------------------------------
 * A device computes a step. Of each layer it hands the experts that it does not hold to a thread of this process: as a
 * job in a ring, memory that both sides see.
 *
 * The ring, little-endian, every field at a multiple of 64 bytes. Words, one writer each (when a step begins the server
 * also clears error and failed, and sets served to posted):
 *   0    uint64 posted   number of the last job that is there: the device
 *   64   uint64 served   number of the last job that is done: the server
 *   128  int64  error    why the server gave up, a V4K_E code, else 0: the server
 *   192  int64  failed   why the device gave up: the device
 *   256  int64  process  that serves the ring, 0 if none does: the server
 * Jobs from byte 320 on, `jobs` of them, job number s at s mod jobs:
 *   0    uint64 number, int64 layer, rows, pairs
 *   64   int32 row [most pairs], int32 expert [most pairs], float weight [most pairs]
 *   then float x [most pairs, D], of which the first `rows` rows count; float y [most pairs, D].
 * Result: y[p] = experts[expert[p]](x[row[p]]) * weight[p], exactly the value that v4k_experts adds to a row's sum, so
 * that adding a row's pairs by ascending id gives its bits, whoever computes them. The order of pairs has no meaning.
 *
 * Order of memory. The device writes all of a job, then `posted` with release; the server reads `posted` with acquire,
 * then the job. The server writes y, then `served` with release; the device reads `served` with acquire, then y. So job
 * s + jobs may be written once s is served and its y is read. Between begin and end of a step jobs have consecutive
 * numbers from posted + 1 on. */
typedef struct {
  void *memory;             /* v4k_ring_bytes of it, aligned to 64, zeros at first */
  int64_t jobs, pairs, dim; /* in the ring; most pairs of a job; D, a multiple of 32 */
} v4k_ring;

/* Experts of one layer. Those whose w1.codes is NULL are not in memory. */
typedef struct {
  const v4k_expert *experts;
  int64_t n_experts;
  float limit;
} v4k_served_layer;

/* Does the job of this number, which asks for an expert that is not in memory: writes its y. 0, or anything else if that
 * failed. Called from the serving thread, with no lock held. It may change the layers' experts. */
typedef int (*v4k_fetch)(void *context, uint64_t number);

/* Bytes of a ring, or V4K_EARGUMENT. */
V4K_API int64_t v4k_ring_bytes(const v4k_ring *ring);

/* The device's side, for devices that are host code. Post the job of this number, which is written. */
V4K_API void v4k_ring_post(const v4k_ring *ring, uint64_t number);

/* Wait until it is served. V4K_ETIMEOUT after `timeout_us`, which becomes `failed`; V4K_ESTOPPED where nobody serves;
 * else the error of the server. Once a wait has failed, those that follow until the next step begins fail at once. */
V4K_API int v4k_ring_wait(const v4k_ring *ring, uint64_t number, int64_t timeout_us);

/* Start the thread that serves a ring; it sleeps between steps. `ring` and `layers` are copied, what they point to must
 * outlive the server; `fetch` may be NULL if all experts are in memory. Neither side waits longer than `timeout_us` for
 * the other. V4K_EMEMORY if the system allows no thread. */
V4K_API int v4k_serve_start(const v4k_ring *ring, const v4k_served_layer *layers, int64_t n_layers, v4k_fetch fetch,
                            void *context, int64_t timeout_us, void **server);

/* A step begins: forget what was posted or went wrong before, serve from now on. In a child that was forked, where there
 * is no such thread, another one is started first; the ring must not be memory that the child shares with its parent.
 * V4K_ETIMEOUT if the thread is still busy with the step before. */
V4K_API int v4k_serve_begin(void *server);

/* The step is over, or given up: returns when the thread touches neither ring nor experts any more. V4K_ETIMEOUT if it
 * does not come to rest; else the error of the step. */
V4K_API int v4k_serve_end(void *server);

/* End the thread; who waits for it fails with V4K_ESTOPPED. V4K_ETIMEOUT if it does not end, as where a disk hangs: then
 * the server, and all that it was given, must stay. Else it is gone. In a child that was forked nothing is waited for. */
V4K_API int v4k_serve_stop(void *server);

/* -- memory and files ------------------------------------------------------------------------------------------
 * What systems do differently. Addresses and sizes are multiples of the system's page, but for sizes in v4k_file_read. */

/* Private memory: address space of which nothing is used yet; NULL where there is none. */
V4K_API void *v4k_reserve(int64_t bytes);

/* A part of it may be written from now on; what was committed before stays as it is, the rest is zeros. V4K_EMEMORY where
 * the system counts what is promised and has no more. */
V4K_API int v4k_commit(void *at, int64_t bytes);

/* Give the contents of a part back; it must be committed again before it is used. */
V4K_API void v4k_discard(void *at, int64_t bytes);

/* Give back all of what v4k_reserve gave. */
V4K_API void v4k_release(void *at, int64_t bytes);

/* Have a committed part in large pages, have its pages before they are touched: V4K_EARGUMENT where there is no such
 * thing, which changes nothing. */
V4K_API int v4k_large_pages(void *at, int64_t bytes);
V4K_API int v4k_populate(void *at, int64_t bytes);

/* Open a file to read, its path in UTF-8; `direct`: past the system's cache, so that reads are of whole pages at page
 * offsets into memory that begins at a page. The file, or minus an error number of C; -EINVAL where it cannot be direct. */
V4K_API int64_t v4k_file_open(const char *path, int direct);

/* One read at an offset, which may be short: its bytes, 0 at the end, or minus an error number. From any thread. */
V4K_API int64_t v4k_file_read(int64_t file, void *to, int64_t bytes, int64_t offset);

/* What tells whether a file is the one it was: number, bytes, time of the last change. V4K_EARGUMENT if it cannot be told. */
V4K_API int v4k_file_identity(int64_t file, int64_t identity[3]);

/* Have the cache drop what was read, where it can be told to. */
V4K_API void v4k_file_forget(int64_t file, int64_t offset, int64_t bytes);

V4K_API void v4k_file_close(int64_t file);

#ifdef __cplusplus
}
#endif
#endif
