// Quantization and sums in plain C++, for tiers without a hand-written form. Included inside the tier's namespace.
// Every fp32 operation is the one the vector forms do, so the bits agree.

static inline void quantize_group(const float *x, float *scale, int8_t *q) {
  uint32_t peak = 0;
  for (int i = 0; i < V4K_GROUP; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + i, 4);
    bits &= 0x7fffffff;
    if (bits > peak) peak = bits;
  }
  if (peak >= 0x7f800000) {  // inf or NaN
    *scale = __builtin_nanf("");
    __builtin_memset(q, 0, V4K_GROUP);
    return;
  }
  float amax;
  __builtin_memcpy(&amax, &peak, 4);
  const float s = amax / 127.0f > 0x1p-120f ? amax / 127.0f : 0x1p-120f;
  for (int i = 0; i < V4K_GROUP; ++i) q[i] = (int8_t)__builtin_lrintf(x[i] / s);
  *scale = s;
}

static inline int32_t two_int16(int low, int high) { return (int32_t)((uint32_t)high << 16 | ((uint32_t)low & 0xffff)); }

static void quantize(const float *x, int64_t first, int64_t n, int64_t format, v4k_acts row) {
  const v4k_format_entry &f = V4K_FORMATS[format];
  for (int64_t g = first; g < first + n; ++g, x += V4K_GROUP) {
    int8_t q[V4K_GROUP];
    quantize_group(x, row.scale + g, q);
    if (f.order == V4K_FOURS) {
      int sums[2] = {0, 0};
      for (int i = 0; i < V4K_GROUP; ++i) {
        row.q[(g / 8) * 256 + i % 4 * 64 + (g % 8) * 8 + i / 4] = q[i];
        sums[i / 16] += q[i];
      }
      row.offset[g] = two_int16(-f.zero * sums[0], -f.zero * sums[1]);
      continue;
    }
    if (f.order == V4K_NATURAL) {
      int sum = 0;
      for (int i = 0; i < V4K_GROUP; ++i) sum += q[i];
      row.offset[g] = -f.zero * sum;
      __builtin_memcpy(row.q + g * V4K_GROUP, q, V4K_GROUP);
      continue;
    }
    int8_t *even = row.q + (g / 4) * 128 + (g % 4) * 16;
    int sums[2] = {0, 0};
    for (int i = 0; i < 16; ++i) {
      even[i] = q[2 * i];
      even[64 + i] = q[2 * i + 1];
      sums[i / 2 % 2] += q[2 * i] + q[2 * i + 1];
    }
    row.offset[g] = two_int16(-f.zero * sums[0], -f.zero * sums[1]);
    if (f.doubled) row.scale[g] *= 0.5f;
  }
}

static inline Lanes totals(const Lanes a[8]) {
  float t[8];
  for (int i = 0; i < 8; ++i) t[i] = total(a[i]);
  return load(t);
}

static uint64_t read(const void *data, int64_t bytes) {
  uint64_t sum[4] = {0, 0, 0, 0};
  for (int64_t i = 0; i < bytes; i += 32) {
    uint64_t v[4];
    __builtin_memcpy(v, (const char *)data + i, 32);
    for (int k = 0; k < 4; ++k) sum[k] += v[k];
  }
  return sum[0] + sum[1] + sum[2] + sum[3];
}
