// Attention of one layer: projections, window entries, the attention itself, output (spec 3.3, 3.5, 3.8).
#include <algorithm>
#include <cmath>
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

const int64_t BLOCK_KEYS = 64;   // unpacked together, one step of the online softmax
const int64_t SPLIT_KEYS = 256;  // of one partial result; partial results are merged in order
const int64_t UNIT_ROWS = 32;    // heads, of one token or more, that share unpacked keys
const int64_t FEW_QUERIES = 8;   // tokens up to which splits go to different threads

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
  const uint8_t *ring;
  int64_t ring_rows;
  const uint8_t *fresh, *compressed;
  int64_t ratio;
  const int32_t *selected;
  int64_t k;
  float *heads;
  int64_t together = 0;  // tokens, the last ones, that see each other

  bool joins(int64_t i) const { return i >= n - together; }

  // Position behind the last that token i sees.
  int64_t end(int64_t i) const { return joins(i) ? start + n : start + i + 1; }

  int64_t window_keys(int64_t i) const { return std::min(end(i), a->window + (joins(i) ? together : 0)); }

  int64_t keys(int64_t i) const {
    if (!ratio) return window_keys(i);
    if (!selected) return window_keys(i) + (start + i + 1) / ratio;
    const int32_t *own = selected + i * k;
    return window_keys(i) + (std::partition_point(own, own + k, [](int32_t id) { return id >= 0; }) - own);
  }

  // Address of the j-th key of token i, `window` of them from the window.
  const uint8_t *key(int64_t i, int64_t j, int64_t window, int64_t bytes) const {
    if (j < window) {
      const int64_t position = end(i) - window + j;
      return position >= start ? fresh + (position - start) * bytes : ring + position % ring_rows * bytes;
    }
    return compressed + (selected ? selected[i * k + j - window] : j - window) * bytes;
  }

  void unpack(int64_t i, int64_t j, int64_t count, float *out) const {
    const uint8_t *at[BLOCK_KEYS];
    const int64_t d = a->head_dim, bytes = entry_bytes(d, a->rope_dims), window = window_keys(i);
    for (int64_t c = 0; c < count; ++c) at[c] = key(i, j + c, window, bytes);
    tier().unpack(at, count, d - a->rope_dims, a->rope_dims, out);
  }

  // Whether keys [j, j + BLOCK_KEYS) of token i are those of all later tokens too.
  bool common(int64_t i, int64_t j) const {
    return !selected && j >= a->window && window_keys(i) == a->window && j + BLOCK_KEYS <= keys(i);
  }

  // Keys [first, last), as far as each token has them, for rows [row, row + rows) of q [n * heads].
  void split(int64_t first, int64_t last, int64_t row, int64_t rows, v4k_part part) const {
    alignas(64) float unpacked[BLOCK_KEYS * MOST_DIMS], queries[UNIT_ROWS * MOST_DIMS];  // aligned: twice as fast
    const int64_t d = a->head_dim, h = a->heads, token = row / h, stop = (row + rows - 1) / h + 1;
    for (int64_t r = 0; r < rows; ++r) {
      part.peak[r] = -INFINITY;
      part.total[r] = 0;
    }
    std::memset(part.out, 0, static_cast<size_t>(rows * d) * sizeof(float));
    std::memcpy(queries, q + row * d, static_cast<size_t>(rows * d) * sizeof(float));
    for (int64_t j = first; j < last; j += BLOCK_KEYS) {
      if (common(token, j)) {
        unpack(token, j, BLOCK_KEYS, unpacked);
        tier().attend(queries, rows, unpacked, BLOCK_KEYS, d, part);
        continue;
      }
      for (int64_t i = token; i < stop; ++i) {
        const int64_t left = keys(i) - j, count = left < BLOCK_KEYS ? left : BLOCK_KEYS;
        if (count <= 0) continue;
        const int64_t own = std::max(i * h, row), end = std::min((i + 1) * h, row + rows), r = own - row;
        unpack(i, j, count, unpacked);
        tier().attend(queries + r * d, end - own, unpacked, count, d, {part.peak + r, part.total + r, part.out + r * d});
      }
    }
  }

  // to += from.
  void merge(int64_t rows, v4k_part from, v4k_part to) const {
    float peaks[UNIT_ROWS], factors[2 * UNIT_ROWS];  // of both
    for (int64_t r = 0; r < rows; ++r) {
      peaks[r] = from.peak[r] > to.peak[r] || from.peak[r] != from.peak[r] ? from.peak[r] : to.peak[r];
      factors[r] = from.peak[r] - peaks[r];
      factors[rows + r] = to.peak[r] - peaks[r];
    }
    tier().exponentials(factors, 2 * rows);
    for (int64_t r = 0; r < rows; ++r) {
      if (from.total[r] == 0.0f) continue;  // this token had no keys there
      const float f = factors[r], t = factors[rows + r];
      const float *add = from.out + r * a->head_dim;
      float *out = to.out + r * a->head_dim;
      for (int64_t c = 0; c < a->head_dim; ++c) out[c] = out[c] * t + add[c] * f;
      to.total[r] = to.total[r] * t + from.total[r] * f;
      to.peak[r] = peaks[r];
    }
  }

  // Sink, division, turning back: part -> heads.
  void finish(int64_t row, int64_t rows, v4k_part part) const {
    const int64_t d = a->head_dim, rope = a->rope_dims;
    float factors[2 * UNIT_ROWS];  // of the sum, of the sink
    for (int64_t r = 0; r < rows; ++r) {
      const float sink = a->sink[(row + r) % a->heads], peak = part.peak[r] > sink ? part.peak[r] : sink;
      factors[r] = part.peak[r] - peak;
      factors[rows + r] = sink - peak;
    }
    tier().exponentials(factors, 2 * rows);
    for (int64_t r = 0; r < rows; ++r) {
      const float f = factors[r], factor = f / (part.total[r] * f + factors[rows + r]);
      float *to = heads + (row + r) * d;
      for (int64_t c = 0; c < d; ++c) to[c] = part.out[r * d + c] * factor;
      rotate(to + d - rope, rope, turns + (row + r) / a->heads * rope, true);
    }
  }
};

