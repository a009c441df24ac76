// Scratch memory of one call.
#ifndef V4K_SCRATCH_H
#define V4K_SCRATCH_H

#include <cstdint>
#include <cstdlib>

namespace v4k {

// `count` objects of plain type T, not initialized; false without memory.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(static_cast<T *>(std::malloc(static_cast<size_t>(count) * sizeof(T) + 64))) {}
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;
  ~Scratch() { std::free(data_); }
  explicit operator bool() const { return data_; }
  T *get() const { return data_; }

 private:
  T *data_;
};

}  // namespace v4k
#endif
