// Attention of one layer: projections, window entries, the attention itself, output (spec 3.3, 3.5, 3.8).
#include <cmath>
#include <cstring>

#include "check.h"
#include "dispatch.h"
#include "kv.h"
#include "linear.h"
#include "pool.h"
#include "scratch.h"

namespace v4k {
namespace {

const int64_t BLOCK_KEYS = 64;   // unpacked together, one step of the online softmax
const int64_t SPLIT_KEYS = 256;  // of one partial result; partial results are merged in order
const int64_t UNIT_HEADS = 32;   // share unpacked keys
const int64_t FEW_QUERIES = 8;   // up to which the splits of one query go to different threads

bool is_attention(const v4k_attention *a) {
  return a && is_matrix(a->wq_a) && is_entry(a->head_dim, a->rope_dims) && a->heads > 0 && a->groups > 0 &&
         a->heads % a->groups == 0 && a->window > 0 && a->wq_a.rows % 8 == 0 && a->q_norm && a->kv_norm && a->sink &&
         has_shape(a->wq_b, a->heads * a->head_dim, a->wq_a.rows) && has_shape(a->wkv, a->head_dim, a->wq_a.cols) &&
         is_matrix(a->wo_a) && a->wo_a.cols == a->heads / a->groups * a->head_dim && a->wo_a.rows % a->groups == 0 &&
         has_shape(a->wo_b, a->wq_a.cols, a->wo_a.rows);
}

// One call of v4k_attend.
struct Attention {
  const v4k_attention *a;
  const float *q, *turns;
  int64_t start, n;
  const uint8_t *ring, *fresh, *compressed;
  int64_t ratio;
  const int32_t *selected;
  int64_t k;
  float *heads;

  int64_t window_keys(int64_t i) const { return start + i + 1 < a->window ? start + i + 1 : a->window; }

  int64_t compressed_keys(int64_t i) const {
    if (!ratio) return 0;
    if (!selected) return (start + i + 1) / ratio;
    int64_t count = 0;
    while (count < k && selected[i * k + count] >= 0) ++count;
    return count;
  }

  // Address of the j-th key of token i, `window` of them from the window.
  const uint8_t *key(int64_t i, int64_t j, int64_t window, int64_t bytes) const {
    if (j < window) {
      const int64_t position = start + i + 1 - window + j;
      return position >= start ? fresh + (position - start) * bytes : ring + position % a->window * bytes;
    }
    return compressed + (selected ? selected[i * k + j - window] : j - window) * bytes;
  }

  // Keys [first, last) of token i for heads [h0, h0 + heads).
  void split(int64_t i, int64_t first, int64_t last, int64_t h0, int64_t n_heads, v4k_part part) const {
    alignas(64) float keys[BLOCK_KEYS * MOST_DIMS];
    const uint8_t *at[BLOCK_KEYS];
    const int64_t d = a->head_dim, bytes = entry_bytes(d, a->rope_dims), window = window_keys(i);
    for (int64_t h = 0; h < n_heads; ++h) {
      part.peak[h] = -INFINITY;
      part.total[h] = 0;
    }
    std::memset(part.out, 0, static_cast<size_t>(n_heads * d) * sizeof(float));
    for (int64_t j = first; j < last; j += BLOCK_KEYS) {
      const int64_t count = last - j < BLOCK_KEYS ? last - j : BLOCK_KEYS;
      for (int64_t c = 0; c < count; ++c) at[c] = key(i, j + c, window, bytes);
      tier().unpack(at, count, d - a->rope_dims, a->rope_dims, keys);
      tier().attend(q + (i * a->heads + h0) * d, n_heads, keys, count, d, part);
    }
  }

  // to += from.
  void merge(int64_t n_heads, v4k_part from, v4k_part to) const {
    for (int64_t h = 0; h < n_heads; ++h) {
      const float peak = from.peak[h] > to.peak[h] || from.peak[h] != from.peak[h] ? from.peak[h] : to.peak[h];
      const float f = std::exp(from.peak[h] - peak), t = std::exp(to.peak[h] - peak);
      const float *add = from.out + h * a->head_dim;
      float *out = to.out + h * a->head_dim;
      for (int64_t c = 0; c < a->head_dim; ++c) out[c] = out[c] * t + add[c] * f;
      to.total[h] = to.total[h] * t + from.total[h] * f;
      to.peak[h] = peak;
    }
  }

