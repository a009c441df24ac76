// Quantization, linear layers and the read probe: checks, scratch, units of work.
#include "linear.h"

#include <atomic>

#include "acts.h"
#include "check.h"
#include "memory.h"
#include "platform.h"
#include "pool.h"

namespace v4k {
namespace {

const int64_t UNIT_BYTES = 1 << 18;    // weights of one unit at most: a long stream, in L2 while tokens pass
const int64_t UNITS_PER_THREAD = 8;    // at least, where there are rows enough
const int64_t UNIT_TOKENS = 16;        // fp32 inputs that pass together
const int64_t PROBE_BYTES = 1 << 18;   // of one unit of the read probe
const int64_t SCRATCH_TOKENS = 4096;   // tokens quantized together: bounds the scratch

// Rows of a unit: whole tiles.
int64_t unit_rows(const v4k_matrix &w) {
  const int64_t row_bytes = w.cols / V4K_GROUP * V4K_FORMATS[w.format].info.code_bytes;
  const int64_t most = UNIT_BYTES / row_bytes, share = w.rows / (UNITS_PER_THREAD * pool_threads());
  const int64_t tile = is_fp32(w) ? 8 : 32, least = is_fp32(w) ? 4 : 32;
  const int64_t rows = (most < share ? most : share) / tile * tile;
  return rows < least ? least : rows;
}

// y [n, rows] of one chunk of tokens; acts has n * groups rows.
void multiply(const v4k_matrix &w, int64_t groups, const Acts &acts, const int32_t *tokens, int64_t n, float *y) {
  const int64_t step = unit_rows(w), group_rows = w.rows / groups, units = (group_rows + step - 1) / step;
  auto unit = [&](int64_t u) {
    const int64_t group = u / units, first = u % units * step;
    const int64_t count = group_rows - first < step ? group_rows - first : step;
    const int64_t row = group * group_rows + first;
    tier().rows(&w, row, count, &acts.view, tokens ? tokens + group * n : nullptr, n, y + row, w.rows);
  };
  for_each(units * groups, w.rows * w.cols * n, unit);
}

// The same for weights and inputs in fp32: x [n, groups, cols].
void multiply_fp32(const v4k_matrix &w, int64_t groups, const float *x, int64_t n, float *y) {
  const int64_t step = unit_rows(w), group_rows = w.rows / groups, units = (group_rows + step - 1) / step;
  auto unit = [&](int64_t u) {
    const int64_t group = u / units, first = u % units * step;
    const int64_t count = group_rows - first < step ? group_rows - first : step;
    const int64_t row = group * group_rows + first;
    for (int64_t t = 0; t < n; t += UNIT_TOKENS)
      tier().rows_fp32(&w, row, count, x + (t * groups + group) * w.cols, groups * w.cols,
                       n - t < UNIT_TOKENS ? n - t : UNIT_TOKENS, y + t * w.rows + row, w.rows);
  };
  for_each(units * groups, w.rows * w.cols * n, unit);
}

}  // namespace

int linear(const v4k_matrix &w, int64_t groups, const float *x, int64_t n, float *y) {
  if (is_fp32(w)) {
    multiply_fp32(w, groups, x, n, y);
    return V4K_OK;
  }
  const int64_t chunk = n < SCRATCH_TOKENS ? n : SCRATCH_TOKENS;
  Acts acts;
  Array<int32_t> tokens;
  if (!acts.reserve(chunk * groups, w.cols)) return V4K_EMEMORY;
  if (groups > 1) tokens.reset(chunk * groups);
  if (groups > 1 && !tokens) return V4K_EMEMORY;
  for (int64_t first = 0; first < n; first += chunk) {
    const int64_t count = n - first < chunk ? n - first : chunk;
    auto quantize = [&](int64_t i) { acts.fill(i, x + (first * groups + i) * w.cols, w.format); };
    for_each(count * groups, count * groups * w.cols * QUANTIZE_COST, quantize);
    if (tokens)  // row of acts for token i in group g: the group's part of x
      for (int64_t i = 0; i < count * groups; ++i) tokens[i] = static_cast<int32_t>(i % count * groups + i / count);
    multiply(w, groups, acts, tokens.get(), count, y + first * w.rows);
  }
  return V4K_OK;
}

}  // namespace v4k

extern "C" int v4k_abi_version(void) { return V4K_ABI_VERSION; }

extern "C" int v4k_cpus(void) { return v4k::usable_cpus(); }

extern "C" int v4k_threads(void) { return v4k::pool_threads(); }

extern "C" int v4k_set_threads(int n) {
  if (n < 1 || n > 1024) return V4K_EARGUMENT;
  v4k::pool_set_threads(n);
  return V4K_OK;
}

extern "C" int v4k_quantize(const float *x, int64_t n, int64_t k, int8_t *q, float *scale) {
  if (!x || !q || !scale || n < 0 || k < 0 || k % V4K_GROUP) return V4K_EARGUMENT;
  for (int64_t i = 0; i < n * (k / V4K_GROUP); ++i) {
    int32_t unused;
    v4k::tier().quantize(x + i * V4K_GROUP, 0, 1, V4K_INT8, {q + i * V4K_GROUP, scale + i, &unused, 1});
  }
  return V4K_OK;
}

extern "C" int v4k_linear(const v4k_matrix *w, int64_t groups, const float *x, int64_t n, float *y) {
  if (!w || !x || !y || n < 0 || !v4k::is_matrix(*w) || groups < 1 || w->rows % groups) return V4K_EARGUMENT;
  return v4k::linear(*w, groups, x, n, y);
}

extern "C" uint64_t v4k_read_probe(const void *data, int64_t bytes) {
  std::atomic<uint64_t> sum{0};
  bytes = bytes / 4096 * 4096;
  auto unit = [&](int64_t u) {
    const int64_t at = u * v4k::PROBE_BYTES;
    const int64_t count = bytes - at < v4k::PROBE_BYTES ? bytes - at : v4k::PROBE_BYTES;
    sum.fetch_add(v4k::tier().read(static_cast<const char *>(data) + at, count), std::memory_order_relaxed);
  };
  v4k::for_each((bytes + v4k::PROBE_BYTES - 1) / v4k::PROBE_BYTES, bytes, unit);
  return sum.load();
}
