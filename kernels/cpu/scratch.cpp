// How much scratch memory all calls of the process hold, and have held at most.
#include "scratch.h"

#include <atomic>

#include "v4k.h"

namespace v4k {
namespace {

std::atomic<int64_t> held{0}, peak{0};

}  // namespace

void count_scratch(int64_t bytes) {
  const int64_t now = held.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t most = peak.load(std::memory_order_relaxed);
  while (now > most && !peak.compare_exchange_weak(most, now, std::memory_order_relaxed)) {
  }
}

}  // namespace v4k

extern "C" int64_t v4k_scratch_peak(void) { return v4k::peak.load(std::memory_order_relaxed); }
