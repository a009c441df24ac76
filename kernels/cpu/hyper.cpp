// Embedding and hyper-connections (spec 3.2).
#include <cmath>
#include <cstring>

#include "check.h"
#include "decode.h"
#include "dispatch.h"
#include "linear.h"
#include "pool.h"
#include "scratch.h"

namespace v4k {
namespace {

const int64_t MOST_STREAMS = 64;

// In place: 1 / (1 + e^-x) of n values, given -x.
void sigmoids(float *negated, int64_t n) {
  tier().exponentials(negated, n);
  for (int64_t i = 0; i < n; ++i) negated[i] = 1.0f / (1.0f + negated[i]);
}

// Sum of n values as a balanced tree of neighbours; one without a neighbour goes up as it is.
float pairwise(const float *x, int64_t n, int64_t stride) {
  if (n == 4) return (x[0] + x[stride]) + (x[2 * stride] + x[3 * stride]);
  if (n == 1) return x[0];
  int64_t half = 1;
  while (2 * half < n) half *= 2;
  return pairwise(x, half, stride) + pairwise(x + half * stride, n - half, stride);
}

bool is_hyper(const v4k_hyper *h, int64_t mixes_per_stream) {
  return h && h->base && h->scale && h->norm && h->streams > 0 && h->streams <= MOST_STREAMS && h->iters > 0 &&
         is_fp32(h->fn) && h->fn.rows == h->streams * mixes_per_stream && h->fn.cols % (h->streams * 8) == 0;
}

float inverse_rms(const float *x, int64_t n, float eps) {
  return 1.0f / std::sqrt(tier().sum_squares(x, n) / static_cast<float>(n) + eps);
}

// c [s, s]: softmax over k, then columns and rows in turn, columns last.
void sinkhorn(float *c, int64_t s, int64_t iters, float eps) {
  for (int64_t j = 0; j < s; ++j) {
    float *row = c + j * s, top = row[0];
    for (int64_t k = 1; k < s; ++k) top = row[k] > top ? row[k] : top;
    for (int64_t k = 0; k < s; ++k) row[k] -= top;
  }
  tier().exponentials(c, s * s);
  for (int64_t j = 0; j < s; ++j) {
    const float sum = pairwise(c + j * s, s, 1);
    for (int64_t k = 0; k < s; ++k) c[j * s + k] = c[j * s + k] / sum + eps;
  }
  for (int64_t i = 0; i < iters; ++i) {
    for (int64_t j = 0; i && j < s; ++j) {
      const float sum = pairwise(c + j * s, s, 1) + eps;
      for (int64_t k = 0; k < s; ++k) c[j * s + k] /= sum;
    }
    float sums[MOST_STREAMS];
    for (int64_t k = 0; k < s; ++k) sums[k] = pairwise(c + k, s, s) + eps;
    for (int64_t j = 0; j < s; ++j)
      for (int64_t k = 0; k < s; ++k) c[j * s + k] /= sums[k];
  }
}

// x [d] = norm(sum over j of weights_j * streams [s, d]).
void collapse(const v4k_hyper *h, const float *streams, const float *weights, int64_t d, float *x) {
  for (int64_t i = 0; i < d; ++i) x[i] = weights[0] * streams[i];
  for (int64_t j = 1; j < h->streams; ++j)
    for (int64_t i = 0; i < d; ++i) x[i] += weights[j] * streams[j * d + i];
  tier().rms_norm(x, h->norm, d, h->norm_eps, x);
}

// One token: m [rows of fn] are the products with fn.
void pre_token(const v4k_hyper *h, const float *streams, const float *m, int64_t d, float *x, float *mix) {
  const int64_t s = h->streams;
  const float rho = inverse_rms(streams, s * d, h->norm_eps);
  float gates[2 * MOST_STREAMS];
  for (int64_t j = 0; j < 2 * s; ++j) gates[j] = -(m[j] * rho * h->scale[j / s] + h->base[j]);
  sigmoids(gates, 2 * s);
  for (int64_t j = 0; j < s; ++j) {
    gates[j] += h->eps;
    mix[j] = 2.0f * gates[s + j];
  }
  for (int64_t j = 0; j < s * s; ++j) mix[s + j] = m[2 * s + j] * rho * h->scale[2] + h->base[2 * s + j];
  sinkhorn(mix + s, s, h->iters, h->eps);
  collapse(h, streams, gates, d, x);
}

void head_token(const v4k_hyper *h, const float *streams, const float *m, int64_t d, float *x) {
  const float rho = inverse_rms(streams, h->streams * d, h->norm_eps);
  float gates[MOST_STREAMS];
  for (int64_t j = 0; j < h->streams; ++j) gates[j] = -(m[j] * rho * h->scale[0] + h->base[j]);
  sigmoids(gates, h->streams);
  for (int64_t j = 0; j < h->streams; ++j) gates[j] += h->eps;
  collapse(h, streams, gates, d, x);
}

// streams [s, d] of one token, in blocks that stay in registers and L1.
void post_token(const float *out, const float *mix, int64_t s, int64_t d, float *streams) {
  const int64_t block = 32;
  float old[MOST_STREAMS * block];
  for (int64_t at = 0; at < d; at += block) {
    const int64_t n = d - at < block ? d - at : block;
    for (int64_t j = 0; j < s; ++j) std::memcpy(old + j * block, streams + j * d + at, n * sizeof(float));
    for (int64_t k = 0; k < s; ++k) {
      float *to = streams + k * d + at;
      for (int64_t i = 0; i < n; ++i) to[i] = mix[k] * out[at + i];
      for (int64_t j = 0; j < s; ++j) {
        const float c = mix[s + j * s + k];
        for (int64_t i = 0; i < n; ++i) to[i] += c * old[j * block + i];
      }
    }
  }
}

}  // namespace
}  // namespace v4k

