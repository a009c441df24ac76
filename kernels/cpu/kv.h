// Stored KV entries and index keys: rotation, Hadamard transform, e4m3 and e2m1 (spec 3.4, 3.7, 3.9, 4.1).
#ifndef V4K_KV_H
#define V4K_KV_H

#include <cstdint>

namespace v4k {

const int64_t MOST_DIMS = 1024;  // of a head
const int64_t KV_GROUP = 64;     // e4m3 values per scale
const int64_t KEY_GROUP = 32;    // e2m1 values per scale

// Sizes an entry may have.
inline bool is_entry(int64_t dims, int64_t rope) {
  return dims > 0 && dims <= MOST_DIMS && rope > 0 && rope % 16 == 0 && rope < dims && (dims - rope) % KV_GROUP == 0;
}

inline bool is_key(int64_t dims, int64_t rope) {
  return dims > 0 && dims <= MOST_DIMS && dims % 32 == 0 && (dims & (dims - 1)) == 0 && rope > 0 && rope % 2 == 0 &&
         rope <= dims;
}

inline int64_t entry_bytes(int64_t dims, int64_t rope) {
  const int64_t plain = dims - rope;
  return plain + 2 * rope + (plain / KV_GROUP + 7) / 8 * 8;
}

// Rotate the adjacent pairs of x [rope] by turns [rope/2, 2], back if `inverse`.
void rotate(float *x, int64_t rope, const float *turns, bool inverse);

// turns [half, 2] of one position.
void rotation(const float *freqs, int64_t half, int64_t position, float *turns);

// x [dims] -> an entry.
void pack_entry(const float *x, int64_t dims, int64_t rope, uint8_t *entry);

// Orthonormal Walsh-Hadamard transform (Sylvester order) of x [n], n a power of two.
void hadamard(float *x, int64_t n);

// x [n] -> doubled e2m1 values (integers up to 12) and the exponent byte of each group of 32.
void quantize_key(const float *x, int64_t n, int8_t *doubled, uint8_t *scales);

// Doubled values [n] -> e2m1 pairs [n/2].
void pack_key(const int8_t *doubled, int64_t n, uint8_t *codes);

}  // namespace v4k
#endif
