// Many loops from several threads while the number of workers changes: every unit exactly once. For sanitizers.
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "pool.h"

int main() {
  std::atomic<int> bad{0};
  auto caller = [&](int seed) {
    for (int round = 0; round < 300; ++round) {
      std::vector<int> seen(1 + (round * 7 + seed) % 97);
      auto unit = [&](int64_t i) { ++seen[i]; };
      v4k::for_each(static_cast<int64_t>(seen.size()), v4k::SMALL_WORK, unit);
      for (int count : seen) bad += count != 1;
      if (round % 50 == 0) v4k::pool_set_threads(1 + (round / 50 + seed) % 4);
      if (round % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // workers fall asleep
    }
  };
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) callers.emplace_back(caller, i);
  for (auto &thread : callers) thread.join();
  std::printf("%d units not done exactly once\n", bad.load());
  return bad.load() != 0;
}
