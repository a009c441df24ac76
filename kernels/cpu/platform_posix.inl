// What Linux and macOS have in common. Included by their files, which define what is only declared here.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "memory.h"
#include "platform.h"
#include "v4k.h"

namespace v4k {
namespace {

// The system's wishes for a thread that computes.
void prepare(pthread_attr_t *attributes);

// A condition whose clock is that of now_us, and waiting on it.
void start(pthread_cond_t *condition);
void wait_at_most(pthread_cond_t *condition, pthread_mutex_t *mutex, int64_t us);

// When a file's contents were last changed.
int64_t changed_ns(const struct stat &about);

// `call` again as long as signals interrupt it.
template <class Call>
auto uninterrupted(Call call) {
  for (;;) {
    const auto result = call();
    if (result >= 0 || errno != EINTR) return result;
  }
}

static_assert(sizeof(pthread_mutex_t) <= 64 && sizeof(pthread_cond_t) <= 64, "platform.h has no room for them");

pthread_mutex_t *mutex_in(unsigned char *state) { return reinterpret_cast<pthread_mutex_t *>(state); }
pthread_cond_t *condition_in(unsigned char *state) { return reinterpret_cast<pthread_cond_t *>(state); }

}  // namespace

Mutex::Mutex() { pthread_mutex_init(mutex_in(state_), nullptr); }
Mutex::~Mutex() { pthread_mutex_destroy(mutex_in(state_)); }
void Mutex::lock() { pthread_mutex_lock(mutex_in(state_)); }
void Mutex::unlock() { pthread_mutex_unlock(mutex_in(state_)); }

Condition::Condition() { start(condition_in(state_)); }
Condition::~Condition() { pthread_cond_destroy(condition_in(state_)); }
void Condition::wake_all() { pthread_cond_broadcast(condition_in(state_)); }
void Condition::wait(Mutex &mutex) { pthread_cond_wait(condition_in(state_), mutex_in(mutex.state_)); }
void Condition::wait(Mutex &mutex, int64_t us) { wait_at_most(condition_in(state_), mutex_in(mutex.state_), us); }

int64_t now_us() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000) + now.tv_nsec / 1000;
}

void give_way() { sched_yield(); }

void nap_us(int64_t us) {
  const timespec time{static_cast<time_t>(us / 1000000), static_cast<long>(us % 1000000 * 1000)};
  nanosleep(&time, nullptr);
}

bool start_thread(size_t stack_bytes, void (*work)(void *), void *context, Thread *thread) {
  struct Start {
    void (*work)(void *);
    void *context;
  };
  auto enter = [](void *start) -> void * {
    const Start s = *static_cast<Start *>(start);
    unmake(static_cast<Start *>(start));
    s.work(s.context);
    return nullptr;
  };
  Start *start = make<Start>(work, context);
  pthread_attr_t attributes;
  pthread_t id;
  if (!start || pthread_attr_init(&attributes)) return unmake(start), false;
  pthread_attr_setstacksize(&attributes, stack_bytes);
  if (!thread) pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  prepare(&attributes);
  const bool started = pthread_create(&id, &attributes, enter, start) == 0;
  pthread_attr_destroy(&attributes);
  if (!started) return unmake(start), false;
  if (thread) *thread = reinterpret_cast<Thread>(id);
  return true;
}

void join_thread(Thread thread) { pthread_join(reinterpret_cast<pthread_t>(thread), nullptr); }

void on_fork(void (*child)()) { pthread_atfork(nullptr, nullptr, child); }

int64_t process_id() { return getpid(); }

size_t page_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

void ask_for_pages(void *at, size_t bytes) { madvise(at, bytes, MADV_WILLNEED); }

}  // namespace v4k

extern "C" void *v4k_reserve(int64_t bytes) {
  if (bytes <= 0) return nullptr;
  void *at = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return at == MAP_FAILED ? nullptr : at;
}

extern "C" int v4k_commit(void *at, int64_t bytes) { return at && bytes >= 0 ? V4K_OK : V4K_EARGUMENT; }

extern "C" void v4k_release(void *at, int64_t bytes) { munmap(at, static_cast<size_t>(bytes)); }

extern "C" int64_t v4k_file_read(int64_t file, void *to, int64_t bytes, int64_t offset) {
  const auto most = static_cast<size_t>(bytes < INT64_C(1) << 30 ? bytes : INT64_C(1) << 30);  // macOS refuses 2^31
  const auto count = v4k::uninterrupted([&] { return pread(static_cast<int>(file), to, most, offset); });
  return count < 0 ? -errno : count;
}

extern "C" int v4k_file_identity(int64_t file, int64_t identity[3]) {
  struct stat about;
  if (fstat(static_cast<int>(file), &about)) return V4K_EARGUMENT;
  identity[0] = static_cast<int64_t>(about.st_ino);
  identity[1] = about.st_size;
  identity[2] = v4k::changed_ns(about);
  return V4K_OK;
}

extern "C" void v4k_file_close(int64_t file) { close(static_cast<int>(file)); }
