// Entries in a mapped file: asking for pages before they are touched.
#ifndef V4K_PAGING_H
#define V4K_PAGING_H

#include <cstdint>

namespace v4k {

// Have the pages of entries ids [n] (-1: none), of `bytes` each, read all at once rather than fault after fault.
void will_need(const uint8_t *entries, int64_t bytes, const int32_t *ids, int64_t n);

}  // namespace v4k
#endif
