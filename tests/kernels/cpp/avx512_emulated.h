// The AVX-512 intrinsics that cpu/avx512.cpp uses, as loops over arrays, so that its logic can be checked on a machine
// without them: g++ -mavx2 -mfma -include avx512_emulated.h. Slow, and only for that.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace emulated {

struct Int {
  union {
    int8_t b[64];
    int16_t w[32];
    int32_t d[16];
    int64_t q[8];
  };
};
struct Float {
  float f[16];
};

template <class Work>
inline Int each(int n, Work work) {
  Int r;
  for (int i = 0; i < n; ++i) work(r, i);
  return r;
}

inline Int set1_epi8(int v) { return each(64, [&](Int &r, int i) { r.b[i] = (int8_t)v; }); }
inline Int set1_epi16(int v) { return each(32, [&](Int &r, int i) { r.w[i] = (int16_t)v; }); }
inline Int set1_epi32(int v) { return each(16, [&](Int &r, int i) { r.d[i] = v; }); }
inline Int zero() { return set1_epi32(0); }
inline Int load(const void *p) {
  Int r;
  memcpy(&r, p, 64);
  return r;
}
inline Int and_(Int a, Int b) { return each(8, [&](Int &r, int i) { r.q[i] = a.q[i] & b.q[i]; }); }
inline Int or_(Int a, Int b) { return each(8, [&](Int &r, int i) { r.q[i] = a.q[i] | b.q[i]; }); }
inline Int xor_(Int a, Int b) { return each(8, [&](Int &r, int i) { r.q[i] = a.q[i] ^ b.q[i]; }); }
inline Int add32(Int a, Int b) { return each(16, [&](Int &r, int i) { r.d[i] = a.d[i] + b.d[i]; }); }
inline Int srl16(Int a, int n) { return each(32, [&](Int &r, int i) { r.w[i] = (int16_t)((uint16_t)a.w[i] >> n); }); }
inline Int srl64(Int a, int n) { return each(8, [&](Int &r, int i) { r.q[i] = (int64_t)((uint64_t)a.q[i] >> n); }); }
inline Int srlv32(Int a, Int n) { return each(16, [&](Int &r, int i) { r.d[i] = (int32_t)((uint32_t)a.d[i] >> n.d[i]); }); }
inline Int mul32(Int a, Int b) { return each(16, [&](Int &r, int i) { r.d[i] = a.d[i] * b.d[i]; }); }
inline Int broadcast128(__m128i v) {
  Int r;
  for (int k = 0; k < 4; ++k) memcpy(r.b + 16 * k, &v, 16);
  return r;
}
inline Int shuffle8(Int a, Int at) {
  return each(64, [&](Int &r, int i) { r.b[i] = at.b[i] & 0x80 ? 0 : a.b[i / 16 * 16 + (at.b[i] & 15)]; });
}
inline Int dpbusd(Int acc, Int u, Int s) {
  return each(16, [&](Int &r, int i) {
    r.d[i] = acc.d[i];
    for (int k = 0; k < 4; ++k) r.d[i] += (int)(uint8_t)u.b[4 * i + k] * s.b[4 * i + k];
  });
}
inline Int madd16(Int a, Int b) {
  return each(16, [&](Int &r, int i) { r.d[i] = a.w[2 * i] * b.w[2 * i] + a.w[2 * i + 1] * b.w[2 * i + 1]; });
}
inline Int unpack32(Int a, Int b, int high) {
  return each(16, [&](Int &r, int i) { r.d[i] = (i & 1 ? b : a).d[i / 4 * 4 + 2 * high + (i & 3) / 2]; });
}
inline Int unpack64(Int a, Int b, int high) {
  return each(8, [&](Int &r, int i) { r.q[i] = (i & 1 ? b : a).q[i / 2 * 2 + high]; });
}
inline Int shuffle32(Int a, int c) {
  return each(16, [&](Int &r, int i) { r.d[i] = a.d[i / 4 * 4 + (c >> 2 * (i & 3) & 3)]; });
}
inline Int shuffle128(Int a, Int b, int c) {
  Int r;
  for (int k = 0; k < 4; ++k) memcpy(r.b + 16 * k, (k < 2 ? a : b).b + 16 * (c >> 2 * k & 3), 16);
  return r;
}
inline Int permute32(Int at, Int a) { return each(16, [&](Int &r, int i) { r.d[i] = a.d[at.d[i] & 15]; }); }
template <class... T>
inline Int set(T... v) {
  const int32_t d[] = {v...};
  return load(d);
}
inline Int shift_left32(Int a, int n) {
  return each(16, [&](Int &r, int i) { r.d[i] = (int32_t)((uint32_t)a.d[i] << n); });
}
inline Int widen16(__m256i v) {
  uint16_t w[16];
  memcpy(w, &v, 32);
  return each(16, [&](Int &r, int i) { r.d[i] = w[i]; });
}
inline Int widen8(__m128i v) {
  int8_t b[16];
  memcpy(b, &v, 16);
  return each(16, [&](Int &r, int i) { r.d[i] = b[i]; });
}
inline Int widen16_signed(__m256i v) {
  int16_t w[16];
  memcpy(w, &v, 32);
  return each(16, [&](Int &r, int i) { r.d[i] = w[i]; });
}
inline __m256i narrow64(Int a) {
  int32_t d[8];
  for (int i = 0; i < 8; ++i) d[i] = (int32_t)a.q[i];
  return _mm256_loadu_si256((const __m256i *)d);
}
inline Int from256(__m256i v) {
  Int r = zero();
  memcpy(&r, &v, 32);
  return r;
}
inline __m256i low256(Int a) { return _mm256_loadu_si256((const __m256i *)a.b); }
inline Float load_ps(const float *p) {
  Float r;
  memcpy(&r, p, 64);
  return r;
}
inline void store_ps(float *p, Float v) { memcpy(p, &v, 64); }
inline Float set1_ps(float v) {
  Float r;
  for (float &f : r.f) f = v;
  return r;
}
inline Float to_float(Int a) {
  Float r;
  for (int i = 0; i < 16; ++i) r.f[i] = (float)a.d[i];
  return r;
}
inline Float bits_of(Int a) { return load_ps((const float *)a.d); }
inline Float add(Float a, Float b) {
  for (int i = 0; i < 16; ++i) a.f[i] += b.f[i];
  return a;
}
inline Float mul(Float a, Float b) {
  for (int i = 0; i < 16; ++i) a.f[i] *= b.f[i];
  return a;
}
inline Float fma(Float a, Float b, Float c) {
  for (int i = 0; i < 16; ++i) a.f[i] = __builtin_fmaf(a.f[i], b.f[i], c.f[i]);
  return a;
}

