// What systems do differently. Each has a file of its own, platform_linux.cpp, platform_macos.cpp or
// platform_windows.cpp, which also defines the functions of v4k.h under "memory and files"; nothing else asks which
// system this is.
#ifndef V4K_PLATFORM_H
#define V4K_PLATFORM_H

#include <cstddef>
#include <cstdint>

namespace v4k {

// CPUs this process may compute on, 1 to 1,024. Where some are slower by design only the fast ones count, if the system
// keeps threads on them.
int usable_cpus();

// A lock, and waiting under it for what another thread does. As in standard C++, but without its library.
class Mutex {
 public:
  Mutex();
  Mutex(const Mutex &) = delete;
  Mutex &operator=(const Mutex &) = delete;
  ~Mutex();
  void lock();
  void unlock();

 private:
  friend class Condition;
  alignas(16) unsigned char state_[64];
};

class Condition {
 public:
  Condition();
  Condition(const Condition &) = delete;
  Condition &operator=(const Condition &) = delete;
  ~Condition();
  void wake_all();

  // Unlock, wait until woken, lock. It may return for no reason.
  void wait(Mutex &mutex);

  // The same, at most so long.
  void wait(Mutex &mutex, int64_t us);

 private:
  alignas(16) unsigned char state_[64];
};

// Holds a lock as long as it lives.
class Lock {
 public:
  explicit Lock(Mutex &mutex) : mutex_(mutex) { mutex_.lock(); }
  Lock(const Lock &) = delete;
  Lock &operator=(const Lock &) = delete;
  ~Lock() { mutex_.unlock(); }

 private:
  Mutex &mutex_;
};

// Time since some moment; let others compute first; sleep.
int64_t now_us();
void give_way();
void nap_us(int64_t us);

using Thread = uintptr_t;

// Start a thread with a stack of its own size, for work that somebody waits for; some C libraries give less than
// attention uses. `thread` NULL: it is never joined. False if the system allows no more.
bool start_thread(size_t stack_bytes, void (*work)(void *context), void *context, Thread *thread);

void join_thread(Thread thread);

// Have `child` called in every process that is forked from this one, if there is such a thing.
void on_fork(void (*child)());

// Number of this process.
int64_t process_id();

size_t page_bytes();

// Have mapped pages [at, at + bytes) read soon; whole pages.
void ask_for_pages(void *at, size_t bytes);

// Whether this Arm processor has the instructions that multiply and add bytes: four at a time, or 2x8 by 8x2.
bool has_dot_product();
bool has_matrix_product();

}  // namespace v4k
#endif
