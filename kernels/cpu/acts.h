// Quantized activations with their memory.
#ifndef V4K_ACTS_H
#define V4K_ACTS_H

#include <cstring>

#include "dispatch.h"
#include "memory.h"
#include "scratch.h"

namespace v4k {

// Groups of a row of `cols` inputs, padded to whole blocks.
inline int64_t padded_groups(int64_t cols) { return (cols / V4K_GROUP + V4K_BLOCK - 1) / V4K_BLOCK * V4K_BLOCK; }

// Rows of quantized activations for one weight format. `fill` writes a row, or `pad` and then tier().quantize.
class Acts {
 public:
  Acts() = default;
  Acts(const Acts &) = delete;
  Acts &operator=(const Acts &) = delete;
  ~Acts() { release(); }

  // Room for `rows` rows of `cols` inputs; false without memory.
  bool reserve(int64_t rows, int64_t cols) {
    const int64_t groups = padded_groups(cols);
    const size_t codes = static_cast<size_t>(rows * groups * V4K_GROUP), each = static_cast<size_t>(rows * groups * 4);
    const size_t bytes = (codes + 2 * each + 63) / 64 * 64;
    release();
    if (!memory_.reset(static_cast<int64_t>(bytes) + 64)) return false;
    char *at = memory_.get() + (64 - reinterpret_cast<uintptr_t>(memory_.get()) % 64);
    bytes_ = static_cast<int64_t>(bytes);
    count_scratch(bytes_);
    cols_ = cols;
    view.q = reinterpret_cast<int8_t *>(at);
    view.scale = reinterpret_cast<float *>(at + codes);
    view.offset = reinterpret_cast<int32_t *>(at + codes + each);
    view.groups = groups;
    return true;
  }

  // Pointers to one row.
  v4k_acts row(int64_t i) const {
    return {view.q + i * view.groups * V4K_GROUP, view.scale + i * view.groups, view.offset + i * view.groups,
            view.groups};
  }

  // Zero the padding of a row; groups in use are written whole by `quantize`.
  void pad(int64_t i) const {
    const int64_t used = cols_ / V4K_GROUP, rest = view.groups - used;
    if (!rest) return;
    const v4k_acts r = row(i);
    std::memset(r.q + used / V4K_BLOCK * V4K_BLOCK * V4K_GROUP, 0, V4K_BLOCK * V4K_GROUP);  // nibble order mixes groups
    std::memset(r.scale + used, 0, static_cast<size_t>(rest) * 4);
    std::memset(r.offset + used, 0, static_cast<size_t>(rest) * 4);
  }

  // Quantize one whole row of inputs.
  void fill(int64_t i, const float *x, int64_t format) const {
    pad(i);
    tier().quantize(x, 0, cols_ / V4K_GROUP, format, row(i));
  }

  v4k_acts view{};

 private:
  void release() {
    if (bytes_) count_scratch(-bytes_);
    bytes_ = 0;
  }

  Array<char> memory_;
  int64_t cols_ = 0, bytes_ = 0;
};

}  // namespace v4k
#endif
