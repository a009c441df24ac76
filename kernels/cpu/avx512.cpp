// AVX-512 with VNNI: dpbusd adds four products of an unsigned and a signed byte to each int32 without saturation.
#include <immintrin.h>
#include <stdint.h>

#include "tier.h"

#define V4K_HAS_TILES

namespace v4k_avx512 {

static const int TILE_ROWS = 32, TILE_TOKENS = 4, KEY_ROWS = 32;
static const bool UNSIGNED8 = true;

template <int F>
static constexpr int steps() {
  return 8;
}

template <int F>
static constexpr int behind() {
  return 0;
}

#include "x86.inl"

// Dots of 4 groups of nibbles: 4 int32 partial sums of group k in 128-bit lane k.
template <int F>
static inline __m512i quad_dots(const uint8_t *codes, const int8_t *q) {
  const __m512i low_nibble = _mm512_set1_epi8(15);
  const __m512i packed = _mm512_loadu_si512(codes);
  __m512i even = _mm512_and_si512(packed, low_nibble);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low_nibble);
  if (F == V4K_FP4) {
    const __m128i doubled = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);  // plus 12
    const __m512i table = _mm512_broadcast_i32x4(doubled);
    even = _mm512_shuffle_epi8(table, even);
    odd = _mm512_shuffle_epi8(table, odd);
  }
  const __m512i d = _mm512_dpbusd_epi32(_mm512_setzero_si512(), even, _mm512_loadu_si512(q));
  return _mm512_dpbusd_epi32(d, odd, _mm512_loadu_si512(q + 64));
}

// Dots of 2 INT8 groups: 8 int32 partial sums each.
static inline __m512i byte_dots(const uint8_t *codes, const int8_t *q) {
  const __m512i w = _mm512_xor_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8(-128));
  return _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, _mm512_loadu_si512(q));
}

// Per 128-bit lane, sums of neighbours: a0+a2, b0+b2, a1+a3, b1+b3.
static inline __m512i fold(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}

// Dots of 8 groups of Q3 or Q2. Sums of the two runs of each, one dword behind the other, then times their multipliers.
template <int F>
static inline __m256i fours_dots(const Row &w, const int8_t *q, const int32_t *offset) {
  static constexpr v4k_levels levels = v4k_levels_of(F, 16);
  const __m512i nibble = _mm512_set1_epi8(15), bytes = _mm512_loadu_si512(w.codes);
  const __m512i low = _mm512_and_si512(bytes, nibble), high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
  __m512i n[4] = {low, low, high, high};
  if (F == V4K_Q3) {
    const __m512i twice = _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7),
        _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)w.second)));
    const __m512i shifts = _mm512_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4);
    n[1] = high;
    n[2] = _mm512_and_si512(_mm512_srlv_epi32(twice, shifts), nibble);
    n[3] = _mm512_or_si512(_mm512_and_si512(low, _mm512_set1_epi8(8)),
                           _mm512_or_si512(_mm512_and_si512(high, _mm512_set1_epi8(4)),
                                           _mm512_and_si512(n[2], _mm512_set1_epi8(2))));
  }
  __m512i d[2] = {_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)offset)), _mm512_setzero_si512()};
  for (int v = 0; v < 4; ++v) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)levels.of[v]));
    d[v % 2] = _mm512_dpbusd_epi32(d[v % 2], _mm512_shuffle_epi8(table, n[v]), _mm512_loadu_si512(q + 64 * v));
  }
  const __m512i m = _mm512_cvtepi8_epi32(multipliers(w.scale));
  const __m512i runs = _mm512_mullo_epi32(_mm512_add_epi32(d[0], d[1]), m);
  return _mm512_cvtepi64_epi32(_mm512_add_epi32(runs, _mm512_srli_epi64(runs, 32)));
}

template <int F>
static inline __m256i block_dots(const Row &w, const int8_t *q, const int32_t *offset) {
  if (Format<F>::fours) return fours_dots<F>(w, q, offset);
  const uint8_t *codes = w.codes;
  const __m256i off = _mm256_loadu_si256((const __m256i *)offset);
  if (F == V4K_INT8) {
    const __m512i a = fold(byte_dots(codes, q), byte_dots(codes + 64, q + 64));
    const __m512i b = fold(byte_dots(codes + 128, q + 128), byte_dots(codes + 192, q + 192));
    // lanes 0, 1: halves of groups 0 2 4 6; lanes 2, 3: of groups 1 3 5 7
    const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m512i d = _mm512_add_epi32(c, _mm512_shuffle_i32x4(c, c, 0xb1));
    const __m512i order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm256_add_epi32(_mm512_castsi512_si256(_mm512_permutexvar_epi32(order, d)), off);
  }
  const __m512i a = fold(quad_dots<F>(codes, q), quad_dots<F>(codes + 64, q + 128));
  const __m512i b = _mm512_add_epi32(a, _mm512_shuffle_epi32(a, (_MM_PERM_ENUM)0x4e));  // lane k: groups k, k + 4
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m256i dots = _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, b));
  return _mm256_add_epi32(dots, _mm256_madd_epi16(off, _mm256_set1_epi16(1)));
}