// Partial results of `count` splits of UNIT_ROWS rows.
struct Parts {
  Scratch<float> memory;
  int64_t d;

  Parts(int64_t count, int64_t dims) : memory(count * UNIT_ROWS * (dims + 2) + 16), d(dims) {}
  v4k_part at(int64_t i) const {
    const uintptr_t start = (reinterpret_cast<uintptr_t>(memory.get()) + 63) / 64 * 64;
    float *p = reinterpret_cast<float *>(start) + i * UNIT_ROWS * (d + 2);
    return {p, p + UNIT_ROWS, p + 2 * UNIT_ROWS};
  }
};

// UNIT_ROWS rows of q, and the splits of the token with most keys among them.
struct Block {
  int64_t row, rows, keys, splits;

  Block(const Attention &t, int64_t u) : row(u * UNIT_ROWS), keys(0) {
    rows = t.n * t.a->heads - row < UNIT_ROWS ? t.n * t.a->heads - row : UNIT_ROWS;
    for (int64_t i = row / t.a->heads; i * t.a->heads < row + rows; ++i) keys = std::max(keys, t.keys(i));
    splits = (keys + SPLIT_KEYS - 1) / SPLIT_KEYS;
  }

  void run(const Attention &t, int64_t s, v4k_part part) const {
    t.split(s * SPLIT_KEYS, std::min((s + 1) * SPLIT_KEYS, keys), row, rows, part);
  }
};