inline Float max(Float a, Float b) {
  for (int i = 0; i < 16; ++i) a.f[i] = a.f[i] > b.f[i] ? a.f[i] : b.f[i];
  return a;
}
inline unsigned greater(Float a, Float b) {
  unsigned bits = 0;
  for (int i = 0; i < 16; ++i) bits |= (unsigned)(a.f[i] > b.f[i]) << i;
  return bits;
}

}  // namespace emulated

#undef _mm512_setr_epi32
#define __m512i emulated::Int
#define __m512 emulated::Float
#define _mm512_set1_epi8 emulated::set1_epi8
#define _mm512_set1_epi16 emulated::set1_epi16
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_setzero_si512 emulated::zero
#define _mm512_loadu_si512 emulated::load
#define _mm512_load_si512 emulated::load
#define _mm512_and_si512 emulated::and_
#define _mm512_or_si512 emulated::or_
#define _mm512_xor_si512 emulated::xor_
#define _mm512_add_epi32 emulated::add32
#define _mm512_srli_epi16 emulated::srl16
#define _mm512_srli_epi64 emulated::srl64
#define _mm512_srlv_epi32 emulated::srlv32
#define _mm512_mullo_epi32 emulated::mul32
#define _mm512_broadcast_i32x4 emulated::broadcast128
#define _mm512_shuffle_epi8 emulated::shuffle8
#define _mm512_dpbusd_epi32 emulated::dpbusd
#define _mm512_madd_epi16 emulated::madd16
#define _mm512_unpacklo_epi32(a, b) emulated::unpack32(a, b, 0)
#define _mm512_unpackhi_epi32(a, b) emulated::unpack32(a, b, 1)
#define _mm512_unpacklo_epi64(a, b) emulated::unpack64(a, b, 0)
#define _mm512_unpackhi_epi64(a, b) emulated::unpack64(a, b, 1)
#define _mm512_shuffle_epi32 emulated::shuffle32
#define _mm512_shuffle_i32x4 emulated::shuffle128
#define _mm512_permutexvar_epi32 emulated::permute32
#define _mm512_setr_epi32 emulated::set
#define _mm512_castsi512_si256 emulated::low256
#define _mm512_slli_epi32 emulated::shift_left32
#define _mm512_cvtepu16_epi32 emulated::widen16
#define _mm512_cvtepi16_epi32 emulated::widen16_signed
#define _mm512_cvtepi8_epi32 emulated::widen8
#define _mm512_cvtepi64_epi32 emulated::narrow64
#define _mm512_castsi256_si512 emulated::from256
#define _mm512_castsi512_ps emulated::bits_of
#define _mm512_load_ps emulated::load_ps
#define _mm512_loadu_ps emulated::load_ps
#define _mm512_store_ps emulated::store_ps
#define _mm512_storeu_ps emulated::store_ps
#define _mm512_set1_ps emulated::set1_ps
#define _mm512_cvtepi32_ps emulated::to_float
#define _mm512_add_ps emulated::add
#define _mm512_mul_ps emulated::mul
#define _mm512_fmadd_ps emulated::fma
#define _mm512_max_ps emulated::max
#define _mm512_cmp_ps_mask(a, b, greater_than) emulated::greater(a, b)
