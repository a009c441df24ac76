// Indexer: scores of all keys by exact integer products, and the best of them (spec 3.7).
#include <algorithm>
#include <cstring>

#include "acts.h"
#include "bits.h"
#include "check.h"
#include "kv.h"
#include "linear.h"
#include "pool.h"
#include "scratch.h"

namespace v4k {
namespace {

const int64_t UNIT_KEYS = 512;             // scored together
const int64_t HEAD_BLOCK = 32;             // heads scored together
const int64_t SCRATCH_SCORES = 16 << 20;   // held at a time

bool is_indexer(const v4k_indexer *ix) {
  return ix && ix->heads > 0 && ix->top_k > 0 && is_key(ix->dims, ix->rope_dims) && is_matrix(ix->wq_b) &&
         ix->wq_b.rows == ix->heads * ix->dims && is_matrix(ix->weights_proj) && ix->weights_proj.rows == ix->heads;
}

// Doubled e2m1 values and exponent bytes as a row of activations for FP4 weights.
void fill_row(const Acts &acts, int64_t i, const int8_t *doubled, const uint8_t *scales, int64_t dims) {
  acts.pad(i);
  const v4k_acts row = acts.row(i);
  for (int64_t g = 0; g < dims / V4K_GROUP; ++g, doubled += V4K_GROUP) {
    int8_t *even = row.q + g / 4 * 128 + g % 4 * 16;
    int sums[2] = {0, 0};
    for (int k = 0; k < 16; ++k) {
      even[k] = doubled[2 * k];
      even[64 + k] = doubled[2 * k + 1];
      sums[k / 2 % 2] += doubled[2 * k] + doubled[2 * k + 1];
    }
    row.offset[g] = static_cast<int32_t>(static_cast<uint32_t>(-12 * sums[1]) << 16 |
                                         (static_cast<uint32_t>(-12 * sums[0]) & 0xffff));
    row.scale[g] = 0.25f * power_of_two(scales[g]);  // both factors are doubled
  }
}

// One token's queries q [heads, dims], rotated: Hadamard and e2m1.
void quantize_queries(const v4k_indexer *ix, float *q, const Acts &acts, int64_t first) {
  int8_t doubled[MOST_DIMS];
  uint8_t scales[MOST_DIMS / KEY_GROUP];
  for (int64_t h = 0; h < ix->heads; ++h) {
    hadamard(q + h * ix->dims, ix->dims);
    quantize_key(q + h * ix->dims, ix->dims, doubled, scales);
    fill_row(acts, first + h, doubled, scales, ix->dims);
  }
}

// out [count] = sum over heads of weights * relu(score) for keys [first, first + count).
void score_unit(const v4k_matrix &keys, int64_t first, int64_t count, const Acts &acts, int64_t row,
                const float *weights, int64_t heads, float *out) {
  float y[HEAD_BLOCK * UNIT_KEYS];
  int32_t rows[HEAD_BLOCK];
  std::memset(out, 0, static_cast<size_t>(count) * sizeof(float));
  for (int64_t h0 = 0; h0 < heads; h0 += HEAD_BLOCK) {
    const int64_t n = heads - h0 < HEAD_BLOCK ? heads - h0 : HEAD_BLOCK;
    for (int64_t h = 0; h < n; ++h) rows[h] = static_cast<int32_t>(row + h0 + h);
    tier().rows(&keys, first, count, &acts.view, rows, n, y, UNIT_KEYS);
    for (int64_t h = 0; h < n; ++h) {
      const float w = weights[h0 + h], *s = y + h * UNIT_KEYS;
      for (int64_t k = 0; k < count; ++k) out[k] += w * (s[k] > 0 ? s[k] : 0);
    }
  }
}

// The `top_k` best of scores [n], lower ids first on ties, ascending; -1 behind them.
bool best(const float *scores, int64_t n, int64_t top_k, int32_t *selected) {
  const int64_t count = n < top_k ? n : top_k;
  for (int64_t j = count; j < top_k; ++j) selected[j] = -1;
  if (n <= top_k) {
    for (int64_t j = 0; j < n; ++j) selected[j] = static_cast<int32_t>(j);
    return true;
  }
  Scratch<uint64_t> order(n);
  if (!order) return false;
  uint64_t *o = order.get();
  for (int64_t j = 0; j < n; ++j) {
    uint32_t bits = bits_of(scores[j]);
    bits ^= bits >> 31 ? 0xffffffff : 0x80000000;  // ascending as unsigned
    o[j] = static_cast<uint64_t>(~bits) << 32 | static_cast<uint64_t>(j);
  }
  std::nth_element(o, o + count - 1, o + n);
  for (int64_t j = 0; j < count; ++j) selected[j] = static_cast<int32_t>(o[j] & 0xffffffff);
  std::sort(selected, selected + count);
  return true;
}

// Everything about one call of v4k_select.
struct Selection {
  const v4k_indexer *ix;
  v4k_matrix keys;
  int64_t start;
  const Acts &acts;      // [n * heads]
  const float *weights;  // [n, heads]

