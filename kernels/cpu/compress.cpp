// Compressors: blocks of tokens become KV entries or index keys (spec 3.6, 3.7).
#include <cstring>

#include "check.h"
#include "dispatch.h"
#include "kv.h"
#include "linear.h"
#include "pool.h"
#include "scratch.h"
#include "spans.h"

namespace v4k {
namespace {

const int64_t MOST_SLOTS = 128;
const int64_t OVERLAPPED = 4;  // the ratio whose blocks overlap

struct Compression {
  const v4k_compressor *c;
  const v4k_compressed *to;
  int64_t start, n;
  float *kv, *gate;  // [n, width] of these tokens; gate without ape

  bool overlap() const { return c->ratio == OVERLAPPED; }
  int64_t width() const { return c->wkv.rows; }
  int64_t slots() const { return to->slots; }
  int64_t block_slots() const { return overlap() ? 2 * c->ratio : c->ratio; }

  void add_ape(int64_t i) const {
    const float *ape = c->ape + (start + i) % c->ratio * width();
    for (int64_t k = 0; k < width(); ++k) gate[i * width() + k] += ape[k];
  }

  // Inputs of a position: of these tokens or of the tail.
  void slot(int64_t position, int64_t offset, const float *&k, const float *&g) const {
    const bool now = position >= start;
    const int64_t at = (now ? position - start : position % slots()) * width() + offset;
    k = (now ? kv : to->tail_kv) + at;
    g = (now ? gate : to->tail_gate) + at;
  }

  // A block's previous tokens serve with the first half of their channels, its own with the second.
  void entry(int64_t block) const {
    const float *k[MOST_SLOTS], *g[MOST_SLOTS];
    int64_t count = 0;
    if (overlap() && block > 0)
      for (int64_t j = 0; j < c->ratio; ++j, ++count) slot((block - 1) * c->ratio + j, 0, k[count], g[count]);
    for (int64_t j = 0; j < c->ratio; ++j, ++count)
      slot(block * c->ratio + j, overlap() ? c->dims : 0, k[count], g[count]);
    float x[MOST_DIMS], turns[MOST_DIMS];
    tier().pool(k, g, count, c->dims, x);
    tier().rms_norm(x, c->norm, c->dims, c->eps, x);
    rotation(c->freqs, c->rope_dims / 2, block * c->ratio, turns);
    rotate(x + c->dims - c->rope_dims, c->rope_dims, turns, false);
    store(block, x);
  }

  void store(int64_t block, float *x) const {
    if (!c->index) {
      pack_entry(x, c->dims, c->rope_dims, to->entries + block * entry_bytes(c->dims, c->rope_dims));
      return;
    }
    int8_t doubled[MOST_DIMS];
    hadamard(x, c->dims);
    quantize_key(x, c->dims, doubled, to->scales + block * (c->dims / KEY_GROUP));
    pack_key(doubled, c->dims, to->entries + block * (c->dims / 2));
  }

  // Tokens of the unfinished block, and of the one before if blocks overlap, wherever among the last tokens the end will be.
  void keep_tail() const {
    const int64_t end = start + n, spare = slots() - block_slots();
    const int64_t first = ((end - spare) / c->ratio - (overlap() ? 1 : 0)) * c->ratio;
    for (int64_t p = first > start ? first : start; p < end; ++p) {
      const size_t bytes = static_cast<size_t>(width()) * sizeof(float);
      std::memcpy(to->tail_kv + p % slots() * width(), kv + (p - start) * width(), bytes);
      std::memcpy(to->tail_gate + p % slots() * width(), gate + (p - start) * width(), bytes);
    }
  }
};

bool is_compressor(const v4k_compressor *c) {
  if (!c || c->ratio < 1 || c->ratio > MOST_SLOTS || !c->ape || !c->norm || !c->freqs) return false;
  const int64_t width = c->ratio == OVERLAPPED ? 2 * c->dims : c->dims;
  return (c->index ? is_key(c->dims, c->rope_dims) : is_entry(c->dims, c->rope_dims)) && is_matrix(c->wkv) &&
         c->wkv.rows == width && has_shape(c->wgate, width, c->wkv.cols);
}

}  // namespace
}  // namespace v4k

namespace v4k {

int compress(const v4k_compressor *c, const float *x, int64_t n, const Fed *parts, int64_t n_parts) {
  if (!is_compressor(c) || !x || n < 0) return V4K_EARGUMENT;
  const int64_t width = c->wkv.rows, least = c->ratio == OVERLAPPED ? 2 * c->ratio : c->ratio;
  for (int64_t p = 0; p < n_parts; ++p) {
    const v4k_compressed *to = parts[p].to;
    if (parts[p].start < 0 || parts[p].n < 0 || !to || !to->tail_kv || !to->tail_gate || to->slots < least)
      return V4K_EARGUMENT;
    const bool closes = (parts[p].start + parts[p].n) / c->ratio > parts[p].start / c->ratio;
    if (closes && !(to->entries && (to->scales || !c->index))) return V4K_EARGUMENT;
  }
  Scratch<float> kv(n * width), gate(n * width);
  if (!kv || !gate) return V4K_EMEMORY;
  if (int error = linear(c->wkv, 1, x, n, kv.get())) return error;
  if (int error = linear(c->wgate, 1, x, n, gate.get())) return error;
  int64_t row = 0;
  for (int64_t p = 0; p < n_parts; row += parts[p++].n) {
    const Compression work{c, parts[p].to, parts[p].start, parts[p].n, kv.get() + row * width, gate.get() + row * width};
    const int64_t first = work.start / c->ratio, blocks = (work.start + work.n) / c->ratio - first;
    for (int64_t i = 0; i < work.n; ++i) work.add_ape(i);
    auto entry = [&](int64_t b) { work.entry(first + b); };
    for_each(blocks, blocks * work.block_slots() * c->dims * 8, entry);
    work.keep_tail();
  }
  return V4K_OK;
}

}  // namespace v4k

extern "C" int v4k_compress(const v4k_compressor *c, const float *x, int64_t start, int64_t n,
                            const v4k_compressed *to) {
  const v4k::Fed part{start, n, to};
  return v4k::compress(c, x, n, &part, 1);
}
