// Scratch memory of one call, counted.
#ifndef V4K_SCRATCH_H
#define V4K_SCRATCH_H

#include <cstdint>
#include <cstdlib>

namespace v4k {

// Note that so many bytes are held more, or fewer where negative (v4k_scratch_peak).
void count_scratch(int64_t bytes);

// `count` objects of plain type T, not initialized; false without memory.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : bytes_(count * static_cast<int64_t>(sizeof(T)) + 64), data_(static_cast<T *>(std::malloc(static_cast<size_t>(bytes_)))) {
    if (data_) count_scratch(bytes_);
  }
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;
  ~Scratch() {
    if (data_) count_scratch(-bytes_);
    std::free(data_);
  }
  explicit operator bool() const { return data_; }
  T *get() const { return data_; }

 private:
  int64_t bytes_;
  T *data_;
};

}  // namespace v4k
#endif