extern "C" int v4k_embed(const v4k_matrix *table, const int64_t *ids, int64_t n, int64_t streams, float *out) {
  if (!table || !ids || !out || n < 0 || streams < 1 || !v4k::is_matrix(*table)) return V4K_EARGUMENT;
  const int64_t d = table->cols;
  for (int64_t i = 0; i < n; ++i, out += streams * d) {
    if (ids[i] < 0 || ids[i] >= table->rows || !v4k::decode_row(*table, ids[i], out)) return V4K_EARGUMENT;
    for (int64_t j = 1; j < streams; ++j) std::memcpy(out + j * d, out, d * sizeof(float));
  }
  return V4K_OK;
}

extern "C" int v4k_hyper_pre(const v4k_hyper *h, const float *streams, int64_t n, float *x, float *mix) {
  using namespace v4k;
  if (!h || !streams || !x || !mix || n < 0 || !is_hyper(h, h->streams + 2)) return V4K_EARGUMENT;
  const int64_t s = h->streams, d = h->fn.cols / s, rows = h->fn.rows;
  Scratch<float> m(n * rows);
  if (!m) return V4K_EMEMORY;
  if (int error = linear(h->fn, 1, streams, n, m.get())) return error;
  auto token = [&](int64_t i) {
    pre_token(h, streams + i * s * d, m.get() + i * rows, d, x + i * d, mix + i * (s + s * s));
  };
  for_each(n, n > 1 ? n * s * d * 4 : 0, token);
  return V4K_OK;
}

extern "C" int v4k_hyper_post(const float *out, const float *mix, int64_t n, int64_t n_streams, int64_t dim,
                              float *streams) {
  using namespace v4k;
  if (!out || !mix || !streams || n < 0 || n_streams < 1 || n_streams > MOST_STREAMS || dim < 1) return V4K_EARGUMENT;
  auto token = [&](int64_t i) {
    post_token(out + i * dim, mix + i * (n_streams + n_streams * n_streams), n_streams, dim, streams + i * n_streams * dim);
  };
  for_each(n, n > 1 ? n * n_streams * n_streams * dim : 0, token);
  return V4K_OK;
}

extern "C" int v4k_hyper_head(const v4k_hyper *h, const float *streams, int64_t n, float *x) {
  using namespace v4k;
  if (!streams || !x || n < 0 || !is_hyper(h, 1)) return V4K_EARGUMENT;
  const int64_t s = h->streams, d = h->fn.cols / s;
  Scratch<float> m(n * s);
  if (!m) return V4K_EMEMORY;
  if (int error = linear(h->fn, 1, streams, n, m.get())) return error;
  auto token = [&](int64_t i) { head_token(h, streams + i * s * d, m.get() + i * s, d, x + i * d); };
  for_each(n, n > 1 ? n * s * d * 4 : 0, token);
  return V4K_OK;
}
