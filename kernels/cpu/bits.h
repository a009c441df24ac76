// Floats and their bits.
#ifndef V4K_BITS_H
#define V4K_BITS_H

#include <cstdint>
#include <cstring>

namespace v4k {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float from_bf16(uint16_t half) { return from_bits(static_cast<uint32_t>(half) << 16); }

// 2^(byte - 127), for bytes below 255.
inline float power_of_two(uint8_t byte) { return byte ? from_bits(static_cast<uint32_t>(byte) << 23) : 0x1p-127f; }

// Exponent byte of the smallest power of two >= x, for positive normal x.
inline uint8_t exponent_above(float x) {
  const uint32_t bits = bits_of(x);
  return static_cast<uint8_t>((bits >> 23) + ((bits & 0x7fffff) != 0));
}

}  // namespace v4k
#endif
