// One row of a weight, and how its codes are read. Included inside the tier's own namespace, before its block<F>().

template <int F>
struct Format {
  static const int code_bytes = V4K_FORMATS[F].info.code_bytes, scale_bytes = V4K_FORMATS[F].info.scale_bytes;
  static const int second_bytes = V4K_FORMATS[F].second_bytes, first_bytes = code_bytes - second_bytes;
  static const bool fours = V4K_FORMATS[F].order == V4K_FOURS;
};

// Codes and scales from some group on. Of Q3 `codes` is the first part of the row and `second` the other; of formats that
// have one, `factor` is the scale of the row.
struct Row {
  const uint8_t *codes, *second, *scale;
  float factor;
};

static inline float bf16_at(const uint8_t *p) {
  const uint32_t bits = (uint32_t)(p[0] | p[1] << 8) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

template <int F>
static inline Row row_at(const v4k_matrix *w, int64_t row) {
  const int64_t groups = w->cols / V4K_GROUP, own = V4K_FORMATS[F].info.row_scale;
  const uint8_t *codes = (const uint8_t *)w->codes + row * groups * Format<F>::code_bytes;
  const uint8_t *scale = (const uint8_t *)w->scale + row * (own + groups * Format<F>::scale_bytes);
  return Row{codes, codes + groups * Format<F>::first_bytes, scale + own, own ? bf16_at(scale) : 0.0f};
}

template <int F>
static inline Row from_group(Row w, int64_t g) {
  return Row{w.codes + g * Format<F>::first_bytes, w.second + g * Format<F>::second_bytes,
             w.scale + g * Format<F>::scale_bytes, w.factor};
}

// Scale of a group of a row.
template <int F>
static inline float scale_of(const Row &w, int g) {
  if (V4K_FORMATS[F].scale == V4K_SCALE_RUNS) return w.factor;
  if (V4K_FORMATS[F].scale == V4K_SCALE_BF16) return bf16_at(w.scale + 2 * g);
  const uint32_t bits = w.scale[g] ? (uint32_t)w.scale[g] << 23 : 0x400000;  // byte 0 is 2^-127
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// A copy of up to 8 groups of a row, with zeros behind them.
struct Padded {
  uint8_t codes[V4K_BLOCK * 32], second[V4K_BLOCK * 4], scale[V4K_BLOCK * 2];
};

template <int F>
static inline Row padded(const Row &w, int64_t n_groups, Padded *copy) {
  __builtin_memset(copy, 0, sizeof *copy);
  __builtin_memcpy(copy->codes, w.codes, n_groups * Format<F>::first_bytes);
  __builtin_memcpy(copy->second, w.second, n_groups * Format<F>::second_bytes);
  __builtin_memcpy(copy->scale, w.scale, n_groups * Format<F>::scale_bytes);
  return Row{copy->codes, copy->second, copy->scale, w.factor};
}
