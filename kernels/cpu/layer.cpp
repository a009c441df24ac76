// The whole attention of a layer, step after step, for as few calls per token as can be.
#include "check.h"
#include "kv.h"
#include "paging.h"
#include "scratch.h"
#include "spans.h"

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

extern "C" int v4k_self_attention(const v4k_attention_layer *l, const float *x, const float *turns,
                                  const v4k_span *spans, int64_t n_spans, void *scratch, float *out) {
  using namespace v4k;
  if (!is_layer(l) || !spans || n_spans < 0 || !scratch) return V4K_EARGUMENT;
  const v4k_attention *a = l->attention;
  const int64_t ratio = l->compressor ? l->compressor->ratio : 0, top_k = l->indexer ? l->indexer->top_k : 0;
  Scratch<Fed> entries(n_spans), keys(n_spans);
  Scratch<Choosing> choosing(n_spans);
  if (!entries || !keys || !choosing) return V4K_EMEMORY;
  int64_t n = 0;
  bool any = false;
  for (int64_t s = 0; s < n_spans; n += spans[s++].rows) {
    const int64_t start = spans[s].start, rows = spans[s].rows;
    if (!spans[s].memory || start < 0 || rows < 0) return V4K_EARGUMENT;
    const v4k_memory &m = spans[s].memory[l->number];
    if ((l->compressor && !m.main) || (l->keys && !m.keys)) return V4K_EARGUMENT;
    entries.get()[s] = {start, rows, m.main};
    keys.get()[s] = {start, rows, m.keys};
    choosing.get()[s] = {start, rows, m.keys, l->indexer && (start + rows) / ratio > top_k};
    any = any || choosing.get()[s].wanted;
  }
  const Steps s(*l, n, static_cast<uint8_t *>(scratch));
  if (int error = v4k_queries(a, x, n, turns, s.q, s.qr)) return error;
  if (int error = v4k_window_entries(a, x, n, turns, s.fresh)) return error;
  if (l->compressor)
    if (int error = compress(l->compressor, x, n, entries.get(), n_spans)) return error;
  if (l->indexer)
    if (int error = compress(l->keys, x, n, keys.get(), n_spans)) return error;
  if (any)
    if (int error = select(l->indexer, x, s.qr, turns, n, choosing.get(), n_spans, s.selected)) return error;
  const int64_t bytes = entry_bytes(a->head_dim, a->rope_dims), width = a->heads * a->head_dim;
  for (int64_t i = 0, row = 0; i < n_spans; row += spans[i++].rows) {
    const v4k_memory &m = spans[i].memory[l->number];
    const uint8_t *held = ratio ? m.main->entries : nullptr;
    const int32_t *selected = choosing.get()[i].wanted ? s.selected + row * top_k : nullptr;
    if (selected && m.main->on_disk) will_need(held, bytes, selected, spans[i].rows * top_k);
    if (int error = attend(a, s.q + row * width, turns + row * a->rope_dims, spans[i].start, spans[i].rows, m.ring,
                           m.ring_rows, s.fresh + row * bytes, held, ratio, selected, selected ? top_k : 0,
                           s.heads + row * width, spans[i].together))
      return error;
  }
  return v4k_attention_output(a, s.heads, n, out);
}
