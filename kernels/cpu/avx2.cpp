// AVX2 and FMA. Bounds that keep 16-bit arithmetic exact, with |q| <= 127:
//   nibbles   maddubs of codes <= 24: pairs <= 6,096. An int16 lane sums 16 products of signed codes, |sum| <=
//             16 * 12 * 127 = 24,384; the unsigned form may wrap on the way, but with the (exact) offset it is that sum
//             modulo 2^16.
//   Q3, Q2    maddubs of level + 16 <= 23: pairs <= 5,842. In rows an int16 lane sums 8 products, at most 23,368. In tiles
//             it sums the 16 of one run, which are within 16 * 10 * 127 = 20,320 with the offset, 16 * 16 * 127 = 32,512
//             at most; what wraps on the way is undone as above.
//   INT8      in rows |code| <= 128 by the sign trick: pairs <= 2 * 128 * 127 = 32,512, which int16 holds. A second pair
//             it would not hold, so tiles have int16 codes and sum in int32, within 32 * 128 * 127 = 520,192.
#include <immintrin.h>
#include <stdint.h>

#include "tier.h"

#define V4K_HAS_TILES

namespace v4k_avx2 {

static const int TILE_ROWS = 32, TILE_TOKENS = 2, KEY_ROWS = 16;
static const bool UNSIGNED8 = false;

template <int F>
static constexpr int steps() {
  return F == V4K_INT8 ? 16 : 8;
}

template <int F>
static constexpr int behind() {
  return V4K_FORMATS[F].scale == V4K_SCALE_RUNS;
}

#include "x86.inl"

// Dots of 2 groups of nibbles: 8 int16 partial sums of the first in the low half, of the second in the high one.
template <int F>
static inline __m256i pair_dots(const uint8_t *codes, const int8_t *q) {
  const __m256i low_nibble = _mm256_set1_epi8(15);
  const __m256i packed = _mm256_loadu_si256((const __m256i *)codes);
  const __m256i even = unsigned_codes<F>(_mm256_and_si256(packed, low_nibble));
  const __m256i odd = unsigned_codes<F>(_mm256_and_si256(_mm256_srli_epi16(packed, 4), low_nibble));
  return _mm256_add_epi16(_mm256_maddubs_epi16(even, _mm256_loadu_si256((const __m256i *)q)),
                          _mm256_maddubs_epi16(odd, _mm256_loadu_si256((const __m256i *)(q + 64))));
}

// Per half, of pairs of int16: a0+a2, b0+b2, a1+a3, b1+b3.
static inline __m256i fold(__m256i a, __m256i b) {
  return _mm256_add_epi16(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
}

// Eight int32 partial sums of one INT8 group.
static inline __m256i byte_dots(const uint8_t *codes, const int8_t *q) {
  const __m256i w = _mm256_loadu_si256((const __m256i *)codes);
  const __m256i x = _mm256_sign_epi8(_mm256_loadu_si256((const __m256i *)q), w);
  return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), x), _mm256_set1_epi16(1));
}

// Q3 and Q2: of 4 groups, `half` of a block, 4 int16 partial sums each, two of the first run and two of the second.
template <int F>
static inline __m256i half_dots(const Row &w, int half, const int8_t *q) {
  __m256i n2 = _mm256_setzero_si256(), c[4];
  if (F == V4K_Q3) {
    const __m256i bytes = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(w.second + 16 * half)));
    const __m256i twice = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
    const __m256i low = _mm256_srlv_epi32(twice, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
    n2 = _mm256_and_si256(low, _mm256_set1_epi8(15));
  }
  four_levels<F>(_mm256_loadu_si256((const __m256i *)(w.codes + 32 * half)), n2, c);
  __m256i d[4];
  for (int v = 0; v < 4; ++v)
    d[v] = _mm256_maddubs_epi16(c[v], _mm256_loadu_si256((const __m256i *)(q + 64 * v + 32 * half)));
  return _mm256_add_epi16(_mm256_add_epi16(d[0], d[1]), _mm256_add_epi16(d[2], d[3]));
}

template <int F>
static inline __m256i fours_dots(const Row &w, const int8_t *q, const int32_t *offset) {
  const __m256i m = _mm256_cvtepi8_epi16(multipliers(w.scale));  // a dword of each group
  const __m256i order = _mm256_permute4x64_epi64(m, 0xd8);        // groups 0 1 4 5, 2 3 6 7
  const __m256i a = _mm256_madd_epi16(half_dots<F>(w, 0, q), _mm256_unpacklo_epi16(order, order));
  const __m256i b = _mm256_madd_epi16(half_dots<F>(w, 1, q), _mm256_unpackhi_epi16(order, order));
  const __m256i dots = _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8);
  return _mm256_add_epi32(dots, _mm256_madd_epi16(_mm256_loadu_si256((const __m256i *)offset), m));
}

