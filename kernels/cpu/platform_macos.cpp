// macOS on Apple's processors.
#include "platform_posix.inl"

#include <pthread/qos.h>
#include <sys/sysctl.h>

namespace v4k {
namespace {

// Of the class that the system runs on its fast cores.
void prepare(pthread_attr_t *attributes) { pthread_attr_set_qos_class_np(attributes, QOS_CLASS_USER_INITIATED, 0); }

void start(pthread_cond_t *condition) { pthread_cond_init(condition, nullptr); }

void wait_at_most(pthread_cond_t *condition, pthread_mutex_t *mutex, int64_t us) {
  const timespec time{static_cast<time_t>(us / 1000000), static_cast<long>(us % 1000000 * 1000)};
  pthread_cond_timedwait_relative_np(condition, mutex, &time);
}

int64_t changed_ns(const struct stat &about) {
  return about.st_mtimespec.tv_sec * INT64_C(1000000000) + about.st_mtimespec.tv_nsec;
}

// A number that the system tells under a name, 0 where it knows none.
int told(const char *name) {
  int value = 0;
  size_t bytes = sizeof value;
  return sysctlbyname(name, &value, &bytes, nullptr, 0) == 0 ? value : 0;
}

}  // namespace

int usable_cpus() {
  const int fast = told("hw.perflevel0.logicalcpu"), n = fast > 0 ? fast : told("hw.logicalcpu");
  return n < 1 ? 1 : n > 1024 ? 1024 : n;
}

bool has_dot_product() { return told("hw.optional.arm.FEAT_DotProd"); }
bool has_matrix_product() { return told("hw.optional.arm.FEAT_I8MM"); }

}  // namespace v4k

extern "C" int v4k_large_pages(void *, int64_t) { return V4K_EARGUMENT; }

extern "C" int v4k_populate(void *, int64_t) { return V4K_EARGUMENT; }

// A new mapping in place of the old one: advice alone leaves the pages counted as this process's.
extern "C" void v4k_discard(void *at, int64_t bytes) {
  mmap(at, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
       -1, 0);
}

extern "C" int64_t v4k_file_open(const char *path, int direct) {
  const int file = v4k::uninterrupted([&] { return open(path, O_RDONLY | O_CLOEXEC); });
  if (file < 0) return -errno;
  if (direct && fcntl(file, F_NOCACHE, 1)) {
    close(file);
    return -EINVAL;
  }
  return file;
}

extern "C" void v4k_file_forget(int64_t, int64_t, int64_t) {}
