// Every weight format, once: its entry by id, in the order of v4k.h's enum. What sizes, checks, prepares inputs for or
// names a format asks this table. A format that is quantized also needs its decoding in decode.cpp and, where F stands
// for it, in the dot products of each tier. Compiled with different flags in every tier: no external linkage here.
#ifndef V4K_FORMATS_H
#define V4K_FORMATS_H

#include "v4k.h"

// Those with scales: X(format) for each.
#define V4K_QUANTIZED(X) X(V4K_FP4) X(V4K_INT8) X(V4K_INT4)

// How a scale is stored.
enum { V4K_UNSCALED, V4K_SCALE_E8M0, V4K_SCALE_BF16 };

typedef struct {
  v4k_format_info info;
  int scale;    // one of the above
  int nibbles;  // two codes per byte: inputs are prepared in nibble order (tier.h)
  int zero;     // what is added to codes to make them unsigned
  int doubled;  // codes are twice the value, input scales half
} v4k_format_entry;

static constexpr v4k_format_entry V4K_FORMATS[] = {
    {{nullptr, 0, 0}, V4K_UNSCALED, 0, 0, 0},  // no format has id 0
    {{"fp4", 16, 1}, V4K_SCALE_E8M0, 1, 12, 1},
    {{"int8", 32, 2}, V4K_SCALE_BF16, 0, 128, 0},
    {{"int4", 16, 2}, V4K_SCALE_BF16, 1, 8, 0},
    {{"bf16", 64, 0}, V4K_UNSCALED, 0, 0, 0},
    {{"f32", 128, 0}, V4K_UNSCALED, 0, 0, 0},
};
static constexpr int64_t V4K_N_FORMATS = sizeof V4K_FORMATS / sizeof V4K_FORMATS[0];  // ids are below it

static_assert(V4K_N_FORMATS == V4K_F32 + 1, "an entry for every format of v4k.h");

#endif
