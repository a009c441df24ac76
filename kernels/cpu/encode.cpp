// Official weights to INT8 (weights/formats.py is the reference).
#include <atomic>
#include <cmath>
#include <cstring>

#include "bits.h"
#include "pool.h"
#include "v4k.h"

namespace v4k {
namespace {

const int64_t BLOCK = 128;          // rows and columns that share an official scale
const float LEAST = 0x1p-100f;      // scale of a group of zeros
const int64_t VALUE_COST = 32;      // multiply-adds that take as long as encoding one value

float from_e4m3(uint8_t code) {
  if ((code & 0x7f) == 0x7f) return NAN;
  return from_bits(static_cast<uint32_t>(code & 0x80) << 24 | static_cast<uint32_t>(code & 0x7f) << 20) * 0x1p120f;
}

// Codes of a group by one scale; returns the squared error.
double round_to(const float *w, float scale, int8_t *codes) {
  double error = 0;
  for (int i = 0; i < V4K_GROUP; ++i) {
    float q = std::nearbyint(w[i] / scale);
    q = q < -127.0f ? -127.0f : q > 127.0f ? 127.0f : q;
    const float rest = w[i] - q * scale;
    error += static_cast<double>(rest * rest);
    codes[i] = static_cast<int8_t>(q);
  }
  return error;
}

bool encode_group(const float *w, int8_t *codes, uint16_t *scale) {
  float amax = 0;
  for (int i = 0; i < V4K_GROUP; ++i) {
    if (!(std::fabs(w[i]) <= 3.4e38f)) return false;
    amax = std::fabs(w[i]) > amax ? std::fabs(w[i]) : amax;
  }
  const float tight = amax / 127.0f > LEAST ? amax / 127.0f : LEAST;
  const float up = from_bits((bits_of(tight) + 0xffff) & 0xffff0000);
  const float power = power_of_two(exponent_above(tight));
  int8_t other[V4K_GROUP];
  const double first = round_to(w, up, codes);
  const bool better = power != up && round_to(w, power, other) < first;
  if (better) std::memcpy(codes, other, V4K_GROUP);
  *scale = static_cast<uint16_t>(bits_of(better ? power : up) >> 16);
  return true;
}

}  // namespace
}  // namespace v4k

extern "C" int v4k_encode_int8(const void *values, const uint8_t *block_scale, int64_t rows, int64_t cols,
                               int8_t *codes, uint16_t *scale) {
  using namespace v4k;
  if (!values || !codes || !scale || rows < 0 || cols < 1 || cols % V4K_GROUP) return V4K_EARGUMENT;
  const int64_t per_row = (cols + BLOCK - 1) / BLOCK;
  std::atomic<bool> finite{true};
  auto row = [&](int64_t r) {
    float w[V4K_GROUP];
    for (int64_t c = 0; c < cols; c += V4K_GROUP) {
      const int64_t at = r * cols + c;
      if (block_scale) {
        const uint8_t byte = block_scale[r / BLOCK * per_row + c / BLOCK];
        const float s = byte == 255 ? NAN : power_of_two(byte);
        for (int i = 0; i < V4K_GROUP; ++i) w[i] = from_e4m3(static_cast<const uint8_t *>(values)[at + i]) * s;
      } else {
        for (int i = 0; i < V4K_GROUP; ++i)
          w[i] = from_bf16(static_cast<const uint16_t *>(values)[at + i]);
      }
      if (!encode_group(w, codes + at, scale + at / V4K_GROUP)) finite = false;
    }
  };
  for_each(rows, rows * cols * VALUE_COST, row);
  return finite ? V4K_OK : V4K_EVALUE;
}
