// Compares one ISA tier with the scalar one, bit for bit, without Python: for emulators and sanitizers. Buffers have
// exactly the size they need, so that a read past the end is one past an allocation.
//   g++ -DTIER=v4k_tier_neon ... && ./tier_check        exit code 0: equal
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>

#include "tier.h"

static uint64_t state = 1;

static uint32_t draw() {
  state = state * 6364136223846793005ULL + 1442695040888963407ULL;
  return static_cast<uint32_t>(state >> 33);
}

static float draw_float() {
  const float value = static_cast<float>(draw() % 20001) / 10000.0f - 1.0f;
  return draw() % 50 ? value : 100.0f * value;
}

struct Activations {
  Activations(const v4k_tier &tier, const float *x, int64_t n, int64_t k, int64_t format) {
    const int64_t groups = (k / 32 + 7) / 8 * 8;
    q.reset(new int8_t[n * groups * 32]());
    scale.reset(new float[n * groups]());
    offset.reset(new int32_t[n * groups]());
    view = {q.get(), scale.get(), offset.get(), groups};
    for (int64_t i = 0; i < n; ++i)
      tier.quantize(x + i * k, 0, k / 32, format,
                    {q.get() + i * groups * 32, scale.get() + i * groups, offset.get() + i * groups, groups});
  }
  std::unique_ptr<int8_t[]> q;
  std::unique_ptr<float[]> scale;
  std::unique_ptr<int32_t[]> offset;
  v4k_acts view;
};

static void require(bool ok, const char *what, int64_t format, int64_t rows, int64_t k, int64_t n) {
  if (ok) return;
  std::printf("%s: %s differs, format %ld, %ld x %ld, %ld tokens\n", TIER.name, what, (long)format, (long)rows, (long)k,
              (long)n);
  std::exit(1);
}

static void check_rows(int64_t format, int64_t rows, int64_t k, int64_t n) {
  const int64_t groups = k / 32, code_bytes = format == V4K_INT8 ? k : k / 2;
  const int64_t scale_bytes = groups * (format == V4K_FP4 ? 1 : 2);
  std::unique_ptr<uint8_t[]> codes(new uint8_t[rows * code_bytes]), scale(new uint8_t[rows * scale_bytes]);
  for (int64_t i = 0; i < rows * code_bytes; ++i) codes[i] = static_cast<uint8_t>(draw());
  for (int64_t i = 0; i < rows * scale_bytes; ++i) {
    if (format == V4K_FP4)
      scale[i] = static_cast<uint8_t>(draw() % 50 ? 100 + draw() % 40 : 0);
    else  // bf16: exponents near 1, either sign
      scale[i] = i % 2 ? static_cast<uint8_t>(0x3c + draw() % 4 + 128 * (draw() % 2)) : static_cast<uint8_t>(draw());
  }
  std::unique_ptr<float[]> x(new float[n * k]), want(new float[n * rows]), got(new float[n * rows]);
  for (int64_t i = 0; i < n * k; ++i) x[i] = draw_float();
  const Activations a(v4k_tier_scalar, x.get(), n, k, format), b(TIER, x.get(), n, k, format);
  require(!std::memcmp(a.q.get(), b.q.get(), n * a.view.groups * 32), "q", format, rows, k, n);
  require(!std::memcmp(a.scale.get(), b.scale.get(), n * a.view.groups * 4), "scale", format, rows, k, n);
  require(!std::memcmp(a.offset.get(), b.offset.get(), n * a.view.groups * 4), "offset", format, rows, k, n);
  const v4k_matrix w = {codes.get(), scale.get(), rows, k, format};
  v4k_tier_scalar.rows(&w, 0, rows, &a.view, nullptr, n, want.get(), rows);
  TIER.rows(&w, 0, rows, &b.view, nullptr, n, got.get(), rows);
  require(!std::memcmp(want.get(), got.get(), n * rows * 4), "rows", format, rows, k, n);
}

static void check_swiglu() {
  const int64_t n = 4096;
  std::unique_ptr<float[]> gate(new float[n]), up(new float[n]), want(new float[n]), got(new float[n]);
  for (int64_t i = 0; i < n; ++i) {
    gate[i] = draw_float() * (i % 7 ? 10.0f : 1e4f);
    up[i] = draw_float() * 10.0f;
  }
  v4k_tier_scalar.swiglu(gate.get(), up.get(), n, 0.37f, 10.0f, want.get());
  TIER.swiglu(gate.get(), up.get(), n, 0.37f, 10.0f, got.get());
  require(!std::memcmp(want.get(), got.get(), n * 4), "swiglu", 0, 1, n, 1);
}

int main() {
  const int64_t formats[] = {V4K_FP4, V4K_INT8, V4K_INT4}, widths[] = {32, 96, 256, 288, 480, 768};
  for (int64_t format : formats)
    for (int64_t k : widths)
      for (int64_t n : {1, 2, 3, 4, 5, 7, 35})
        for (int64_t rows : {1, 8, 19, 70}) check_rows(format, rows, k, n);
  check_swiglu();
  std::printf("%s: equal\n", TIER.name);
}
