// Argument checks of the C ABI.
#ifndef V4K_CHECK_H
#define V4K_CHECK_H

#include "formats.h"

namespace v4k {

// A matrix of any known format.
inline bool is_matrix(const v4k_matrix &w) {
  return w.format >= 1 && w.format < V4K_N_FORMATS && w.codes && w.rows > 0 && w.cols > 0 && w.cols % V4K_GROUP == 0 &&
         (w.scale || !V4K_FORMATS[w.format].info.scale_bytes);
}

// One of codes with scales.
inline bool is_packed(const v4k_matrix &w) { return is_matrix(w) && V4K_FORMATS[w.format].info.scale_bytes; }

inline bool is_fp32(const v4k_matrix &w) { return is_matrix(w) && !V4K_FORMATS[w.format].info.scale_bytes; }

inline bool has_shape(const v4k_matrix &w, int64_t rows, int64_t cols) {
  return is_matrix(w) && w.rows == rows && w.cols == cols;
}

}  // namespace v4k
#endif
