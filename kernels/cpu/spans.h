// Steps of attention over the rows of several timelines, for layer.cpp: projections see all rows at once.
#pragma once

#include "v4k.h"

namespace v4k {

// Tokens of one timeline that a compressor is fed.
struct Fed {
  int64_t start, n;
  const v4k_compressed *to;
};

// v4k_compress for consecutive rows of several timelines, n in all.
int compress(const v4k_compressor *c, const float *x, int64_t n, const Fed *parts, int64_t n_parts);

// Tokens of one timeline for which entries are chosen, if at all.
struct Choosing {
  int64_t start, n;
  const v4k_compressed *keys;
  bool wanted;
};

// v4k_select for consecutive rows of several timelines, n in all.
int select(const v4k_indexer *ix, const float *x, const float *qr, const float *turns, int64_t n,
           const Choosing *parts, int64_t n_parts, int32_t *selected);

// v4k_attend; the last `together` tokens see each other.
int attend(const v4k_attention *a, const float *q, const float *turns, int64_t start, int64_t n, uint8_t *ring,
           int64_t ring_rows, const uint8_t *fresh, const uint8_t *compressed, int64_t ratio, const int32_t *selected,
           int64_t k, float *heads, int64_t together);

}  // namespace v4k