// All splits of one block, one after the other.
int whole_blocks(const Attention &t, int64_t blocks, int64_t cost) {
  bool memory = true;
  auto unit = [&](int64_t u) {
    const Block b(t, u);
    Parts parts(2, t.a->head_dim);
    if (!parts.memory) {
      memory = false;
      return;
    }
    b.run(t, 0, parts.at(0));
    for (int64_t s = 1; s < b.splits; ++s) {
      b.run(t, s, parts.at(1));
      t.merge(b.rows, parts.at(1), parts.at(0));
    }
    t.finish(b.row, b.rows, parts.at(0));
  };
  for_each(blocks, cost, unit);
  return memory ? V4K_OK : V4K_EMEMORY;
}

// Every split on its own, then the merging: the same sums, for as many threads as there are splits.
int split_blocks(const Attention &t, int64_t blocks, int64_t most, int64_t cost) {
  Parts parts(blocks * most, t.a->head_dim);
  if (!parts.memory) return V4K_EMEMORY;
  auto unit = [&](int64_t u) {
    const Block b(t, u / most);
    if (u % most < b.splits) b.run(t, u % most, parts.at(u));
  };
  for_each(blocks * most, cost, unit);
  auto rest = [&](int64_t u) {
    const Block b(t, u);
    for (int64_t s = 1; s < b.splits; ++s) t.merge(b.rows, parts.at(u * most + s), parts.at(u * most));
    t.finish(b.row, b.rows, parts.at(u * most));
  };
  for_each(blocks, blocks * most * UNIT_ROWS * t.a->head_dim * 2, rest);
  return V4K_OK;
}

int attend(const Attention &t) {
  const int64_t blocks = (t.n * t.a->heads + UNIT_ROWS - 1) / UNIT_ROWS;
  int64_t keys = 0;
  for (int64_t i = 0; i < t.n; ++i) keys = std::max(keys, t.keys(i));
  const int64_t most = (keys + SPLIT_KEYS - 1) / SPLIT_KEYS, cost = t.n * keys * t.a->heads * t.a->head_dim * 2;
  if (t.n && t.n <= FEW_QUERIES) return split_blocks(t, blocks, most, cost);
  return whole_blocks(t, blocks, cost);
}

}  // namespace

int attend(const v4k_attention *a, const float *q, const float *turns, int64_t start, int64_t n, uint8_t *ring,
           int64_t ring_rows, const uint8_t *fresh, const uint8_t *compressed, int64_t ratio, const int32_t *selected,
           int64_t k, float *heads, int64_t together) {
  if (!is_attention(a) || !q || !turns || start < 0 || n < 0 || !ring || !fresh || !heads) return V4K_EARGUMENT;
  if (ratio < 0 || k < 0 || ring_rows < a->window || (ratio && (start + n) / ratio > 0 && !compressed)) return V4K_EARGUMENT;
  if (together < 0 || together > n || (together && (ratio || ring_rows < a->window + together))) return V4K_EARGUMENT;
  if (int error = attend({a, q, turns, start, n, ring, ring_rows, fresh, compressed, ratio, selected, k, heads, together}))
    return error;
  const int64_t bytes = entry_bytes(a->head_dim, a->rope_dims), keep = n < ring_rows ? n : ring_rows;
  for (int64_t i = n - keep; i < n; ++i)
    std::memcpy(ring + (start + i) % ring_rows * bytes, fresh + i * bytes, static_cast<size_t>(bytes));
  return V4K_OK;
}

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
                          uint8_t *ring, int64_t ring_rows, const uint8_t *fresh, const uint8_t *compressed,
                          int64_t ratio, const int32_t *selected, int64_t k, float *heads) {
  return v4k::attend(a, q, turns, start, n, ring, ring_rows, fresh, compressed, ratio, selected, k, heads, 0);
}

extern "C" int v4k_attention_output(const v4k_attention *a, const float *heads, int64_t n, float *out) {
  using namespace v4k;
  if (!is_attention(a) || !heads || !out || n < 0) return V4K_EARGUMENT;
  Scratch<float> low(n * a->wo_a.rows);
  if (!low) return V4K_EMEMORY;
  if (int error = linear(a->wo_a, a->groups, heads, n, low.get())) return error;
  return linear(a->wo_b, 1, low.get(), n, out);
}
