// Every weight format, once: its entry by id, in the order of v4k.h's enum. What sizes, checks, prepares inputs for or
// names a format asks this table. A format that is quantized also needs its decoding in decode.cpp and, where F stands
// for it, in the dot products of each tier. Compiled with different flags in every tier: no external linkage here.
#ifndef V4K_FORMATS_H
#define V4K_FORMATS_H

#include "v4k.h"

// Those with scales: X(format) for each.
#define V4K_QUANTIZED(X) X(V4K_FP4) X(V4K_INT8) X(V4K_INT4) X(V4K_Q3) X(V4K_Q2)

// How a scale is stored. RUNS: one for the row, and for every 16 inputs a number of V4K_MULTIPLIERS.
enum { V4K_UNSCALED, V4K_SCALE_E8M0, V4K_SCALE_BF16, V4K_SCALE_RUNS };

// The order that inputs are prepared in (tier.h).
enum { V4K_NATURAL, V4K_NIBBLES, V4K_FOURS };

typedef struct {
  v4k_format_info info;
  int scale;         // one of the above
  int order;         // one of the above
  int zero;          // what is added to codes to make them unsigned
  int doubled;       // codes are twice the value, input scales half
  int second_bytes;  // of a group's codes, those that lie in the second part of the row
} v4k_format_entry;

static constexpr v4k_format_entry V4K_FORMATS[] = {
    {{nullptr, 0, 0, 0}, V4K_UNSCALED, V4K_NATURAL, 0, 0, 0},  // no format has id 0
    {{"fp4", 16, 1, 0}, V4K_SCALE_E8M0, V4K_NIBBLES, 12, 1, 0},
    {{"int8", 32, 2, 0}, V4K_SCALE_BF16, V4K_NATURAL, 128, 0, 0},
    {{"int4", 16, 2, 0}, V4K_SCALE_BF16, V4K_NIBBLES, 8, 0, 0},
    {{"bf16", 64, 0, 0}, V4K_UNSCALED, V4K_NATURAL, 0, 0, 0},
    {{"f32", 128, 0, 0}, V4K_UNSCALED, V4K_NATURAL, 0, 0, 0},
    {{"q3", 12, 1, 2}, V4K_SCALE_RUNS, V4K_FOURS, 16, 0, 4},
    {{"q2", 8, 1, 2}, V4K_SCALE_RUNS, V4K_FOURS, 16, 0, 0},
};
static constexpr int64_t V4K_N_FORMATS = sizeof V4K_FORMATS / sizeof V4K_FORMATS[0];  // ids are below it

static_assert(V4K_N_FORMATS == V4K_Q2 + 1, "an entry for every format of v4k.h");

// Of Q3 and Q2: levels by code, what runs multiply them with by nibble. Products of both are int8.
static constexpr int8_t V4K_Q3_LEVELS[8] = {-10, -6, -4, -2, 0, 2, 4, 7}, V4K_Q2_LEVELS[4] = {-10, -3, 2, 7};
static constexpr int8_t V4K_MULTIPLIERS[16] = {2, 3, 4, 5, 6, 8, 10, 12, -2, -3, -4, -5, -6, -8, -10, -12};

// Level of input 4i + v by the nibble that has its code: of Q2 the low one of byte i for v < 2, else the high one; of Q3
// n0, n1, n2, and for v = 3 the bits 3 of n0, 2 of n1 and 1 of n2 together.
typedef struct {
  int8_t of[4][16];
} v4k_levels;

static constexpr v4k_levels v4k_levels_of(int64_t format, int zero) {
  v4k_levels t = {};
  for (int n = 0; n < 16; ++n) {
    const int q3[4] = {n & 7, (n & 3) | (n & 8) >> 1, (n & 1) | (n & 12) >> 1, n >> 1};
    for (int v = 0; v < 4; ++v) {
      const int level = format == V4K_Q3 ? V4K_Q3_LEVELS[q3[v]] : V4K_Q2_LEVELS[v % 2 ? n >> 2 : n & 3];
      t.of[v][n] = static_cast<int8_t>(level + zero);
    }
  }
  return t;
}

#endif
