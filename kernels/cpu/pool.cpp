// The pool. A loop is announced in one atomic word, the ticket: its number in the high half, units left in the low one.
// Whoever lowers the low half by one owns a unit. A thread that wakes late finds no unit left, so the caller waits for
// units, never for threads: a worker that is not scheduled delays nothing.
#include "pool.h"

#include <atomic>

#include "memory.h"
#include "platform.h"
#include "relax.h"

namespace v4k {
namespace {

const int SPINS = 4000;  // before sleeping: about 50 us, the gap between two calls of a layer
const size_t STACK_BYTES = 2 << 20;
const int64_t MOST_UNITS = INT64_C(1) << 31;

class Pool {
 public:
  std::atomic<int> threads{usable_cpus()};

  void run(int64_t n, void (*work)(void *, int64_t), void *context) {
    Lock turn(turns_);
    start_workers();
    n_ = n;
    work_ = work;
    context_ = context;
    done_.store(0, std::memory_order_relaxed);
    const uint64_t loop = (ticket_.load() >> 32) + 1;
    ticket_.store(loop << 32 | static_cast<uint64_t>(n));
    if (sleepers_.load()) {
      { Lock lock(sleep_); }  // nobody is between looking at the ticket and sleeping
      wake_.wake_all();
    }
    take_units();
    for (int spins = 0; done_.load(std::memory_order_acquire) != n; ++spins) {
      if (spins < SPINS)
        relax();
      else
        give_way();
    }
  }

 private:
  // Some C libraries give threads less stack than attention uses.
  bool start_worker() {
    struct Start {
      Pool *pool;
      int index;
    };
    auto enter = [](void *start) {
      const Start s = *static_cast<Start *>(start);
      unmake(static_cast<Start *>(start));
      s.pool->worker(s.index);
    };
    Start *start = make<Start>(this, started_);
    if (start && start_thread(STACK_BYTES, enter, start, nullptr)) return true;
    unmake(start);
    return false;
  }

  void start_workers() {
    const int wanted = threads - 1;
    while (started_ < wanted) {
      if (!start_worker()) {  // the system allows no more: go on with those that run
        threads = started_ + 1;
        break;
      }
      ++started_;
    }
    allowed_.store(wanted < started_ ? wanted : started_);
  }

  void take_units() {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (ticket & 0xffffffff) {
      if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
      const int64_t left = static_cast<int64_t>(ticket & 0xffffffff);
      work_(context_, n_ - left);  // these belong to this loop until its last unit is done
      done_.fetch_add(1, std::memory_order_release);
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  bool has_work(int index) const { return index < allowed_.load() && (ticket_.load() & 0xffffffff); }

  void worker(int index) {
    for (;;) {
      for (int spins = 0; spins < SPINS; ++spins) {
        if (has_work(index)) {
          take_units();
          spins = 0;
        }
        relax();
      }
      Lock lock(sleep_);
      sleepers_.fetch_add(1);
      while (!has_work(index)) wake_.wait(sleep_);
      sleepers_.fetch_sub(1);
    }
  }

  Mutex turns_, sleep_;
  Condition wake_;
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int64_t> done_{0};
  std::atomic<int> sleepers_{0}, allowed_{0};
  int started_ = 0;
  int64_t n_ = 0;
  void (*work_)(void *, int64_t) = nullptr;
  void *context_ = nullptr;
};

std::atomic<Pool *> current{nullptr};

// A fork copies the memory but not the threads, and locks may be held: the child gets a new pool. The old one is left
// alone, as is the last one at exit, so that nothing is destroyed under a running thread.
void after_fork() {
  Pool *old = current.load();
  Pool *fresh = old ? make<Pool>() : nullptr;
  if (fresh) fresh->threads = old->threads.load();
  current.store(fresh);
}

// NULL without memory for it: the caller then computes alone.
Pool *pool() {
  static std::atomic<bool> told{false};
  if (!told.exchange(true)) on_fork(after_fork);
  Pool *p = current.load();
  while (!p) {
    Pool *fresh = make<Pool>();
    if (!fresh) return nullptr;
    if (!current.compare_exchange_strong(p, fresh))
      unmake(fresh);
    else
      p = fresh;
  }
  return p;
}

}  // namespace

int pool_threads() {
  const Pool *p = pool();
  return p ? p->threads.load() : 1;
}

void pool_set_threads(int n) {
  if (Pool *p = pool()) p->threads = n;
}

void for_each(int64_t n, void (*work)(void *, int64_t), void *context) {
  Pool *p = pool();
  if (n <= 1 || !p || p->threads == 1) {
    for (int64_t i = 0; i < n; ++i) work(context, i);
    return;
  }
  for (int64_t i = 0; i < n; i += MOST_UNITS) p->run(n - i < MOST_UNITS ? n - i : MOST_UNITS, work, context);
}

}  // namespace v4k
