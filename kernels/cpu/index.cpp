// Indexer: scores of all keys by exact integer products, and the best of them (spec 3.7). Nothing is kept of a score
// but whether it is among the best so far.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "best.h"
#include "bits.h"
#include "check.h"
#include "dispatch.h"
#include "kv.h"
#include "linear.h"
#include "pool.h"
#include "scratch.h"
#include "spans.h"

namespace v4k {
namespace {

const int64_t TOKEN_BLOCK = 32;    // share unpacked keys
const int64_t TOKEN_BATCH = 256;   // hold candidates at a time
const int64_t LEAST_RANGE = 4096;  // keys that are worth a unit of their own
const int64_t MAC_COST = 4;        // products of codes in the time of an fp32 multiply-add

bool is_indexer(const v4k_indexer *ix) {
  return ix && ix->heads > 0 && ix->heads < 1 << V4K_HEAD_LEVELS && ix->top_k > 0 && is_key(ix->dims, ix->rope_dims) && is_matrix(ix->wq_b) &&
         ix->wq_b.rows == ix->heads * ix->dims && is_matrix(ix->weights_proj) && ix->weights_proj.rows == ix->heads;
}

// Queries of n tokens as the tiers take them.
class Queries {
 public:
  Queries(const v4k_indexer *ix, int64_t n)
      : heads_(ix->heads), dims_(ix->dims), q_(n * heads_ * dims_), scale_(n * heads_ * groups()),
        offset_(n * heads_ * groups()), weight_(n * heads_), raising_(n) {}
  explicit operator bool() const { return q_ && scale_ && offset_ && weight_ && raising_; }

  // Token i: q [heads, dims], rotated, is overwritten.
  void set(int64_t i, float *q, const float *weights) {
    int64_t up = 0, down = 0;
    for (int64_t h = 0; h < heads_; ++h) down += weights[h] > 0;
    raising_.get()[i] = down;
    for (int64_t h = 0; h < heads_; ++h) {
      const int64_t row = i * heads_ + (weights[h] > 0 ? up++ : down++);
      weight_.get()[row] = weights[h];
      set_row(row, q + h * dims_);
    }
  }

  v4k_index_query operator[](int64_t i) const {
    const int64_t row = i * heads_;
    return {q_.get() + row * dims_, scale_.get() + row * groups(), offset_.get() + row * groups(), weight_.get() + row,
            heads_, raising_.get()[i]};
  }

 private:
  int64_t groups() const { return dims_ / KEY_GROUP; }

  void set_row(int64_t row, float *x) {
    int8_t doubled[MOST_DIMS];
    uint8_t scales[MOST_DIMS / KEY_GROUP];
    hadamard(x, dims_);
    quantize_key(x, dims_, doubled, scales);
    for (int64_t g = 0; g < groups(); ++g) {
      int8_t *even = q_.get() + row * dims_ + g * KEY_GROUP, *odd = even + KEY_GROUP / 2;
      const int8_t *from = doubled + g * KEY_GROUP;
      int32_t sum = 0;
      for (int64_t k = 0; k < KEY_GROUP / 2; ++k) {
        even[k] = from[2 * k];
        odd[k] = from[2 * k + 1];
        sum += even[k] + odd[k];
      }
      offset_.get()[row * groups() + g] = -12 * sum;
      scale_.get()[row * groups() + g] = 0.25f * power_of_two(scales[g]);
    }
  }

  int64_t heads_, dims_;
  Scratch<int8_t> q_;
  Scratch<float> scale_;
  Scratch<int32_t> offset_;
  Scratch<float> weight_;
  Scratch<int64_t> raising_;
};

// One call of v4k_select.
struct Selection {
  const v4k_indexer *ix;
  const uint8_t *keys, *scales;
  int64_t start, row;  // position and number of its first query
  const Queries &queries;

  int64_t visible(int64_t i) const { return (start + i + 1) / 4; }

  // Offer keys [first, last) to tokens [i, stop) as far as they see them; best[i - at] is token i's.
  void scan(int64_t first, int64_t last, int64_t i, int64_t stop, Best *best) const {
    alignas(64) uint8_t panel[V4K_PANEL_KEYS * (MOST_DIMS + MOST_DIMS / 8)];
    alignas(64) float scores[V4K_PANEL_KEYS];
    for (int64_t at = first; at < last; at += V4K_PANEL_KEYS) {
      const int64_t count = last - at < V4K_PANEL_KEYS ? last - at : V4K_PANEL_KEYS;
      tier().index_panel(keys + at * ix->dims / 2, scales + at * ix->dims / KEY_GROUP, count, ix->dims, panel);
      for (int64_t t = i; t < stop; ++t) {
        const int64_t seen = visible(t);
        if (seen <= ix->top_k || seen <= at) continue;  // all are chosen, or none of these is seen
        const v4k_index_query query = queries[row + t];
        Best &of = best[t - i];
        uint64_t above = tier().index_scores(panel, ix->dims, &query, of.least(), scores);
        if (seen - at < count) above &= (UINT64_C(1) << (seen - at)) - 1;
        if (count < V4K_PANEL_KEYS) above &= (UINT64_C(1) << count) - 1;
        for (; above; above &= above - 1) {
          const int k = __builtin_ctzll(above);
          of.offer(scores[k], static_cast<int32_t>(at + k));
        }
      }
    }
  }

