// Linear layers for the functions that are made of them.
#ifndef V4K_LINEAR_H
#define V4K_LINEAR_H

#include "v4k.h"

namespace v4k {

// v4k_linear after its checks.
int linear(const v4k_matrix &w, int64_t groups, const float *x, int64_t n, float *y);

}  // namespace v4k
#endif