  // Sink, division, turning back: part -> heads of token i.
  void finish(int64_t i, int64_t h0, int64_t n_heads, v4k_part part) const {
    const int64_t d = a->head_dim, rope = a->rope_dims;
    for (int64_t h = 0; h < n_heads; ++h) {
      const float sink = a->sink[h0 + h], peak = part.peak[h] > sink ? part.peak[h] : sink;
      const float f = part.peak[h] == part.peak[h] ? std::exp(part.peak[h] - peak) : NAN;
      const float factor = f / (part.total[h] * f + std::exp(sink - peak));
      float *to = heads + (i * a->heads + h0 + h) * d;
      for (int64_t c = 0; c < d; ++c) to[c] = part.out[h * d + c] * factor;
      rotate(to + d - rope, rope, turns + i * rope, true);
    }
  }
};

// Partial results of `count` splits of UNIT_HEADS heads.
struct Parts {
  Scratch<float> memory;
  int64_t d;

  Parts(int64_t count, int64_t dims) : memory(count * UNIT_HEADS * (dims + 2)), d(dims) {}
  v4k_part at(int64_t i) const {
    float *p = memory.get() + i * UNIT_HEADS * (d + 2);
    return {p, p + UNIT_HEADS, p + 2 * UNIT_HEADS};
  }
};

struct Block {
  int64_t token, h0, heads, keys, splits;
};

Block block_of(const Attention &t, int64_t u, int64_t blocks) {
  Block b;
  b.token = u / blocks;
  b.h0 = u % blocks * UNIT_HEADS;
  b.heads = t.a->heads - b.h0 < UNIT_HEADS ? t.a->heads - b.h0 : UNIT_HEADS;
  b.keys = t.window_keys(b.token) + t.compressed_keys(b.token);
  b.splits = (b.keys + SPLIT_KEYS - 1) / SPLIT_KEYS;
  return b;
}

void run_split(const Attention &t, const Block &b, int64_t s, v4k_part part) {
  const int64_t first = s * SPLIT_KEYS, last = first + SPLIT_KEYS < b.keys ? first + SPLIT_KEYS : b.keys;
  t.split(b.token, first, last, b.h0, b.heads, part);
}

// All splits of one block of heads, one after the other.
int whole_blocks(const Attention &t, int64_t blocks, int64_t cost) {
  bool memory = true;
  auto unit = [&](int64_t u) {
    const Block b = block_of(t, u, blocks);
    Parts parts(2, t.a->head_dim);
    if (!parts.memory) {
      memory = false;
      return;
    }
    run_split(t, b, 0, parts.at(0));
    for (int64_t s = 1; s < b.splits; ++s) {
      run_split(t, b, s, parts.at(1));
      t.merge(b.heads, parts.at(1), parts.at(0));
    }
    t.finish(b.token, b.h0, b.heads, parts.at(0));
  };
  for_each(t.n * blocks, cost, unit);
  return memory ? V4K_OK : V4K_EMEMORY;
}

// Every split on its own, then the merging: the same sums, for as many threads as there are splits.
int split_blocks(const Attention &t, int64_t blocks, int64_t most, int64_t cost) {
  Parts parts(t.n * blocks * most, t.a->head_dim);
  if (!parts.memory) return V4K_EMEMORY;
  auto unit = [&](int64_t u) {
    const Block b = block_of(t, u / most, blocks);
    if (u % most < b.splits) run_split(t, b, u % most, parts.at(u));
  };
  for_each(t.n * blocks * most, cost, unit);
  auto rest = [&](int64_t u) {
    const Block b = block_of(t, u, blocks);
    for (int64_t s = 1; s < b.splits; ++s) t.merge(b.heads, parts.at(u * most + s), parts.at(u * most));
    t.finish(b.token, b.h0, b.heads, parts.at(u * most));
  };
  for_each(t.n * blocks, t.n * blocks * most * UNIT_HEADS * t.a->head_dim * 2, rest);
  return V4K_OK;
}

int attend(const Attention &t) {
  const int64_t blocks = (t.a->heads + UNIT_HEADS - 1) / UNIT_HEADS;
  int64_t keys = 0;
  for (int64_t i = 0; i < t.n; ++i) {
    const int64_t count = t.window_keys(i) + t.compressed_keys(i);
    keys = count > keys ? count : keys;
  }
  const int64_t most = (keys + SPLIT_KEYS - 1) / SPLIT_KEYS, cost = t.n * keys * t.a->heads * t.a->head_dim * 2;
  if (t.n && t.n <= FEW_QUERIES) return split_blocks(t, blocks, most, cost);
  return whole_blocks(t, blocks, cost);
}

}  // namespace
}  // namespace v4k

