// Router: sqrt(softplus) scores, the best experts, their weights (spec 3.10).
#include "check.h"
#include "dispatch.h"
#include "linear.h"
#include "pool.h"

namespace v4k {
namespace {

// Highest score + bias first, the lower id on a tie.
void choose(const float *scores, const float *bias, int64_t n, int64_t top_k, int64_t *ids) {
  for (int64_t j = 0; j < top_k; ++j) {
    int64_t best = -1;
    for (int64_t e = 0; e < n; ++e) {
      bool taken = false;
      for (int64_t i = 0; i < j; ++i) taken |= ids[i] == e;
      if (!taken && (best < 0 || scores[e] + bias[e] > scores[best] + bias[best])) best = e;
    }
    ids[j] = best;
  }
}

}  // namespace
}  // namespace v4k

extern "C" int v4k_route(const v4k_router *r, const float *x, const int64_t *tokens, int64_t n, int64_t *ids,
                         float *weights, float *scores) {
  using namespace v4k;
  if (!r || !is_matrix(r->gate) || !x || n < 0 || !ids || !weights || !scores || r->top_k < 1 ||
      r->top_k > r->gate.rows || !(r->bias || (r->tid2eid && tokens)))
    return V4K_EARGUMENT;
  const int64_t experts = r->gate.rows, k = r->top_k;
  if (int error = linear(r->gate, 1, x, n, scores)) return error;
  auto token = [&](int64_t i) {
    float *s = scores + i * experts, sum = 0;
    tier().sqrt_softplus(s, experts);
    int64_t *chosen = ids + i * k;
    if (r->tid2eid)
      for (int64_t j = 0; j < k; ++j) chosen[j] = r->tid2eid[tokens[i] * k + j];
    else
      choose(s, r->bias, experts, k, chosen);
    for (int64_t j = 0; j < k; ++j) {
      const bool known = chosen[j] >= 0 && chosen[j] < experts;  // else v4k_experts refuses it
      sum += weights[i * k + j] = known ? s[chosen[j]] : 0;
    }
    for (int64_t j = 0; j < k; ++j) weights[i * k + j] = weights[i * k + j] / sum * r->scale;
    for (int64_t e = 0; r->bias && e < experts; ++e) s[e] += r->bias[e];
  };
  for_each(n, n > 1 ? n * experts * 64 : 0, token);
  return V4K_OK;
}
