// Argument checks of the C ABI.
#ifndef V4K_CHECK_H
#define V4K_CHECK_H

#include "v4k.h"

namespace v4k {

inline bool is_matrix(const v4k_matrix &w) {
  return w.codes && w.scale && w.rows > 0 && w.cols > 0 && w.cols % V4K_GROUP == 0 && w.format >= V4K_FP4 &&
         w.format <= V4K_INT4;
}

}  // namespace v4k
#endif
