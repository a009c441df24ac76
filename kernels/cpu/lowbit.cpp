// Weights to Q3 and Q2 (v4cli/store/lowbit.py is the reference).
#include "dispatch.h"
#include "pool.h"

namespace v4k {
namespace {

const int64_t SEARCH_COST = 64;  // multiply-adds that take as long as encoding one value

}  // namespace
}  // namespace v4k

extern "C" int v4k_encode_lowbit(const float *w, int64_t rows, int64_t cols, int64_t format, const float *importance,
                                 int64_t stride, uint8_t *codes, uint8_t *scale) {
  using namespace v4k;
  if (!w || !scale || rows < 0 || cols < 1 || cols % V4K_GROUP || (format != V4K_Q3 && format != V4K_Q2) ||
      (stride != 0 && stride != cols))
    return V4K_EARGUMENT;
  const v4k_format_info &about = V4K_FORMATS[format].info;
  const int64_t groups = cols / V4K_GROUP;
  auto row = [&](int64_t r) {
    tier().encode_lowbit(w + r * cols, importance ? importance + r * stride : nullptr, cols, format,
                         codes ? codes + r * groups * about.code_bytes : nullptr,
                         scale + r * (about.row_scale + groups * about.scale_bytes));
  };
  for_each(rows, rows * cols * SEARCH_COST, row);
  return V4K_OK;
}
