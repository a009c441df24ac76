// Rows of a matrix in fp32.
#ifndef V4K_DECODE_H
#define V4K_DECODE_H

#include "v4k.h"

namespace v4k {

// out [cols] = row `row` of w, which is a matrix (check.h). False for a format that nothing here decodes.
bool decode_row(const v4k_matrix &w, int64_t row, float *out);

}  // namespace v4k
#endif
