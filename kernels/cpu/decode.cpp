// Weights of any format in fp32, how far they are from others, and what the table says of formats.
#include "decode.h"

#include <algorithm>
#include <cstring>

#include "bits.h"
#include "check.h"
#include "pool.h"
#include "scratch.h"

namespace v4k {
namespace {

const int64_t DECODE_COST = 8;  // multiply-adds that take as long as decoding one value
const int LANES = 8;            // sums that a row's squares go to in turn

const float E2M1[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

float scale_of(int64_t kind, const void *scales, int64_t at) {
  if (kind == V4K_SCALE_BF16) return from_bf16(static_cast<const uint16_t *>(scales)[at]);
  return power_of_two(static_cast<const uint8_t *>(scales)[at]);
}

}  // namespace

bool decode_row(const v4k_matrix &w, int64_t row, float *out) {
  const v4k_format_entry &format = V4K_FORMATS[w.format];
  const int64_t n = w.cols, groups = n / V4K_GROUP;
  const uint8_t *codes = static_cast<const uint8_t *>(w.codes) + row * groups * format.info.code_bytes;
  auto each = [&](auto code) {
    for (int64_t g = 0; g < groups; ++g) {
      const float scale = scale_of(format.scale, w.scale, row * groups + g);
      for (int64_t i = g * V4K_GROUP; i < (g + 1) * V4K_GROUP; ++i) out[i] = code(i) * scale;
    }
    return true;
  };
  auto level = [&](const v4k_levels &levels, auto nibble) {
    const uint8_t *scales = static_cast<const uint8_t *>(w.scale) + row * (format.info.row_scale + groups);
    uint16_t own;
    std::memcpy(&own, scales, 2);
    scales += format.info.row_scale;
    const float size = from_bf16(own);
    for (int64_t run = 0; run < n / 16; ++run) {
      const int multiplier = V4K_MULTIPLIERS[scales[run / 2] >> run % 2 * 4 & 15];
      for (int64_t i = run * 16; i < run * 16 + 16; ++i)
        out[i] = static_cast<float>(multiplier * levels.of[i % 4][nibble(i)]) * size;
    }
    return true;
  };
  auto n2 = [&](int64_t i) {  // of Q3
    const int64_t four = i % V4K_GROUP / 4;
    return codes[groups * 8 + i / V4K_GROUP * 4 + four % 4] >> four / 4 * 4 & 15;
  };
  auto q3 = [&](int64_t i) {
    const int n0 = codes[i / 4] & 15, n1 = codes[i / 4] >> 4, nibbles[3] = {n0, n1, n2(i)};
    return i % 4 < 3 ? nibbles[i % 4] : (n0 & 8) | (n1 & 4) | (nibbles[2] & 2);
  };
  auto nibble = [&](int64_t i) { return codes[i / 2] >> i % 2 * 4 & 15; };
  switch (w.format) {
    case V4K_FP4: return each([&](int64_t i) { return E2M1[nibble(i)]; });
    case V4K_INT8: return each([&](int64_t i) { return static_cast<float>(static_cast<int8_t>(codes[i])); });
    case V4K_INT4: return each([&](int64_t i) { return static_cast<float>(nibble(i) - 8); });
    case V4K_Q3: return level(v4k_levels_of(V4K_Q3, 0), q3);
    case V4K_Q2: return level(v4k_levels_of(V4K_Q2, 0), [&](int64_t i) { return codes[i / 4] >> i % 4 / 2 * 4 & 15; });
    case V4K_BF16:
      for (int64_t i = 0; i < n; ++i) out[i] = from_bf16(reinterpret_cast<const uint16_t *>(codes)[i]);
      return true;
    case V4K_F32: std::memcpy(out, codes, n * sizeof(float)); return true;
  }
  return false;
}

namespace {

// The squares of a row's n values, and of what the row of w differs from them, each in LANES sums.
void squares(const float *values, const float *decoded, int64_t n, double *out) {
  double error[LANES] = {}, whole[LANES] = {};
  for (int64_t i = 0; i < n; i += LANES)
    for (int l = 0; l < LANES; ++l) {
      const double value = values[i + l], off = static_cast<double>(decoded[i + l]) - value;
      error[l] += off * off;
      whole[l] += value * value;
    }
  for (int l = 0; l < LANES; ++l) {
    out[0] += error[l];
    out[1] += whole[l];
  }
}

}  // namespace
}  // namespace v4k

extern "C" int v4k_decode(const v4k_matrix *w, float *out) {
  using namespace v4k;
  if (!w || !out || !is_matrix(*w)) return V4K_EARGUMENT;
  auto row = [&](int64_t r) { decode_row(*w, r, out + r * w->cols); };
  for_each(w->rows, w->rows * w->cols * DECODE_COST, row);
  return V4K_OK;
}

extern "C" int v4k_rounding(const v4k_matrix *w, const float *values, double *out) {
  using namespace v4k;
  if (!w || !values || !out || !is_matrix(*w)) return V4K_EARGUMENT;
  const int64_t rows = w->rows, cols = w->cols, parts = std::min<int64_t>(rows, pool_threads());
  Scratch<double> sums(2 * rows);
  Scratch<float> decoded(parts * cols);
  if (!sums || !decoded) return V4K_EMEMORY;
  std::fill_n(sums.get(), 2 * rows, 0.0);
  auto part = [&](int64_t p) {
    float *own = decoded.get() + p * cols;
    for (int64_t r = rows * p / parts; r < rows * (p + 1) / parts; ++r) {
      decode_row(*w, r, own);
      squares(values + r * cols, own, cols, sums.get() + 2 * r);
    }
  };
  for_each(parts, rows * cols * DECODE_COST, part);
  out[0] = out[1] = 0;
  for (int64_t r = 0; r < rows; ++r) {
    out[0] += sums.get()[2 * r];
    out[1] += sums.get()[2 * r + 1];
  }
  return V4K_OK;
}

extern "C" int v4k_format(int64_t id, v4k_format_info *out) {
  if (!out || id < 1 || id >= V4K_N_FORMATS) return V4K_EARGUMENT;
  *out = V4K_FORMATS[id].info;
  return V4K_OK;
}
