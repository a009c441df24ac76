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

}  // namespace v4k