  int64_t visible(int64_t i) const { return (start + i + 1) / 4; }

  // Tokens [first, first + n): scores [n, most], then the choice.
  bool run(int64_t first, int64_t n, int64_t most, float *scores, int32_t *selected) const {
    const int64_t units = (most + UNIT_KEYS - 1) / UNIT_KEYS, top_k = ix->top_k;
    auto score = [&](int64_t u) {
      const int64_t i = first + u / units, at = u % units * UNIT_KEYS, seen = visible(i);
      if (seen <= top_k || at >= seen) return;
      const int64_t count = seen - at < UNIT_KEYS ? seen - at : UNIT_KEYS;
      score_unit(keys, at, count, acts, i * ix->heads, weights + i * ix->heads, ix->heads,
                 scores + (i - first) * most + at);
    };
    for_each(n * units, n * most * ix->heads * ix->dims / 4, score);
    bool memory = true;
    auto choose = [&](int64_t j) {
      const int64_t i = first + j;
      if (!best(scores + j * most, visible(i), top_k, selected + i * top_k)) memory = false;
    };
    for_each(n, n > 1 ? n * most * 16 : 0, choose);
    return memory;
  }
};

v4k_matrix key_matrix(const v4k_indexer *ix, const uint8_t *keys, const uint8_t *scales, int64_t n) {
  return {keys, scales, n, ix->dims, V4K_FP4};
}

}  // namespace
}  // namespace v4k

extern "C" int v4k_select(const v4k_indexer *ix, const float *x, const float *qr, const float *turns, int64_t start,
                          int64_t n, const uint8_t *keys, const uint8_t *scales, int32_t *selected) {
  using namespace v4k;
  if (!is_indexer(ix) || !x || !qr || !turns || start < 0 || n < 0 || !keys || !scales || !selected)
    return V4K_EARGUMENT;
  const int64_t heads = ix->heads, dims = ix->dims, most = (start + n) / 4;
  Scratch<float> q(n * heads * dims), weights(n * heads);
  Acts acts;
  if (!q || !weights || !acts.reserve(n * heads, dims)) return V4K_EMEMORY;
  if (int error = linear(ix->wq_b, 1, qr, n, q.get())) return error;
  if (int error = linear(ix->weights_proj, 1, x, n, weights.get())) return error;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dims * heads));
  for (int64_t i = 0; i < n * heads; ++i) weights.get()[i] *= scale;
  auto token = [&](int64_t i) {
    for (int64_t h = 0; h < heads; ++h)
      rotate(q.get() + (i * heads + h + 1) * dims - ix->rope_dims, ix->rope_dims, turns + i * ix->rope_dims, false);
    quantize_queries(ix, q.get() + i * heads * dims, acts, i * heads);
  };
  for_each(n, n > 1 ? n * heads * dims * 16 : 0, token);
  int64_t batch = most ? SCRATCH_SCORES / most : n;
  batch = batch < 1 ? 1 : batch < n ? batch : n;
  Scratch<float> scores(batch * most);
  if (!scores) return V4K_EMEMORY;
  const Selection work{ix, key_matrix(ix, keys, scales, most), start, acts, weights.get()};
  for (int64_t i = 0; i < n; i += batch)
    if (!work.run(i, n - i < batch ? n - i : batch, most, scores.get(), selected)) return V4K_EMEMORY;
  return V4K_OK;
}

extern "C" int v4k_index_scores(const v4k_indexer *ix, const float *q, const float *weights, const uint8_t *keys,
                                const uint8_t *scales, int64_t n_keys, float *out) {
  using namespace v4k;
  if (!is_indexer(ix) || !q || !weights || !keys || !scales || n_keys < 0 || !out) return V4K_EARGUMENT;
  Acts acts;
  Scratch<float> copy(ix->heads * ix->dims);
  if (!copy || !acts.reserve(ix->heads, ix->dims)) return V4K_EMEMORY;
  std::memcpy(copy.get(), q, static_cast<size_t>(ix->heads * ix->dims) * sizeof(float));
  quantize_queries(ix, copy.get(), acts, 0);
  const v4k_matrix matrix = key_matrix(ix, keys, scales, n_keys);
  auto unit = [&](int64_t u) {
    const int64_t at = u * UNIT_KEYS, count = n_keys - at < UNIT_KEYS ? n_keys - at : UNIT_KEYS;
    score_unit(matrix, at, count, acts, 0, weights, ix->heads, out + at);
  };
  for_each((n_keys + UNIT_KEYS - 1) / UNIT_KEYS, n_keys * ix->heads * ix->dims / 4, unit);
  return V4K_OK;
}