  // Tokens [i0, i0 + n), n <= TOKEN_BATCH, by blocks of tokens and, where these are few, ranges of keys.
  bool run(int64_t i0, int64_t n, int32_t *selected) const {
    const int64_t blocks = (n + TOKEN_BLOCK - 1) / TOKEN_BLOCK, most = visible(i0 + n - 1), wanted = 2 * pool_threads();
    int64_t ranges = (wanted + blocks - 1) / blocks;
    if (ranges > most / LEAST_RANGE) ranges = most / LEAST_RANGE > 1 ? most / LEAST_RANGE : 1;
    const int64_t step = (most / ranges + V4K_PANEL_KEYS) / V4K_PANEL_KEYS * V4K_PANEL_KEYS;
    Bests best(n, ranges, ix->top_k);
    if (!best) return false;
    auto unit = [&](int64_t u) {
      const int64_t t = u / ranges * TOKEN_BLOCK, stop = std::min(t + TOKEN_BLOCK, n);
      const int64_t first = u % ranges * step, last = std::min(first + step, visible(i0 + stop - 1));
      scan(first, last, i0 + t, i0 + stop, best.of(u % ranges) + t);
    };
    for_each(blocks * ranges, n * most * ix->heads * ix->dims / MAC_COST, unit);
    auto finish = [&](int64_t t) { best.finish(t, visible(i0 + t), selected + (i0 + t) * ix->top_k); };
    for_each(n, n * ranges * ix->top_k * 32, finish);
    return true;
  }
};

}  // namespace
}  // namespace v4k

namespace v4k {

int select(const v4k_indexer *ix, const float *x, const float *qr, const float *turns, int64_t n,
           const Choosing *parts, int64_t n_parts, int32_t *selected) {
  if (!is_indexer(ix) || !x || !qr || !turns || n < 0 || !selected) return V4K_EARGUMENT;
  const int64_t heads = ix->heads, dims = ix->dims;
  Scratch<float> q(n * heads * dims), weights(n * heads);
  Queries queries(ix, n);
  if (!q || !weights || !queries) return V4K_EMEMORY;
  if (int error = linear(ix->wq_b, 1, qr, n, q.get())) return error;
  if (int error = linear(ix->weights_proj, 1, x, n, weights.get())) return error;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dims * heads));
  for (int64_t i = 0; i < n * heads; ++i) weights.get()[i] *= scale;
  auto token = [&](int64_t i) {
    for (int64_t h = 0; h < heads; ++h)
      rotate(q.get() + (i * heads + h + 1) * dims - ix->rope_dims, ix->rope_dims, turns + i * ix->rope_dims, false);
    queries.set(i, q.get() + i * heads * dims, weights.get() + i * heads);
  };
  for_each(n, n > 1 ? n * heads * dims * 16 : 0, token);
  int64_t row = 0;
  for (int64_t p = 0; p < n_parts; row += parts[p++].n) {
    if (!parts[p].wanted) continue;
    const v4k_compressed *keys = parts[p].keys;
    if (parts[p].start < 0 || parts[p].n < 0 || !keys || !keys->entries || !keys->scales) return V4K_EARGUMENT;
    const Selection work{ix, keys->entries, keys->scales, parts[p].start, row, queries};
    for (int64_t i = 0; i < parts[p].n; i += TOKEN_BATCH)
      if (!work.run(i, std::min(parts[p].n - i, TOKEN_BATCH), selected + row * ix->top_k)) return V4K_EMEMORY;
  }
  return V4K_OK;
}

}  // namespace v4k

extern "C" int v4k_select(const v4k_indexer *ix, const float *x, const float *qr, const float *turns, int64_t start,
                          int64_t n, const uint8_t *keys, const uint8_t *scales, int32_t *selected) {
  if (!keys || !scales) return V4K_EARGUMENT;
  const v4k_compressed held{nullptr, nullptr, const_cast<uint8_t *>(keys), const_cast<uint8_t *>(scales), 0, 0};
  const v4k::Choosing part{start, n, &held, true};
  return v4k::select(ix, x, qr, turns, n, &part, 1, selected);
}

extern "C" int v4k_index_scores(const v4k_indexer *ix, const float *q, const float *weights, const uint8_t *keys,
                                const uint8_t *scales, int64_t n_keys, float *out) {
  using namespace v4k;
  if (!is_indexer(ix) || !q || !weights || !keys || !scales || n_keys < 0 || !out) return V4K_EARGUMENT;
  const int64_t dims = ix->dims;
  Scratch<float> copy(ix->heads * dims);
  Queries queries(ix, 1);
  if (!copy || !queries) return V4K_EMEMORY;
  std::memcpy(copy.get(), q, static_cast<size_t>(ix->heads * dims) * sizeof(float));
  queries.set(0, copy.get(), weights);
  const v4k_index_query query = queries[0];
  auto unit = [&](int64_t u) {
    alignas(64) uint8_t panel[V4K_PANEL_KEYS * (MOST_DIMS + MOST_DIMS / 8)];
    alignas(64) float scores[V4K_PANEL_KEYS];
    const int64_t at = u * V4K_PANEL_KEYS, count = n_keys - at < V4K_PANEL_KEYS ? n_keys - at : V4K_PANEL_KEYS;
    tier().index_panel(keys + at * dims / 2, scales + at * dims / KEY_GROUP, count, dims, panel);
    tier().index_scores(panel, dims, &query, -INFINITY, scores);
    std::memcpy(out + at, scores, static_cast<size_t>(count) * sizeof(float));
  };
  for_each((n_keys + V4K_PANEL_KEYS - 1) / V4K_PANEL_KEYS, n_keys * ix->heads * dims / MAC_COST, unit);
  return V4K_OK;
}