template <int F>
static inline Lanes block(const Row &w, const int8_t *q, const float *xs, const int32_t *offset, Lanes acc) {
  const __m256 dots = _mm256_cvtepi32_ps(block_dots<F>(w, q, offset));
  return Lanes{_mm256_fmadd_ps(dots, _mm256_mul_ps(scales8<F>(w), _mm256_loadu_ps(xs)), acc.v)};
}

#include "rows.inl"

// Wide of fused.inl: 16 numbers.
#define V4K_OWN_WIDE
struct Wide {
  __m512 v;
};
static const int WIDE = 16;

static inline Wide splat_wide(float x) { return Wide{_mm512_set1_ps(x)}; }
static inline Wide load_wide(const float *p) { return Wide{_mm512_loadu_ps(p)}; }
static inline void store_wide(float *p, Wide a) { _mm512_storeu_ps(p, a.v); }
static inline Wide add(Wide a, Wide b) { return Wide{_mm512_add_ps(a.v, b.v)}; }
static inline Wide mul(Wide a, Wide b) { return Wide{_mm512_mul_ps(a.v, b.v)}; }
static inline Wide fma(Wide a, Wide b, Wide c) { return Wide{_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline Wide max(Wide a, Wide b) { return Wide{_mm512_max_ps(a.v, b.v)}; }

static inline Wide load_bf16_wide(const uint8_t *p) {
  const __m512i halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
  return Wide{_mm512_castsi512_ps(_mm512_slli_epi32(halves, 16))};
}

static const int ROWS_ONCE = 4, PAIR_ROWS = 4, PAIR_PARTS = 2;

#include "elementary.inl"
#include "fused.inl"

// -- tiles ---------------------------------------------------------------------------------------------------------

typedef __m512i Quads;
typedef __m512i Dots;

static inline Quads load_quads(const uint8_t *p) { return _mm512_load_si512(p); }

static inline Quads splat_quads(const int8_t *q) {
  int32_t four;
  __builtin_memcpy(&four, q, 4);
  return _mm512_set1_epi32(four);
}

template <int F>
static inline Dots first_dots(const int32_t *offset) {
  const __m512i off = _mm512_set1_epi32(*offset);
  if (F == V4K_INT8) return off;
  return _mm512_madd_epi16(off, _mm512_set1_epi16(Format<F>::fours ? 128 / V4K_FORMATS[F].zero : 1));  // panels: plus 128
}

template <int F>
static inline Dots add_dots(Dots d, Quads w, Quads q) {
  return _mm512_dpbusd_epi32(d, w, q);
}

template <int F>
static inline Wide product(Dots d, const uint8_t *) {
  return Wide{_mm512_cvtepi32_ps(d)};
}

template <int F>
static inline const int8_t *in_order(const int8_t *q, int8_t *) {
  return q;
}

#include "tiles.inl"

// -- index scores --------------------------------------------------------------------------------------------------

static const int INDEX_HEADS = 4;

static inline unsigned above(Wide a, Wide least) { return _mm512_cmp_ps_mask(a.v, least.v, _CMP_GT_OQ); }

static inline Dots no_dots() { return _mm512_setzero_si512(); }

static inline Wide from_dots(Dots d, int32_t offset) {
  return Wide{_mm512_cvtepi32_ps(_mm512_add_epi32(d, _mm512_set1_epi32(offset)))};
}

#include "index.inl"
#include "sample.inl"
#include "lowbit.inl"
#include "carry.inl"

}  // namespace v4k_avx512

extern "C" const v4k_tier v4k_tier_avx512 = {
    "avx512",                  v4k_avx512::quantize,      v4k_avx512::rows,
    v4k_avx512::swiglu,        v4k_avx512::rows_fp32,     v4k_avx512::sum_squares,
    v4k_avx512::rms_norm,      v4k_avx512::exponentials,  v4k_avx512::sqrt_softplus,
    v4k_avx512::unpack,        v4k_avx512::attend,        v4k_avx512::pool,
    v4k_avx512::index_panel,   v4k_avx512::index_scores,  v4k_avx512::logit_peak,
    v4k_avx512::logit_weights,  v4k_avx512::encode_lowbit,  v4k_avx512::carry_lowbit,
    v4k_avx512::carry_step,     v4k_avx512::read};
