// Weights to Q3 and Q2 (v4cli/store/lowbit.py is the reference).
#include "dispatch.h"
#include "pool.h"
#include "scratch.h"

namespace v4k {
namespace {

const int64_t SEARCH_COST = 64;  // multiply-adds that take as long as encoding one value

bool is_lowbit(int64_t rows, int64_t cols, int64_t format) {
  return rows >= 0 && cols > 0 && cols % V4K_GROUP == 0 && (format == V4K_Q3 || format == V4K_Q2);
}

bool is_rank(int64_t rank) { return rank > 0 && rank <= V4K_MAX_RANK && rank % 4 == 0; }

}  // namespace
}  // namespace v4k

extern "C" int v4k_encode_lowbit(const float *w, int64_t rows, int64_t cols, int64_t format, const float *importance,
                                 int64_t stride, uint8_t *codes, uint8_t *scale) {
  using namespace v4k;
  if (!w || !scale || !is_lowbit(rows, cols, format) || (stride != 0 && stride != cols)) return V4K_EARGUMENT;
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

extern "C" int v4k_carry_gains(const float *factor, const float *rest, int64_t cols, int64_t rank, float *gains,
                               float *within) {
  using namespace v4k;
  if (!factor || !rest || !gains || !within || cols < 1 || cols % V4K_GROUP || !is_rank(rank)) return V4K_EARGUMENT;
  Scratch<double> left(rank * (rank + 2));
  if (!left) return V4K_EMEMORY;
  double *v = left.get() + rank * rank, *next = v + rank;
  for (int64_t i = 0; i < rank * rank; ++i) left.get()[i] = i % (rank + 1) ? 0 : 1;
  for (int64_t i = 0; i < rank; ++i) v[i] = factor[(cols - 1) * rank + i];
  for (int64_t j = cols - 1; j >= 0; --j) {
    double divisor = rest[j];
    for (int64_t i = 0; i < rank; ++i) divisor += factor[j * rank + i] * v[i];
    for (int64_t i = 0; i < rank; ++i) gains[j * rank + i] = static_cast<float>(v[i] / divisor);
    if (j) tier().carry_step(left.get(), rank, v, divisor, factor + (j - 1) * rank, next);
    double *last = v;
    v = next, next = last;
  }
  const int64_t run = 16;
  for (int64_t i = 0; i < cols; ++i)
    for (int64_t j = i / run * run; j < i / run * run + run; ++j) {
      double sum = 0;
      for (int64_t r = 0; r < rank; ++r) sum += static_cast<double>(factor[i * rank + r]) * gains[j * rank + r];
      within[i * run + j % run] = static_cast<float>(sum);
    }
  return V4K_OK;
}

extern "C" int v4k_carry_lowbit(const float *w, int64_t rows, int64_t cols, int64_t format, const v4k_carry *carry,
                                uint8_t *codes, uint8_t *scale) {
  using namespace v4k;
  if (!w || !codes || !scale || !carry || !is_lowbit(rows, cols, format)) return V4K_EARGUMENT;
  const v4k_carry &c = *carry;
  if (!c.importance || !c.factor || !c.rest || !c.gains || !c.within || !is_rank(c.rank)) return V4K_EARGUMENT;
  const int plain = v4k_encode_lowbit(w, rows, cols, format, c.importance, 0, codes, scale);
  if (plain != V4K_OK) return plain;
  const v4k_format_info &about = V4K_FORMATS[format].info;
  const int64_t groups = cols / V4K_GROUP, parts = (rows + V4K_ABREAST - 1) / V4K_ABREAST;
  const int64_t found_bytes = V4K_ABREAST * (cols + cols / 16);
  Scratch<uint8_t> found(parts * found_bytes);
  if (!found) return V4K_EMEMORY;
  auto part = [&](int64_t p) {
    const int64_t first = p * V4K_ABREAST, n = rows - first < V4K_ABREAST ? rows - first : V4K_ABREAST;
    tier().carry_lowbit(w + first * cols, n, cols, format, carry, found.get() + p * found_bytes,
                        codes + first * groups * about.code_bytes,
                        scale + first * (about.row_scale + groups * about.scale_bytes));
  };
  for_each(parts, rows * cols * (SEARCH_COST + 3 * c.rank), part);
  return V4K_OK;
}
