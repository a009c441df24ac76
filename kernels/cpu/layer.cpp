// The whole attention of a layer, step after step, for as few calls per token as can be.
#include "check.h"
#include "kv.h"
#include "paging.h"

namespace v4k {
namespace {

const int64_t ALIGNMENT = 64;

int64_t aligned(int64_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

bool is_layer(const v4k_attention_layer *l) {
  return l && l->attention && l->attention->heads > 0 && l->attention->head_dim > 0 && l->attention->wq_a.rows > 0 &&
         (!l->indexer || (l->compressor && l->keys && l->indexer->top_k > 0));
}

// What passes between the steps, one array behind the other.
struct Steps {
  Steps(const v4k_attention_layer &l, int64_t n, uint8_t *memory) : at_(memory) {
    const v4k_attention &a = *l.attention;
    q = take<float>(n * a.heads * a.head_dim);
    heads = take<float>(n * a.heads * a.head_dim);
    qr = take<float>(n * a.wq_a.rows);
    fresh = take<uint8_t>(n * entry_bytes(a.head_dim, a.rope_dims));
    selected = take<int32_t>(l.indexer ? n * l.indexer->top_k : 0);
  }

  int64_t bytes() const { return bytes_; }

  float *q, *heads, *qr;
  uint8_t *fresh;
  int32_t *selected;

 private:
  template <class T>
  T *take(int64_t count) {
    T *place = at_ ? reinterpret_cast<T *>(at_ + bytes_) : nullptr;
    bytes_ += aligned(count * static_cast<int64_t>(sizeof(T)));
    return place;
  }

  uint8_t *at_;
  int64_t bytes_ = 0;
};

}  // namespace
}  // namespace v4k

extern "C" int64_t v4k_attention_scratch(const v4k_attention_layer *l) {
  return v4k::is_layer(l) ? v4k::Steps(*l, 1, nullptr).bytes() : V4K_EARGUMENT;
}

extern "C" int v4k_self_attention(const v4k_attention_layer *l, const float *x, const float *turns, int64_t start,
                                  int64_t n, const v4k_memory *m, void *scratch, float *out) {
  using namespace v4k;
  if (!is_layer(l) || start < 0 || n < 0 || !m || !scratch || (l->compressor && !m->main) || (l->keys && !m->keys))
    return V4K_EARGUMENT;
  const v4k_attention *a = l->attention;
  const int64_t ratio = l->compressor ? l->compressor->ratio : 0;
  const uint8_t *entries = ratio ? m->main->entries : nullptr;
  const Steps s(*l, n, static_cast<uint8_t *>(scratch));
  if (int error = v4k_queries(a, x, n, turns, s.q, s.qr)) return error;
  if (int error = v4k_window_entries(a, x, n, turns, s.fresh)) return error;
  if (l->compressor)
    if (int error = v4k_compress(l->compressor, x, start, n, m->main)) return error;
  const int32_t *selected = nullptr;
  if (l->indexer) {
    if (int error = v4k_compress(l->keys, x, start, n, m->keys)) return error;
    if ((start + n) / ratio > l->indexer->top_k) {
      selected = s.selected;
      if (int error = v4k_select(l->indexer, x, s.qr, turns, start, n, m->keys->entries, m->keys->scales, s.selected))
        return error;
    }
  }
  if (selected && m->main->on_disk)
    will_need(entries, entry_bytes(a->head_dim, a->rope_dims), selected, n * l->indexer->top_k);
  const int64_t k = selected ? l->indexer->top_k : 0;
  if (int error = v4k_attend(a, s.q, turns, start, n, m->ring, s.fresh, entries, ratio, selected, k, s.heads))
    return error;
  return v4k_attention_output(a, s.heads, n, out);
}
