// The thread that computes the experts a device does not hold (v4k.h says what both sides write and in which order).
// Within a step it spins, then yields, then sleeps for moments; between steps it sleeps until it is woken.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "memory.h"
#include "platform.h"
#include "relax.h"
#include "v4k.h"

namespace v4k {
namespace {

const int64_t LINE = 64, FIRST_JOB = 5 * LINE, MOST_PAIRS = 1 << 20, MOST_DIM = 1 << 20, MOST_JOBS = 1 << 10;
const int SPINS = 64;                // about 3 us, then whoever else wants the core may have it
const int64_t YIELDING_US = 2'000;   // about the time between two layers' jobs; then sleeps, which cost as much to end
const int64_t NAP_US = 50;
const size_t STACK_BYTES = 8 << 20;  // a fetch may be Python

int64_t lines(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

// A word of the ring. Whoever reads it with acquire sees what its writer wrote before.
template <class T>
class Word {
 public:
  Word(const v4k_ring &ring, int64_t line) : at_(reinterpret_cast<T *>(static_cast<char *>(ring.memory) + line * LINE)) {}
  T load() const { return __atomic_load_n(at_, __ATOMIC_ACQUIRE); }
  void store(T value) const { __atomic_store_n(at_, value, __ATOMIC_RELEASE); }

 private:
  T *at_;
};

Word<uint64_t> posted(const v4k_ring &ring) { return {ring, 0}; }
Word<uint64_t> served(const v4k_ring &ring) { return {ring, 1}; }
Word<int64_t> error(const v4k_ring &ring) { return {ring, 2}; }
Word<int64_t> failed(const v4k_ring &ring) { return {ring, 3}; }
Word<int64_t> process(const v4k_ring &ring) { return {ring, 4}; }

struct Job {
  struct Head {
    uint64_t number;
    int64_t layer, rows, pairs;
  };

  Job(const v4k_ring &ring, uint64_t number) {
    const int64_t list = lines(4 * ring.pairs), rows = 4 * ring.pairs * ring.dim;
    char *at = static_cast<char *>(ring.memory) + FIRST_JOB;
    at += static_cast<int64_t>(number % static_cast<uint64_t>(ring.jobs)) * bytes(ring);
    std::memcpy(&head, at, sizeof head);
    at += LINE;
    row = reinterpret_cast<const int32_t *>(at);
    expert = reinterpret_cast<const int32_t *>(at + list);
    weight = reinterpret_cast<const float *>(at + 2 * list);
    x = reinterpret_cast<const float *>(at + 3 * list);
    y = reinterpret_cast<float *>(at + 3 * list + rows);
  }

  static int64_t bytes(const v4k_ring &ring) { return LINE + 3 * lines(4 * ring.pairs) + 8 * ring.pairs * ring.dim; }

  Head head;  // as it was when this was made
  const int32_t *row, *expert;
  const float *weight, *x;
  float *y;
};

// How long to wait for the other side.
class Patience {
 public:
  explicit Patience(int64_t us) : limit_us_(us) {}

  // Wait a little longer; false when the time is over.
  bool pause() {
    if (++count_ < SPINS) return relax(), true;
    const int64_t now = now_us();
    if (count_ == SPINS) start_us_ = now;
    const int64_t waited = now - start_us_;
    if (waited < YIELDING_US)
      give_way();
    else
      nap_us(NAP_US);
    return waited < limit_us_;
  }

 private:
  int64_t limit_us_, start_us_ = 0;
  int count_ = 0;
};

bool is_ring(const v4k_ring *ring) {
  return ring && ring->jobs > 0 && ring->jobs <= MOST_JOBS && ring->pairs > 0 && ring->pairs <= MOST_PAIRS &&
         ring->dim > 0 && ring->dim <= MOST_DIM && ring->dim % V4K_GROUP == 0;
}

enum Wanted { REST, STEP, STOP };

// What the server's thread and others wait on; a child that was forked makes a new one, as locks may be held.
struct Serving {
  Mutex mutex;
  Condition changed;
  std::atomic<int> wanted{REST};
  bool resting = false, ended = false;
  Thread thread = 0;
};

class Server {
 public:
  Server(const v4k_ring &ring, v4k_fetch fetch, void *context, int64_t timeout_us)
      : ring_(ring), fetch_(fetch), context_(context), timeout_us_(timeout_us) {}

  int start(const v4k_served_layer *layers, int64_t n_layers) {
    n_layers_ = n_layers;
    layers_.reset(n_layers);
    asked_.reset(ring_.pairs);
    numbers_.reset(ring_.pairs);
    ids_.reset(ring_.pairs);
    x_.reset(ring_.pairs * ring_.dim);
    if (!layers_ || !asked_ || !numbers_ || !ids_ || !x_) return V4K_EMEMORY;
    std::copy(layers, layers + n_layers, layers_.get());
    return start_thread();
  }

  int begin() {
    if (process_ != process_id()) {  // the thread is the parent's
      if (int code = start_thread()) return code;
    } else if (end() == V4K_ETIMEOUT && !at_rest()) {
      return V4K_ETIMEOUT;
    }
    Lock lock(thread_->mutex);
    error(ring_).store(0);
    failed(ring_).store(0);
    served(ring_).store(posted(ring_).load());
    thread_->resting = false;
    thread_->wanted.store(STEP);
    thread_->changed.wake_all();
    return V4K_OK;
  }

  int end() {
    if (process_ != process_id()) return V4K_ESTOPPED;
    Lock lock(thread_->mutex);
    thread_->wanted.store(REST);
    return wait_for(thread_->resting) ? static_cast<int>(error(ring_).load()) : V4K_ETIMEOUT;
  }

  // Whether the thread is gone, so that this may be deleted.
  bool stop() {
    if (process_ != process_id()) return true;
    error(ring_).store(V4K_ESTOPPED);
    process(ring_).store(0);
    {
      Lock lock(thread_->mutex);
      thread_->wanted.store(STOP);
      thread_->changed.wake_all();
      if (!wait_for(thread_->ended)) return false;
    }
    join_thread(thread_->thread);
    unmake(thread_);
    return true;
  }

 private:
  // Whether this comes to be in time; the lock is held.
  bool wait_for(const bool &what) {
    for (const int64_t end = now_us() + timeout_us_; !what;) {
      const int64_t left = end - now_us();
      if (left <= 0) return false;
      thread_->changed.wait(thread_->mutex, left);
    }
    return true;
  }

  bool at_rest() {
    Lock lock(thread_->mutex);
    return thread_->resting;
  }

  int start_thread() {
    thread_ = make<Serving>();  // a parent's is left alone: its thread seems to wait on it
    auto enter = [](void *server) { static_cast<Server *>(server)->run(); };
    if (!thread_ || !v4k::start_thread(STACK_BYTES, enter, this, &thread_->thread)) return V4K_EMEMORY;
    process_ = process_id();
    process(ring_).store(process_);
    Lock lock(thread_->mutex);
    while (!thread_->resting) thread_->changed.wait(thread_->mutex);
    return V4K_OK;
  }

  void run() {
    Serving &self = *thread_;
    Lock lock(self.mutex);
    for (;;) {
      self.resting = true;
      self.changed.wake_all();
      while (self.wanted != STOP && self.resting) self.changed.wait(self.mutex);
      if (self.wanted == STOP) break;
      self.mutex.unlock();
      if (const int code = step(self)) {
        if (!error(ring_).load()) error(ring_).store(code);
      }
      self.mutex.lock();
    }
    self.ended = true;
    self.changed.wake_all();
  }

  // Serve jobs until the step is over, or something fails.
  int step(const Serving &self) {
    for (uint64_t next = served(ring_).load() + 1;; ++next) {
      for (Patience patience(timeout_us_); posted(ring_).load() < next;) {
        if (self.wanted != STEP || failed(ring_).load()) return V4K_OK;
        if (!patience.pause()) return V4K_ETIMEOUT;
      }
      if (self.wanted != STEP) return V4K_OK;
      if (int code = serve(next)) return code;
      served(ring_).store(next);
    }
  }

  int serve(uint64_t number) {
    const Job job(ring_, number);
    const Job::Head &head = job.head;
    if (head.number != number || head.layer < 0 || head.layer >= n_layers_ || head.pairs < 0 ||
        head.pairs > ring_.pairs || head.rows < 0 || head.rows > ring_.pairs)
      return V4K_EARGUMENT;
    const v4k_served_layer &layer = layers_[head.layer];
    bool all_there = true;
    for (int64_t p = 0; p < head.pairs; ++p) {
      const int64_t row = job.row[p], expert = job.expert[p];
      if (row < 0 || row >= head.rows || expert < 0 || expert >= layer.n_experts) return V4K_EARGUMENT;
      all_there &= layer.experts[expert].w1.codes != nullptr;
    }
    if (!head.pairs) return V4K_OK;
    if (all_there) return compute(job, layer);
    return fetch_ && fetch_(context_, number) == 0 ? V4K_OK : V4K_EFETCH;
  }

  // Each pair as a row of its own, with one expert.
  int compute(const Job &job, const v4k_served_layer &layer) {
    const int64_t n = job.head.pairs, d = ring_.dim;
    std::copy(job.expert, job.expert + n, numbers_.get());
    std::sort(numbers_.get(), numbers_.get() + n, [](int32_t a, int32_t b) { return a < b; });
    const int32_t *end = std::unique(numbers_.get(), numbers_.get() + n);
    const int64_t n_experts = end - numbers_.get();
    for (int64_t i = 0; i < n_experts; ++i) asked_[i] = layer.experts[numbers_[i]];
    if (asked_[0].w1.cols != d) return V4K_EARGUMENT;
    for (int64_t p = 0; p < n; ++p) {
      ids_[p] = std::lower_bound(static_cast<const int32_t *>(numbers_.get()), end, job.expert[p]) - numbers_.get();
      std::copy(job.x + job.row[p] * d, job.x + (job.row[p] + 1) * d, x_.get() + p * d);
    }
    std::fill(job.y, job.y + n * d, 0.0f);
    return v4k_experts(asked_.get(), n_experts, nullptr, x_.get(), n, ids_.get(), job.weight, 1, layer.limit, job.y);
  }

  const v4k_ring ring_;
  const v4k_fetch fetch_;
  void *const context_;
  const int64_t timeout_us_;
  int64_t n_layers_ = 0;
  Array<v4k_served_layer> layers_;
  Array<v4k_expert> asked_;  // distinct ones of a job, ascending
  Array<int32_t> numbers_;   // of these, in the layer
  Array<int64_t> ids_;       // by pair, in `asked_`
  Array<float> x_;           // by pair
  Serving *thread_ = nullptr;
  int64_t process_ = 0;
};

}  // namespace
}  // namespace v4k

using namespace v4k;

extern "C" int64_t v4k_ring_bytes(const v4k_ring *ring) {
  return is_ring(ring) ? FIRST_JOB + ring->jobs * Job::bytes(*ring) : V4K_EARGUMENT;
}

extern "C" void v4k_ring_post(const v4k_ring *ring, uint64_t number) { posted(*ring).store(number); }

extern "C" int v4k_ring_wait(const v4k_ring *ring, uint64_t number, int64_t timeout_us) {
  if (process(*ring).load() != process_id()) return V4K_ESTOPPED;
  for (Patience patience(timeout_us); served(*ring).load() < number;) {
    if (const int64_t code = error(*ring).load()) return static_cast<int>(code);
    if (const int64_t code = failed(*ring).load()) return static_cast<int>(code);
    if (!patience.pause()) failed(*ring).store(V4K_ETIMEOUT);
  }
  return V4K_OK;
}

extern "C" int v4k_serve_start(const v4k_ring *ring, const v4k_served_layer *layers, int64_t n_layers, v4k_fetch fetch,
                               void *context, int64_t timeout_us, void **server) {
  if (!is_ring(ring) || !ring->memory || reinterpret_cast<uintptr_t>(ring->memory) % LINE || !layers || n_layers <= 0 ||
      timeout_us <= 0 || !server)
    return V4K_EARGUMENT;
  auto *made = make<Server>(*ring, fetch, context, timeout_us);
  if (!made) return V4K_EMEMORY;
  if (int code = made->start(layers, n_layers)) return unmake(made), code;
  *server = made;
  return V4K_OK;
}

extern "C" int v4k_serve_begin(void *server) { return static_cast<Server *>(server)->begin(); }

extern "C" int v4k_serve_end(void *server) { return static_cast<Server *>(server)->end(); }

extern "C" int v4k_serve_stop(void *server) {
  auto *s = static_cast<Server *>(server);
  if (!s->stop()) return V4K_ETIMEOUT;
  unmake(s);
  return V4K_OK;
}
