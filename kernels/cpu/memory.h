// Memory from malloc, and objects in it. The library needs no C++ runtime: not every machine has one, and not the same.
#ifndef V4K_MEMORY_H
#define V4K_MEMORY_H

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace v4k {

// An object, or NULL without memory.
template <class T, class... Values>
T *make(Values &&...values) {
  void *at = std::malloc(sizeof(T));
  return at ? new (at) T{std::forward<Values>(values)...} : nullptr;
}

template <class T>
void unmake(T *object) {
  if (object) object->~T();
  std::free(object);
}

// Objects of plain type T, not initialized; false without memory, or none asked for.
template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(int64_t count) { reset(count); }
  Array(const Array &) = delete;
  Array &operator=(const Array &) = delete;
  ~Array() { std::free(data_); }

  bool reset(int64_t count) {
    std::free(data_);
    data_ = static_cast<T *>(std::malloc(static_cast<size_t>(count > 0 ? count : 1) * sizeof(T)));
    return data_;
  }
  explicit operator bool() const { return data_; }
  T *get() const { return data_; }
  T &operator[](int64_t i) const { return data_[i]; }

 private:
  T *data_ = nullptr;
};

}  // namespace v4k
#endif
