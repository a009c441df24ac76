// A persistent pool of threads for loops over units of work.
#ifndef V4K_POOL_H
#define V4K_POOL_H

#include <cstdint>

namespace v4k {

// Threads used by for_each, the calling one included.
int pool_threads();

// Set it; threads are started when first needed, and kept.
void pool_set_threads(int n);

// Call work(context, unit) for every unit in [0, n), on all threads, in any order; returns when all are done.
// Concurrent callers take turns. `work` must not throw and must not call for_each.
void for_each(int64_t n, void (*work)(void *context, int64_t unit), void *context);

const int64_t SMALL_WORK = 1 << 19;  // multiply-adds below which waking threads costs more than it saves
const int64_t QUANTIZE_COST = 8;     // multiply-adds that take as long as quantizing one activation

// The same for a callable, on the calling thread alone if all units together cost less than SMALL_WORK.
template <class Work>
void for_each(int64_t n, int64_t cost, Work &work) {
  if (cost < SMALL_WORK) {
    for (int64_t unit = 0; unit < n; ++unit) work(unit);
    return;
  }
  for_each(
      n, [](void *context, int64_t unit) { (*static_cast<Work *>(context))(unit); }, &work);
}

}  // namespace v4k
#endif
