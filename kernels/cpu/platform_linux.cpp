// Linux.
#include "platform_posix.inl"

#include <sys/auxv.h>

namespace v4k {
namespace {

void prepare(pthread_attr_t *) {}

void start(pthread_cond_t *condition) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(condition, &attributes);
  pthread_condattr_destroy(&attributes);
}

void wait_at_most(pthread_cond_t *condition, pthread_mutex_t *mutex, int64_t us) {
  const int64_t end = now_us() + us;
  const timespec time{static_cast<time_t>(end / 1000000), static_cast<long>(end % 1000000 * 1000)};
  pthread_cond_timedwait(condition, mutex, &time);
}

int64_t changed_ns(const struct stat &about) { return about.st_mtim.tv_sec * INT64_C(1000000000) + about.st_mtim.tv_nsec; }

}  // namespace

int usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return n < 1 ? 1 : n > 1024 ? 1024 : n;
}

// Numbers of the kernel's own: older C libraries lack the names.
bool has_dot_product() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool has_matrix_product() { return getauxval(AT_HWCAP2) >> 13 & 1; }

}  // namespace v4k

extern "C" int v4k_large_pages(void *at, int64_t bytes) {
  return madvise(at, static_cast<size_t>(bytes), MADV_HUGEPAGE) ? V4K_EARGUMENT : V4K_OK;
}

extern "C" int v4k_populate(void *at, int64_t bytes) {
  const int populate_write = 23;  // Linux 5.14
  return madvise(at, static_cast<size_t>(bytes), populate_write) ? V4K_EARGUMENT : V4K_OK;
}

extern "C" void v4k_discard(void *at, int64_t bytes) { madvise(at, static_cast<size_t>(bytes), MADV_DONTNEED); }

extern "C" int64_t v4k_file_open(const char *path, int direct) {
  const int flags = O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0);
  const int file = v4k::uninterrupted([&] { return open(path, flags); });
  return file < 0 ? -errno : file;
}

extern "C" void v4k_file_forget(int64_t file, int64_t offset, int64_t bytes) {
  posix_fadvise(static_cast<int>(file), offset, bytes, POSIX_FADV_DONTNEED);
}
