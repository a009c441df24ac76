// Rows of any format in fp32, and what the table says of formats.
#include "decode.h"

#include <cstring>

#include "bits.h"
#include "formats.h"

namespace v4k {
namespace {

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
    for (int64_t i = 0; i < n; ++i) out[i] = code(i) * scale_of(format.scale, w.scale, row * groups + i / V4K_GROUP);
    return true;
  };
  auto nibble = [&](int64_t i) { return codes[i / 2] >> i % 2 * 4 & 15; };
  switch (w.format) {
    case V4K_FP4: return each([&](int64_t i) { return E2M1[nibble(i)]; });
    case V4K_INT8: return each([&](int64_t i) { return static_cast<float>(static_cast<int8_t>(codes[i])); });
    case V4K_INT4: return each([&](int64_t i) { return static_cast<float>(nibble(i) - 8); });
    case V4K_BF16:
      for (int64_t i = 0; i < n; ++i) out[i] = from_bf16(reinterpret_cast<const uint16_t *>(codes)[i]);
      return true;
    case V4K_F32: std::memcpy(out, codes, n * sizeof(float)); return true;
  }
  return false;
}

}  // namespace v4k

extern "C" int v4k_format(int64_t id, v4k_format_info *out) {
  if (!out || id < 1 || id >= V4K_N_FORMATS) return V4K_EARGUMENT;
  *out = V4K_FORMATS[id].info;
  return V4K_OK;
}