template <int F>
static inline __m256i block_dots(const Row &w, const int8_t *q, const int32_t *offset) {
  if (Format<F>::fours) return fours_dots<F>(w, q, offset);
  const uint8_t *codes = w.codes;
  if (F == V4K_INT8) {
    __m256i h[4];
    for (int k = 0; k < 4; ++k)
      h[k] = _mm256_hadd_epi32(byte_dots(codes + 64 * k, q + 64 * k), byte_dots(codes + 64 * k + 32, q + 64 * k + 32));
    const __m256i a = _mm256_hadd_epi32(h[0], h[1]), b = _mm256_hadd_epi32(h[2], h[3]);
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
  }
  const __m256i a = fold(pair_dots<F>(codes, q), pair_dots<F>(codes + 32, q + 32));            // groups 0 2, 1 3
  const __m256i b = fold(pair_dots<F>(codes + 64, q + 128), pair_dots<F>(codes + 96, q + 160));  // 4 6, 5 7
  const __m256i even = _mm256_permute2x128_si256(a, b, 0x20), odd = _mm256_permute2x128_si256(a, b, 0x31);
  const __m256i dots = _mm256_add_epi16(fold(even, odd), _mm256_loadu_si256((const __m256i *)offset));
  return _mm256_madd_epi16(dots, _mm256_set1_epi16(1));
}

template <int F>
static inline Lanes block(const Row &w, const int8_t *q, const float *xs, const int32_t *offset, Lanes acc) {
  const __m256 dots = _mm256_cvtepi32_ps(block_dots<F>(w, q, offset));
  return Lanes{_mm256_fmadd_ps(dots, _mm256_mul_ps(scales8<F>(w), _mm256_loadu_ps(xs)), acc.v)};
}

#include "rows.inl"

static const int ROWS_ONCE = 1, PAIR_ROWS = 4, PAIR_PARTS = 1;

#include "elementary.inl"
#include "fused.inl"

// -- tiles ---------------------------------------------------------------------------------------------------------

typedef __m256i Quads;
typedef __m256i Dots;

static inline __m256i load_dword(const void *p) { return _mm256_castps_si256(_mm256_broadcast_ss((const float *)p)); }

static inline Quads load_quads(const uint8_t *p) {
  __m256i codes = _mm256_load_si256((const __m256i *)p);
  __asm__("" : "+x"(codes));  // in a register: not loaded again for every token
  return codes;
}

static inline Quads splat_quads(const int8_t *q) { return load_dword(q); }

template <int F>
static inline Dots first_dots(const int32_t *offset) {
  return F == V4K_INT8 ? _mm256_setzero_si256() : load_dword(offset);
}

template <int F>
static inline Dots add_dots(Dots d, Quads w, Quads q) {
  d = F == V4K_INT8 ? _mm256_add_epi32(d, _mm256_madd_epi16(w, q)) : _mm256_add_epi16(d, _mm256_maddubs_epi16(w, q));
  __asm__("" : "+x"(d));  // in this order: made a tree, the sums would not fit the registers
  return d;
}

// `multipliers` of Q3 and Q2: of both runs in every dword.
template <int F>
static inline Wide product(Dots d, const uint8_t *multipliers) {
  if (F == V4K_INT8) return Wide{_mm256_cvtepi32_ps(d)};
  const __m256i times = behind<F>() ? _mm256_load_si256((const __m256i *)multipliers) : _mm256_set1_epi16(1);
  return Wide{_mm256_cvtepi32_ps(_mm256_madd_epi16(d, times))};
}

// Inputs of a block in the order of a panel: of a group of INT8 the even ones as int16, then the odd ones; of Q3 and Q2,
// whose quads are two inputs of each run, bytes 0 1 4 5, 2 3 6 7 of every eight.
template <int F>
static inline const int8_t *in_order(const int8_t *q, int8_t *to) {
  if (F != V4K_INT8 && !Format<F>::fours) return q;
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  for (int i = 0; i < V4K_BLOCK * V4K_GROUP / 32; ++i) {
    const __m256i v = _mm256_loadu_si256((const __m256i *)q + i);
    if (F == V4K_INT8) {
      _mm256_store_si256((__m256i *)to + 2 * i, even_bytes(v));
      _mm256_store_si256((__m256i *)to + 2 * i + 1, odd_bytes(v));
    } else {
      _mm256_store_si256((__m256i *)to + i, _mm256_shuffle_epi8(v, order));
    }
  }
  return to;
}

#include "tiles.inl"

// -- index scores: codes + 12 <= 24 and |q| <= 12, so an int16 holds the sum of 16 products -------------------------

static const int INDEX_HEADS = 4;

static inline Dots no_dots() { return _mm256_setzero_si256(); }

static inline Wide from_dots(Dots d, int32_t offset) {
  const __m256i sums = _mm256_madd_epi16(d, _mm256_set1_epi16(1));
  return Wide{_mm256_cvtepi32_ps(_mm256_add_epi32(sums, _mm256_set1_epi32(offset)))};
}

static inline unsigned above(Wide a, Wide least) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, least.v, _CMP_GT_OQ)); }

#include "index.inl"
#include "sample.inl"
#include "lowbit.inl"
#include "carry.inl"

}  // namespace v4k_avx2

extern "C" const v4k_tier v4k_tier_avx2 = {
    "avx2",                  v4k_avx2::quantize,      v4k_avx2::rows,
    v4k_avx2::swiglu,        v4k_avx2::rows_fp32,     v4k_avx2::sum_squares,
    v4k_avx2::rms_norm,      v4k_avx2::exponentials,  v4k_avx2::sqrt_softplus,
    v4k_avx2::unpack,        v4k_avx2::attend,        v4k_avx2::pool,
    v4k_avx2::index_panel,   v4k_avx2::index_scores,  v4k_avx2::logit_peak,
    v4k_avx2::logit_weights,  v4k_avx2::encode_lowbit,  v4k_avx2::carry_lowbit,
    v4k_avx2::carry_step,     v4k_avx2::read};
