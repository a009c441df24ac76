#include "kv.h"

#include <cmath>
#include <cstring>

#include "bits.h"
#include "elementary.h"

namespace v4k {
namespace {

// 1 / 2^(byte - 127), exact.
float inverse_power(uint8_t byte) { return power_of_two(static_cast<uint8_t>(254 - byte)); }

float peak(const float *x, int64_t n) {
  float top = 0;
  for (int64_t i = 0; i < n; ++i) top = std::fabs(x[i]) > top ? std::fabs(x[i]) : top;
  return top;
}

// To the nearest e4m3, ties to even; |x| is cut to 448. NaN is 0x7f: what sign it has, processors choose.
uint8_t e4m3(float x) {
  if (x != x) return 0x7f;
  const uint32_t sign = bits_of(x) >> 24 & 0x80;
  float a = std::fabs(x);
  a = a < 448.0f ? a : 448.0f;
  if (a < 0x1p-6f) return static_cast<uint8_t>(sign | static_cast<uint32_t>(std::lrint(a * 512.0f)));
  uint32_t bits = bits_of(a);
  bits += 0x7ffff + (bits >> 20 & 1);
  return static_cast<uint8_t>(sign | ((bits >> 23) - 120) << 3 | (bits >> 20 & 7));
}

uint16_t bf16(float x) {
  if (x != x) return 0x7fc0;
  const uint32_t bits = bits_of(x);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Twice the nearest e2m1 of |x| <= 6, ties to the even code.
int8_t doubled_e2m1(float x) {
  float a = std::fabs(x);
  a = a < 6.0f ? a : 6.0f;
  const float step = a < 2.0f ? 0.5f : a < 4.0f ? 1.0f : 2.0f;
  const int twice = static_cast<int>(std::rint(a / step) * (2 * step));
  return static_cast<int8_t>(x < 0 ? -twice : twice);
}

}  // namespace

void rotate(float *x, int64_t rope, const float *turns, bool inverse) {
  for (int64_t i = 0; i < rope; i += 2) {
    const float a = x[i], b = x[i + 1], c = turns[i], s = inverse ? -turns[i + 1] : turns[i + 1];
    x[i] = a * c - b * s;
    x[i + 1] = a * s + b * c;
  }
}

void rotation(const float *freqs, int64_t half, int64_t position, float *turns) {
  for (int64_t i = 0; i < half; ++i) {
    turn_of(static_cast<float>(position) * freqs[i], turns + 2 * i, turns + 2 * i + 1);
  }
}

void pack_entry(const float *x, int64_t dims, int64_t rope, uint8_t *entry) {
  const int64_t plain = dims - rope;
  uint8_t *scales = entry + plain + 2 * rope;
  std::memset(scales, 0, static_cast<size_t>(entry_bytes(dims, rope) - plain - 2 * rope));
  for (int64_t at = 0; at < plain; at += KV_GROUP) {
    const float top = peak(x + at, KV_GROUP);
    const uint8_t scale = exponent_above((top > 1e-4f ? top : 1e-4f) / 448.0f);
    const float inverse = inverse_power(scale);
    scales[at / KV_GROUP] = scale;
    for (int64_t i = 0; i < KV_GROUP; ++i) entry[at + i] = e4m3(x[at + i] * inverse);
  }
  for (int64_t i = 0; i < rope; ++i) {
    const uint16_t half = bf16(x[plain + i]);
    std::memcpy(entry + plain + 2 * i, &half, 2);
  }
}

void hadamard(float *x, int64_t n) {
  for (int64_t width = 1; width < n; width *= 2)
    for (int64_t at = 0; at < n; at += 2 * width)
      for (int64_t i = at; i < at + width; ++i) {
        const float a = x[i], b = x[i + width];
        x[i] = a + b;
        x[i + width] = a - b;
      }
  const float norm = 1.0f / std::sqrt(static_cast<float>(n));
  for (int64_t i = 0; i < n; ++i) x[i] *= norm;
}

void quantize_key(const float *x, int64_t n, int8_t *doubled, uint8_t *scales) {
  const float least = 6.0f * 0x1p-126f;
  for (int64_t at = 0; at < n; at += KEY_GROUP) {
    const float top = peak(x + at, KEY_GROUP);
    scales[at / KEY_GROUP] = exponent_above((top > least ? top : least) / 6.0f);
    const float inverse = inverse_power(scales[at / KEY_GROUP]);
    for (int64_t i = 0; i < KEY_GROUP; ++i) doubled[at + i] = doubled_e2m1(x[at + i] * inverse);
  }
}

void pack_key(const int8_t *doubled, int64_t n, uint8_t *codes) {
  static const uint8_t code_of[13] = {0, 1, 2, 3, 4, 0, 5, 0, 6, 0, 0, 0, 7};
  const auto code = [](int8_t v) { return static_cast<uint8_t>(v < 0 ? 8 | code_of[-v] : code_of[v]); };
  for (int64_t i = 0; i < n; i += 2) codes[i / 2] = static_cast<uint8_t>(code(doubled[i]) | code(doubled[i + 1]) << 4);
}

}  // namespace v4k

#include "v4k.h"

extern "C" int v4k_rotations(const float *freqs, int64_t half, int64_t start, int64_t step, int64_t n, float *turns) {
  if (!freqs || !turns || half < 1 || start < 0 || n < 0) return V4K_EARGUMENT;
  for (int64_t i = 0; i < n; ++i) v4k::rotation(freqs, half, start + i * step, turns + i * 2 * half);
  return V4K_OK;
}