extern "C" int v4k_queries(const v4k_attention *a, const float *x, int64_t n, const float *turns, float *q, float *qr) {
  using namespace v4k;
  if (!is_attention(a) || !x || !turns || !q || !qr || n < 0) return V4K_EARGUMENT;
  const int64_t d = a->head_dim, rope = a->rope_dims, rank = a->wq_a.rows;
  if (int error = linear(a->wq_a, 1, x, n, qr)) return error;
  for (int64_t i = 0; i < n; ++i) tier().rms_norm(qr + i * rank, a->q_norm, rank, a->eps, qr + i * rank);
  if (int error = linear(a->wq_b, 1, qr, n, q)) return error;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  auto token = [&](int64_t i) {
    for (int64_t h = 0; h < a->heads; ++h) {
      float *head = q + (i * a->heads + h) * d;
      tier().rms_norm(head, nullptr, d, a->eps, head);
      rotate(head + d - rope, rope, turns + i * rope, false);
      for (int64_t c = 0; c < d; ++c) head[c] *= scale;
    }
  };
  for_each(n, n > 1 ? n * a->heads * d * 8 : 0, token);
  return V4K_OK;
}

extern "C" int v4k_window_entries(const v4k_attention *a, const float *x, int64_t n, const float *turns,
                                  uint8_t *entries) {
  using namespace v4k;
  if (!is_attention(a) || !x || !turns || !entries || n < 0) return V4K_EARGUMENT;
  const int64_t d = a->head_dim, rope = a->rope_dims, bytes = entry_bytes(d, rope);
  Scratch<float> kv(n * d);
  if (!kv) return V4K_EMEMORY;
  if (int error = linear(a->wkv, 1, x, n, kv.get())) return error;
  auto token = [&](int64_t i) {
    float *latent = kv.get() + i * d;
    tier().rms_norm(latent, a->kv_norm, d, a->eps, latent);
    rotate(latent + d - rope, rope, turns + i * rope, false);
    pack_entry(latent, d, rope, entries + i * bytes);
  };
  for_each(n, n * d * 16, token);
  return V4K_OK;
}

extern "C" int v4k_attend(const v4k_attention *a, const float *q, const float *turns, int64_t start, int64_t n,
                          uint8_t *ring, const uint8_t *fresh, const uint8_t *compressed, int64_t ratio,
                          const int32_t *selected, int64_t k, float *heads) {
  using namespace v4k;
  if (!is_attention(a) || !q || !turns || start < 0 || n < 0 || !ring || !fresh || !heads) return V4K_EARGUMENT;
  if (ratio < 0 || k < 0 || (ratio && (start + n) / ratio > 0 && !compressed)) return V4K_EARGUMENT;
  if (int error = attend({a, q, turns, start, n, ring, fresh, compressed, ratio, selected, k, heads})) return error;
  const int64_t bytes = entry_bytes(a->head_dim, a->rope_dims), keep = n < a->window ? n : a->window;
  for (int64_t i = n - keep; i < n; ++i)
    std::memcpy(ring + (start + i) % a->window * bytes, fresh + i * bytes, static_cast<size_t>(bytes));
  return V4K_OK;
}

extern "C" int v4k_attention_output(const v4k_attention *a, const float *heads, int64_t n, float *out) {
  using namespace v4k;
  if (!is_attention(a) || !heads || !out || n < 0) return V4K_EARGUMENT;
  Scratch<float> low(n * a->wo_a.rows);
  if (!low) return V4K_EMEMORY;
  if (int error = linear(a->wo_a, a->groups, heads, n, low.get())) return error;
  return linear(a->wo_b, 1, low.get(), n, out);
}
