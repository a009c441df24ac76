/* v4k: the C ABI of the CPU kernels. Plain pointers and sizes; no Python, no torch, no exceptions.
 *
 * Numbers. Activations are quantized to int8 with one fp32 scale per 32 consecutive inputs. Of every group of 32 the
 * dot product of codes is an exact integer d[g]; the output is the sum over groups of d[g] * (wscale[g] * xscale[g])
 * in fp32, in this order: group g is added by fused multiply-add to lane g mod 8, lanes in ascending g; then
 * ((l0+l4)+(l2+l6)) + ((l1+l5)+(l3+l7)). The order does not depend on ISA tier, thread count or number of tokens, so
 * neither do the bits of the result. Inputs that are not finite give NaN outputs.
 *
 * Memory. The caller owns every buffer; the library keeps no pointer after a call. Weights need no alignment. All
 * arrays are C-contiguous. Calls may come from any thread; calls that share the pool wait for each other.
 *
 * Functions that return int give 0, or a V4K_E code; outputs are then unspecified. */
#ifndef V4K_H
#define V4K_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define V4K_ABI_VERSION 1
#define V4K_API __attribute__((visibility("default")))
#define V4K_GROUP 32 /* inputs per scale, of weights and of activations */

/* Weight formats. Packed nibbles: the low one is the even input. */
enum {
  V4K_FP4 = 1,  /* codes [rows, cols/2] e2m1 pairs; scale [rows, cols/32] bytes b = 2^(b-127) */
  V4K_INT8 = 2, /* codes [rows, cols] int8; scale [rows, cols/32] bf16 */
  V4K_INT4 = 3, /* codes [rows, cols/2] pairs, value = nibble - 8; scale [rows, cols/32] bf16 */
};

enum {
  V4K_OK = 0,
  V4K_EARGUMENT = -1, /* null pointer, size or format out of range, expert id outside [0, n_experts) */
  V4K_EMEMORY = -2,   /* no memory for scratch */
};

typedef struct {
  const void *codes;
  const void *scale;
  int64_t rows;   /* outputs */
  int64_t cols;   /* inputs, a multiple of 32 */
  int64_t format; /* V4K_FP4, V4K_INT8 or V4K_INT4 */
} v4k_matrix;

/* w1 (gate) and w3 (up) [I, D], w2 (down) [D, I]; D and I multiples of 32. */
typedef struct {
  v4k_matrix w1, w3, w2;
} v4k_expert;

/* V4K_ABI_VERSION the library was built with. */
V4K_API int v4k_abi_version(void);

/* Name of the ISA tier in use: scalar, avx2, avx512 or neon. Chosen at first use: the best this machine can run, or
 * the one named by the environment variable V4_ISA if that is lower. */
V4K_API const char *v4k_isa(void);

/* Names of the tiers that may be chosen (see v4k_isa), lowest first, separated by blanks. */
V4K_API const char *v4k_isa_tiers(void);

/* Use the named tier from now on; V4K_EARGUMENT unless v4k_isa_tiers lists it. For tests; not during another call. */
V4K_API int v4k_set_isa(const char *name);

/* Threads that compute, the calling one included. At start: the CPUs this process may run on. */
V4K_API int v4k_threads(void);

/* Set the above; 1 <= n <= 1024. */
V4K_API int v4k_set_threads(int n);

/* Quantize activations: x [n, k] fp32 -> q [n, k] int8 in [-127, 127], scale [n, k/32] fp32, x ~ q * scale.
 * scale = max(amax/127, 2^-120), q = x/scale rounded to the nearest, ties to even; for a group that is not finite NaN
 * and q = 0. k a multiple of 32. */
V4K_API int v4k_quantize(const float *x, int64_t n, int64_t k, int8_t *q, float *scale);

/* Linear with activation quantization: y[t, r] = sum over i of w[r, i] * x[t, r / (rows/groups), i].
 * w [rows, cols]; x [n, groups, cols] fp32; y [n, rows] fp32, overwritten; groups divides rows, 1 for a plain one. */
V4K_API int v4k_linear(const v4k_matrix *w, int64_t groups, const float *x, int64_t n, float *y);

/* One layer's expert MLPs for all tokens:
 *   out[t] += shared(x[t]) + sum over j of experts[ids[t, j]](x[t]) * weights[t, j]   (inside, before w2)
 * with expert(x) = w2(silu(min(w1 x, limit)) * clamp(w3 x, -limit, limit) * weight), the input of w2 quantized too.
 * experts [n_experts]; shared may be NULL; x [n, D] fp32; ids [n, top_k]; weights [n, top_k] fp32; out [n, D] fp32.
 * Added to out in this order: shared, then the token's experts by ascending id. top_k may be 0. All experts have one
 * format and one I; the shared one may have others. Scratch, whatever n: that of 8,192 (token, expert) pairs, about
 * 1.25 * (I + D) bytes each. */
V4K_API int v4k_experts(const v4k_expert *experts, int64_t n_experts, const v4k_expert *shared, const float *x,
                        int64_t n, const int64_t *ids, const float *weights, int64_t top_k, float limit, float *out);

/* Read `bytes` bytes (rounded down to 4,096) with all threads as fast as possible: the probe kernels are compared to.
 * Returns a checksum. */
V4K_API uint64_t v4k_read_probe(const void *data, int64_t bytes);

#ifdef __cplusplus
}
#endif
#endif
