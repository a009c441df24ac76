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

// `extreme`: all codes alike, of the highest magnitude, and inputs that are all +-127.
static void check_rows(int64_t format, int64_t rows, int64_t k, int64_t n, bool extreme = false) {
  const int64_t groups = k / V4K_GROUP, code_bytes = groups * V4K_FORMATS[format].info.code_bytes;
  const int64_t row_scale = V4K_FORMATS[format].info.row_scale;
  const int64_t scale_bytes = row_scale + groups * V4K_FORMATS[format].info.scale_bytes;
  std::unique_ptr<uint8_t[]> codes(new uint8_t[rows * code_bytes]), scale(new uint8_t[rows * scale_bytes]);
  for (int64_t i = 0; i < rows * code_bytes; ++i) codes[i] = static_cast<uint8_t>(draw());
  for (int64_t i = 0; i < rows * scale_bytes; ++i) {
    if (V4K_FORMATS[format].scale == V4K_SCALE_E8M0)
      scale[i] = static_cast<uint8_t>(draw() % 50 ? 100 + draw() % 40 : 0);
    else  // bf16: exponents near 1, either sign; behind that of a row multipliers
      scale[i] = (row_scale ? i % scale_bytes == 1 : i % 2) ? static_cast<uint8_t>(0x3c + draw() % 4 + 128 * (draw() % 2)) : static_cast<uint8_t>(draw());
  }
  std::unique_ptr<float[]> x(new float[n * k]), want(new float[n * rows]), got(new float[n * rows]);
  for (int64_t i = 0; i < n * k; ++i) x[i] = draw_float();
  if (extreme) {
    const uint8_t most = format == V4K_FP4 ? 0xff : format == V4K_INT8 ? 0x80 : 0;
    std::memset(codes.get(), most, rows * code_bytes);
    for (int64_t i = 0; i < n * k; ++i) x[i] = i / k % 2 ? 1.0f : -1.0f;
  }
  const Activations a(v4k_tier_scalar, x.get(), n, k, format), b(TIER, x.get(), n, k, format);
  require(!std::memcmp(a.q.get(), b.q.get(), n * a.view.groups * 32), "q", format, rows, k, n);
  require(!std::memcmp(a.scale.get(), b.scale.get(), n * a.view.groups * 4), "scale", format, rows, k, n);
  require(!std::memcmp(a.offset.get(), b.offset.get(), n * a.view.groups * 4), "offset", format, rows, k, n);
  const v4k_matrix w = {codes.get(), scale.get(), rows, k, format};
  v4k_tier_scalar.rows(&w, 0, rows, &a.view, nullptr, n, want.get(), rows);
  TIER.rows(&w, 0, rows, &b.view, nullptr, n, got.get(), rows);
  require(!std::memcmp(want.get(), got.get(), n * rows * 4), "rows", format, rows, k, n);
  std::unique_ptr<int32_t[]> tokens(new int32_t[n]);  // others of them, and a part of the rows
  for (int64_t i = 0; i < n; ++i) tokens[i] = static_cast<int32_t>(draw() % n);
  const int64_t first = draw() % rows, some = 1 + draw() % (rows - first);
  v4k_tier_scalar.rows(&w, first, some, &a.view, tokens.get(), n, want.get(), rows);
  TIER.rows(&w, first, some, &b.view, tokens.get(), n, got.get(), rows);
  require(!std::memcmp(want.get(), got.get(), n * rows * 4), "part of the rows", format, rows, k, n);
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

static std::unique_ptr<float[]> floats(int64_t n) {
  std::unique_ptr<float[]> x(new float[n]);
  for (int64_t i = 0; i < n; ++i) x[i] = draw_float();
  return x;
}

static void check_fp32(int64_t format, int64_t rows, int64_t k, int64_t n) {
  const int64_t bytes = rows * k * (format == V4K_BF16 ? 2 : 4);
  const auto x = floats(n * k), values = floats(rows * k), want = floats(n * rows), got = floats(n * rows);
  std::unique_ptr<uint8_t[]> codes(new uint8_t[bytes]);
  for (int64_t i = 0; i < rows * k; ++i) {
    if (format == V4K_F32)
      std::memcpy(codes.get() + 4 * i, &values[i], 4);
    else
      std::memcpy(codes.get() + 2 * i, reinterpret_cast<const char *>(&values[i]) + 2, 2);
  }
  const v4k_matrix w = {codes.get(), nullptr, rows, k, format};
  v4k_tier_scalar.rows_fp32(&w, 0, rows, x.get(), k, n, want.get(), rows);
  TIER.rows_fp32(&w, 0, rows, x.get(), k, n, got.get(), rows);
  require(!std::memcmp(want.get(), got.get(), n * rows * 4), "rows_fp32", format, rows, k, n);
}

static void check_norm_and_pool() {
  const int64_t n = 200, slots = 9;
  const auto x = floats(n), w = floats(n), kv = floats(slots * n), gate = floats(slots * n);
  const auto want = floats(2 * n), got = floats(2 * n);
  const float *k[slots], *g[slots];
  for (int64_t s = 0; s < slots; ++s) {
    k[s] = kv.get() + s * n;
    g[s] = gate.get() + s * n;
  }
  v4k_tier_scalar.rms_norm(x.get(), w.get(), n, 1e-6f, want.get());
  TIER.rms_norm(x.get(), w.get(), n, 1e-6f, got.get());
  v4k_tier_scalar.pool(k, g, slots, n, want.get() + n);
  TIER.pool(k, g, slots, n, got.get() + n);
  require(!std::memcmp(want.get(), got.get(), 2 * n * 4), "rms_norm or pool", 0, 1, n, 1);
  require(v4k_tier_scalar.sum_squares(x.get(), n) == TIER.sum_squares(x.get(), n), "sum_squares", 0, 1, n, 1);
}

static void check_functions() {
  const int64_t n = 4099;
  const auto want = floats(n), got = floats(n);
  for (int64_t i = 0; i < n; ++i) want[i] = got[i] = i % 1000 ? draw_float() * 30.0f : __builtin_nanf("");
  for (const auto function : {&v4k_tier::exponentials, &v4k_tier::sqrt_softplus}) {
    (v4k_tier_scalar.*function)(want.get(), n);
    (TIER.*function)(got.get(), n);
    require(!std::memcmp(want.get(), got.get(), n * 4), "exp or sqrt_softplus", 0, 1, n, 1);
  }
}

static void check_attention(int64_t heads, int64_t n_keys) {
  const int64_t plain = 128, rope = 32, d = plain + rope, bytes = plain + 2 * rope + 8;
  std::unique_ptr<uint8_t[]> stored(new uint8_t[n_keys * bytes]);
  std::unique_ptr<const uint8_t *[]> entries(new const uint8_t *[n_keys]);
  for (int64_t k = 0; k < n_keys; ++k) {
    uint8_t *e = stored.get() + k * bytes;
    entries[k] = e;
    for (int64_t i = 0; i < plain + 2 * rope; ++i) e[i] = static_cast<uint8_t>(draw() & 0xb7);
    for (int64_t i = plain + 2 * rope; i < bytes; ++i) e[i] = static_cast<uint8_t>(118 + draw() % 12);
  }
  const auto q = floats(heads * d), keys = floats(n_keys * d), same = floats(n_keys * d);
  v4k_tier_scalar.unpack(entries.get(), n_keys, plain, rope, keys.get());
  TIER.unpack(entries.get(), n_keys, plain, rope, same.get());
  require(!std::memcmp(keys.get(), same.get(), n_keys * d * 4), "unpack", 0, n_keys, d, 1);
  const auto want = floats(heads * (d + 2)), got = floats(heads * (d + 2));
  for (float *p : {want.get(), got.get()}) {
    std::memset(p, 0, heads * (d + 2) * 4);
    for (int64_t h = 0; h < heads; ++h) p[h] = -1e30f;
  }
  for (int round = 0; round < 2; ++round) {
    v4k_tier_scalar.attend(q.get(), heads, keys.get(), n_keys, d,
                           {want.get(), want.get() + heads, want.get() + 2 * heads});
    TIER.attend(q.get(), heads, keys.get(), n_keys, d, {got.get(), got.get() + heads, got.get() + 2 * heads});
  }
  require(!std::memcmp(want.get(), got.get(), heads * (d + 2) * 4), "attend", 0, n_keys, d, heads);
}

// Scores of all keys, and which of them are above a bound that many are not.
static void check_index(int64_t dims, int64_t heads, int64_t raising, int64_t n_keys) {
  const int64_t groups = dims / 32, panel_bytes = 64 * (dims + dims / 8);
  std::unique_ptr<uint8_t[]> codes(new uint8_t[n_keys * dims / 2]), scales(new uint8_t[n_keys * groups]);
  std::unique_ptr<int8_t[]> q(new int8_t[heads * dims]);
  std::unique_ptr<int32_t[]> offset(new int32_t[heads * groups]());
  const auto scale = floats(heads * groups), weight = floats(heads);
  for (int64_t i = 0; i < n_keys * dims / 2; ++i) codes[i] = static_cast<uint8_t>(draw());
  for (int64_t i = 0; i < n_keys * groups; ++i) scales[i] = static_cast<uint8_t>(draw() % 50 ? 120 + draw() % 16 : 0);
  for (int64_t i = 0; i < heads * dims; ++i) {
    q[i] = static_cast<int8_t>(draw() % 50 ? static_cast<int>(draw() % 25) - 12 : 12);
    offset[i / 32] -= 12 * q[i];
  }
  for (int64_t h = 0; h < heads; ++h) weight[h] = h < raising ? 1.0f + draw_float() / 128 : -0.3f * (h % 3);
  const v4k_index_query query = {q.get(), scale.get(), offset.get(), weight.get(), heads, raising};
  alignas(64) static uint8_t a[64 * 1152], b[64 * 1152];
  alignas(64) float want[64], got[64];
  std::memset(a, 0, panel_bytes);
  std::memset(b, 0, panel_bytes);
  v4k_tier_scalar.index_panel(codes.get(), scales.get(), n_keys, dims, a);
  TIER.index_panel(codes.get(), scales.get(), n_keys, dims, b);
  v4k_tier_scalar.index_scores(a, dims, &query, -1e30f, want);
  TIER.index_scores(b, dims, &query, -1e30f, got);
  require(!std::memcmp(want, got, sizeof want), "index_scores", V4K_FP4, n_keys, dims, heads);
  const float bound = want[n_keys / 2];
  uint64_t above = 0;
  for (int k = 0; k < 64; ++k) above |= static_cast<uint64_t>(want[k] > bound) << k;
  for (const v4k_tier *tier : {&v4k_tier_scalar, &TIER}) {
    const uint64_t bits = tier->index_scores(tier == &TIER ? b : a, dims, &query, bound, got);
    require(bits == above, "what is above", V4K_FP4, n_keys, dims, heads);
    for (int k = 0; k < 64; ++k)
      require(above >> k & 1 ? got[k] == want[k] : got[k] >= want[k], "a pruned score", V4K_FP4, n_keys, dims, heads);
  }
}

// Rows to Q3 and Q2, and with errors carried; each step of gains.
static void check_lowbit(int64_t format, int64_t n, int64_t cols, int64_t rank) {
  const int64_t code_bytes = cols / 32 * V4K_FORMATS[format].info.code_bytes, scale_bytes = 2 + cols / 32;
  const auto w = floats(n * cols), counts = floats(cols), factor = floats(cols * rank), gains = floats(cols * rank);
  const auto within = floats(cols * 16);
  for (int64_t i = 0; i < cols; ++i) counts[i] = counts[i] * counts[i] + 0.1f;
  for (int64_t i = 0; i < cols * rank; ++i) gains[i] *= 0.001f;
  for (int64_t i = 0; i < cols * 16; ++i) within[i] *= 0.01f;
  const v4k_carry carry = {counts.get(), factor.get(), counts.get(), gains.get(), within.get(), rank};
  std::unique_ptr<uint8_t[]> codes[2], scale[2], found(new uint8_t[V4K_ABREAST * (cols + cols / 16)]);
  std::unique_ptr<double[]> left[2], next[2], v(new double[rank]);
  for (int64_t i = 0; i < rank; ++i) v[i] = draw_float();
  for (const v4k_tier *tier : {&v4k_tier_scalar, &TIER}) {
    const int k = tier == &TIER;
    codes[k].reset(new uint8_t[n * code_bytes]);
    scale[k].reset(new uint8_t[n * scale_bytes]);
    for (int64_t r = 0; r < n; ++r)
      tier->encode_lowbit(w.get() + r * cols, counts.get(), cols, format, codes[k].get() + r * code_bytes,
                          scale[k].get() + r * scale_bytes);
    tier->carry_lowbit(w.get(), n, cols, format, &carry, found.get(), codes[k].get(), scale[k].get());
    left[k].reset(new double[rank * rank]);
    next[k].reset(new double[rank]);
    for (int64_t i = 0; i < rank * rank; ++i) left[k][i] = 0.01 * static_cast<double>(i % 7);
    tier->carry_step(left[k].get(), rank, v.get(), 3.0, factor.get(), next[k].get());
  }
  require(!std::memcmp(codes[0].get(), codes[1].get(), n * code_bytes), "codes", format, n, cols, rank);
  require(!std::memcmp(scale[0].get(), scale[1].get(), n * scale_bytes), "scales", format, n, cols, rank);
  require(!std::memcmp(left[0].get(), left[1].get(), rank * rank * 8), "directions", format, n, cols, rank);
  require(!std::memcmp(next[0].get(), next[1].get(), rank * 8), "gains", format, n, cols, rank);
}

// Logits of every kind: their peak, their weights.
static void check_logits(float spread, double inverse, float odd) {
  std::unique_ptr<float[]> x(new float[V4K_LOGITS]);
  std::unique_ptr<int64_t[]> want(new int64_t[V4K_LOGITS]), got(new int64_t[V4K_LOGITS]);
  for (int i = 0; i < V4K_LOGITS; ++i) x[i] = spread * draw_float();
  x[draw() % V4K_LOGITS] = odd;
  const float peak = v4k_tier_scalar.logit_peak(x.get()), same = TIER.logit_peak(x.get());
  require(peak == same || (peak != peak && same != same), "logit_peak", 0, 1, V4K_LOGITS, 1);
  require((peak != peak) == !(odd <= __FLT_MAX__), "what is not finite", 0, 1, V4K_LOGITS, 1);
  if (peak != peak) return;
  const int64_t sum = v4k_tier_scalar.logit_weights(x.get(), peak, inverse, want.get());
  require(sum == TIER.logit_weights(x.get(), peak, inverse, got.get()), "a sum of weights", 0, 1, V4K_LOGITS, 1);
  require(!std::memcmp(want.get(), got.get(), V4K_LOGITS * 8), "logit_weights", 0, 1, V4K_LOGITS, 1);
}

int main() {
  const int64_t widths[] = {32, 96, 256, 288, 480, 768};
#define EACH(F) F,
  for (int64_t format : {V4K_QUANTIZED(EACH)})
    for (int64_t k : widths)
      for (int64_t n : {1, 2, 3, 4, 5, 7, 35})
        for (int64_t rows : {1, 8, 19, 70}) check_rows(format, rows, k, n);
  for (int64_t format : {V4K_QUANTIZED(EACH)}) {
    for (int64_t n : {1, 6}) check_rows(format, 40, 512, n, true);
    check_rows(format, 33, 288, 67);
    for (int round = 0; round < 20; ++round) check_rows(format, 1 + draw() % 80, 32 * (1 + draw() % 20), 1 + draw() % 12);
  }
  for (int64_t format : {V4K_BF16, V4K_F32})
    for (int64_t n : {1, 2, 3, 5})
      for (int64_t rows : {1, 4, 7})
        for (int64_t k : {32, 96, 1120}) check_fp32(format, rows, k, n);
  check_fp32(V4K_BF16, 70, 64, 19);
  check_norm_and_pool();
  for (int64_t heads : {1, 4, 6})
    for (int64_t n_keys : {1, 2, 63, 64}) check_attention(heads, n_keys);
  for (int64_t dims : {32, 64, 128, 1024})
    for (int64_t heads : {1, 2, 5, 23, 64})
      for (int64_t n_keys : {1, 17, 63, 64}) {
        check_index(dims, heads, heads, n_keys);
        check_index(dims, heads, heads / 2, n_keys);
        check_index(dims, heads, 0, n_keys);
      }
  for (int64_t format : {V4K_Q3, V4K_Q2})
    for (int64_t n : {1, 9, 16})
      for (int64_t rank : {4, 20}) check_lowbit(format, n, 160, rank);
  check_functions();
  check_swiglu();
  for (float spread : {0.0f, 1e-30f, 0.1f, 10.0f, 1e30f})
    for (double inverse : {0.01, 1.0, 1.4, 1e300})
      for (float odd : {0.0f, -0.0f, -__builtin_inff(), __builtin_inff(), __builtin_nanf(""), -__builtin_nanf("")})
        for (int round = 0; round < 9; ++round) check_logits(spread, inverse, odd);
  std::printf("%s: equal\n", TIER.name);
}
