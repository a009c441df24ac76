// The pool. A loop is announced in one atomic word, the ticket: its number in the high half, units left in the low one.
// Whoever lowers the low half by one owns a unit. A thread that wakes late finds no unit left, so the caller waits for
// units, never for threads: a worker that is not scheduled delays nothing.
#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

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
    std::lock_guard<std::mutex> turn(turns_);
    start_workers();
    n_ = n;
    work_ = work;
    context_ = context;
    done_.store(0, std::memory_order_relaxed);
    const uint64_t loop = (ticket_.load() >> 32) + 1;
    ticket_.store(loop << 32 | static_cast<uint64_t>(n));
    if (sleepers_.load()) {
      { std::lock_guard<std::mutex> lock(sleep_); }  // nobody is between looking at the ticket and sleeping
      wake_.notify_all();
    }
    take_units();
    for (int spins = 0; done_.load(std::memory_order_acquire) != n; ++spins) {
      if (spins < SPINS)
        relax();
      else
        std::this_thread::yield();
    }
  }

 private:
  static int usable_cpus() {
    cpu_set_t set;
    CPU_ZERO(&set);
    const int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return n < 1 ? 1 : n > 1024 ? 1024 : n;
  }

  // Some C libraries give threads less stack than attention uses.
  bool start_worker() {
    struct Start {
      Pool *pool;
      int index;
    };
    auto enter = [](void *start) -> void * {
      const Start s = *static_cast<Start *>(start);
      delete static_cast<Start *>(start);
      s.pool->worker(s.index);
      return nullptr;
    };
    Start *start = new (std::nothrow) Start{this, started_};
    pthread_attr_t attributes;
    pthread_t thread;
    if (!start || pthread_attr_init(&attributes)) return delete start, false;
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    const bool started = pthread_create(&thread, &attributes, enter, start) == 0;
    pthread_attr_destroy(&attributes);
    if (!started) delete start;
    return started;
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
      std::unique_lock<std::mutex> lock(sleep_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [&] { return has_work(index); });
      sleepers_.fetch_sub(1);
    }
  }

  std::mutex turns_, sleep_;
  std::condition_variable wake_;
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
  Pool *fresh = old ? new (std::nothrow) Pool : nullptr;
  if (fresh) fresh->threads = old->threads.load();
  current.store(fresh);
}

Pool *pool() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, after_fork); });
  Pool *p = current.load();
  while (!p) {
    Pool *fresh = new Pool;
    if (!current.compare_exchange_strong(p, fresh))
      delete fresh;
    else
      p = fresh;
  }
  return p;
}

}  // namespace

int pool_threads() { return pool()->threads; }

void pool_set_threads(int n) { pool()->threads = n; }

void for_each(int64_t n, void (*work)(void *, int64_t), void *context) {
  Pool *p = pool();
  if (n <= 1 || p->threads == 1) {
    for (int64_t i = 0; i < n; ++i) work(context, i);
    return;
  }
  for (int64_t i = 0; i < n; i += MOST_UNITS) p->run(n - i < MOST_UNITS ? n - i : MOST_UNITS, work, context);
}

}  // namespace v4k
