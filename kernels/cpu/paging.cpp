// Entries in a mapped file: asking for pages before they are touched.
#include "paging.h"

#include <algorithm>

#include "platform.h"
#include "scratch.h"

namespace v4k {

void will_need(const uint8_t *entries, int64_t bytes, const int32_t *ids, int64_t n) {
  const uintptr_t page = page_bytes(), base = reinterpret_cast<uintptr_t>(entries);
  Scratch<uintptr_t> pages(n);  // the first one of each entry
  if (!pages) return;           // no harm: they come one by one
  uintptr_t *p = pages.get();
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i)
    if (ids[i] >= 0) p[count++] = (base + static_cast<uintptr_t>(ids[i] * bytes)) / page;
  std::sort(p, p + count, [](uintptr_t a, uintptr_t b) { return a < b; });
  const uintptr_t span = (static_cast<uintptr_t>(bytes) + page - 2) / page + 1;  // pages an entry can lie on
  for (int64_t i = 0; i < count;) {
    const uintptr_t first = p[i];
    uintptr_t end = first + span;
    for (++i; i < count && p[i] <= end; ++i) end = p[i] + span;
    ask_for_pages(reinterpret_cast<void *>(first * page), (end - first) * page);
  }
}

}  // namespace v4k
