// Argument checks of the C ABI.
#ifndef V4K_CHECK_H
#define V4K_CHECK_H

#include "v4k.h"

namespace v4k {

// A matrix of stored codes.
inline bool is_packed(const v4k_matrix &w) {
  return w.codes && w.scale && w.rows > 0 && w.cols > 0 && w.cols % V4K_GROUP == 0 && w.format >= V4K_FP4 &&
         w.format <= V4K_INT4;
}

inline bool is_fp32(const v4k_matrix &w) {
  return w.codes && w.rows > 0 && w.cols > 0 && w.cols % V4K_GROUP == 0 &&
         (w.format == V4K_BF16 || w.format == V4K_F32);
}

inline bool is_matrix(const v4k_matrix &w) { return is_packed(w) || is_fp32(w); }

inline bool has_shape(const v4k_matrix &w, int64_t rows, int64_t cols) {
  return is_matrix(w) && w.rows == rows && w.cols == cols;
}

}  // namespace v4k
#endif
