// Calls every function of v4k.h on inputs that are the same everywhere, by every tier and number of threads, and prints a
// line for each: the lines of two machines are equal if their libraries give the same bits. Links with the library alone.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "v4k.h"

namespace {

const int64_t D = 64, S = 4, H = 4, HEAD = 128, ROPE = 64, WINDOW = 8, LORA = 64, GROUPS = 2, RATIO = 4, N = 40;
const int64_t EXPERTS = 6, INTER = 96, TOP = 2, INDEX_HEADS = 4, INDEX_TOP = 4, SLOTS = 2 * RATIO + V4K_SPARE_ROWS;
const int64_t ENTRY = (HEAD - ROPE) + 2 * ROPE + 8, KEY = HEAD / 2, KEY_SCALES = HEAD / 32, VOCAB = 3000;

uint64_t state = 1;

uint32_t draw() {
  state = state * 6364136223846793005ULL + 1442695040888963407ULL;
  return static_cast<uint32_t>(state >> 33);
}

// Memory of the whole run, zeros.
void *memory(int64_t bytes) {
  void *at = calloc(static_cast<size_t>(bytes + 64), 1);
  if (!at) exit(3);
  return reinterpret_cast<void *>((reinterpret_cast<uintptr_t>(at) + 63) / 64 * 64);
}

template <class T>
T *array(int64_t count) {
  return static_cast<T *>(memory(count * static_cast<int64_t>(sizeof(T))));
}

float *floats(int64_t count, float most = 1) {
  float *x = array<float>(count);
  for (int64_t i = 0; i < count; ++i) x[i] = (static_cast<float>(draw() % 16385) / 8192 - 1) * most;
  return x;
}

v4k_format_info known(int64_t format) {
  v4k_format_info about;
  if (v4k_format(format, &about)) exit(3);
  return about;
}

// A weight whose values are about 1 / 8.
v4k_matrix matrix(int64_t format, int64_t rows, int64_t cols) {
  const v4k_format_info about = known(format);
  const int64_t groups = rows * cols / V4K_GROUP, of_row = cols / V4K_GROUP * about.scale_bytes + about.row_scale;
  auto *codes = array<uint8_t>(groups * about.code_bytes), *scale = array<uint8_t>(rows * of_row);
  for (int64_t i = 0; i < groups * about.code_bytes; ++i) codes[i] = static_cast<uint8_t>(draw());
  for (int64_t i = 0; i < groups && format == V4K_FP4; ++i) scale[i] = static_cast<uint8_t>(121 + draw() % 3);
  for (int64_t i = 0; i < groups && about.scale_bytes == 2; ++i) {
    const uint16_t half = static_cast<uint16_t>((format == V4K_INT8 ? 0x3a00 : 0x3c00) + draw() % 128);
    memcpy(scale + 2 * i, &half, 2);
  }
  for (int64_t i = 0; i < rows * of_row && about.row_scale; ++i) scale[i] = static_cast<uint8_t>(draw());
  for (int64_t r = 0; r < rows && about.row_scale; ++r) {
    const uint16_t half = static_cast<uint16_t>(0x3a80 + draw() % 128);
    memcpy(scale + r * of_row, &half, 2);
  }
  const float *values = floats(about.scale_bytes ? 0 : rows * cols, 0.25f);
  for (int64_t i = 0; i < rows * cols && !about.scale_bytes; ++i) {
    if (format == V4K_F32) memcpy(codes + 4 * i, values + i, 4);
    if (format == V4K_BF16) memcpy(codes + 2 * i, reinterpret_cast<const char *>(values + i) + 2, 2);
  }
  return {codes, about.scale_bytes ? scale : nullptr, rows, cols, format};
}

void require(bool ok, const char *what) {
  if (ok) return;
  printf("%s failed\n", what);
  exit(1);
}

// Print what a call gave, as a number; `code` must be V4K_OK.
void told(const char *what, int code, const void *data, int64_t bytes) {
  uint64_t hash = 14695981039346656037ULL;
  for (int64_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const uint8_t *>(data)[i]) * 1099511628211ULL;
  if (code) printf("%s: error %d\n", what, code);
  require(code == V4K_OK, what);
  printf("%s %08x%08x\n", what, static_cast<unsigned>(hash >> 32), static_cast<unsigned>(hash));
}

// The same of numbers, all of which must be numbers.
void told(const char *what, int code, const float *data, int64_t bytes) {
  for (int64_t i = 0; i < bytes / 4; ++i) require(data[i] - data[i] == 0, what);
  told(what, code, static_cast<const void *>(data), bytes);
}

void products() {
  int8_t *codes = array<int8_t>(N * 64);
  float *scale = array<float>(N * 2), *y = array<float>(N * 96), *x = floats(N * 2 * 288, 3);
  told("quantize", v4k_quantize(x, N, 64, codes, scale), codes, N * 64);
  told("quantize scales", V4K_OK, scale, N * 2 * 4);
  uint16_t *scales = array<uint16_t>(64 * 2);
  const v4k_matrix plain = matrix(V4K_BF16, 64, 64);
  uint8_t *bytes = array<uint8_t>(64 * 64), *block = array<uint8_t>(1);
  for (int64_t i = 0; i < 64 * 64; ++i) bytes[i] = static_cast<uint8_t>(draw() % 127 + draw() % 2 * 128);
  *block = 120;
  for (const uint8_t *blocks : {static_cast<const uint8_t *>(nullptr), static_cast<const uint8_t *>(block)}) {
    const void *values = blocks ? bytes : plain.codes;
    told("encode_int8", v4k_encode_int8(values, blocks, 64, 64, codes, scales), codes, 64 * 64);
    told("encode_int8 scales", V4K_OK, scales, 64 * 2 * 2);
  }
  const float *dense = floats(32 * 288, 3);
  float *counts = floats(32 * 288);
  for (int64_t i = 0; i < 32 * 288; ++i) counts[i] = counts[i] * counts[i] + 0.5f;
  for (int64_t format : {V4K_Q3, V4K_Q2}) {
    const int64_t n_codes = 32 * 9 * known(format).code_bytes, n_scale = 32 * (2 + 9);
    for (int64_t stride : {int64_t{-1}, int64_t{0}, int64_t{288}}) {
      uint8_t *packed = array<uint8_t>(n_codes), *runs = array<uint8_t>(n_scale), *alone = array<uint8_t>(n_scale);
      const float *importance = stride < 0 ? nullptr : counts;
      const int code = v4k_encode_lowbit(dense, 32, 288, format, importance, stride < 0 ? 0 : stride, packed, runs);
      told("encode_lowbit scales", code, runs, n_scale);
      told("encode_lowbit codes", V4K_OK, packed, n_codes);
      v4k_encode_lowbit(dense, 32, 288, format, importance, stride < 0 ? 0 : stride, nullptr, alone);
      require(!memcmp(runs, alone, static_cast<size_t>(n_scale)), "encode_lowbit of scales alone");
      const v4k_matrix encoded = {packed, runs, 32, 288, format};
      told("linear of encoded", v4k_linear(&encoded, 1, x, N, y), y, N * 32 * 4);
    }
  }
  float *decoded = array<float>(32 * 288);
  double *rounding = array<double>(2);
  for (int64_t format : {V4K_FP4, V4K_INT8, V4K_INT4, V4K_BF16, V4K_F32, V4K_Q3, V4K_Q2}) {
    const v4k_matrix w = matrix(format, 32, 288);
    told("decode", v4k_decode(&w, decoded), decoded, 32 * 288 * 4);
    told("rounding", v4k_rounding(&w, dense, rounding), rounding, 2 * 8);
  }
  const float *factor = floats(288 * 8);
  float *gains = array<float>(288 * 8), *within = array<float>(288 * 16);
  told("carry_gains", v4k_carry_gains(factor, counts, 288, 8, gains, within), gains, 288 * 8 * 4);
  told("carry_gains within", V4K_OK, within, 288 * 16 * 4);
  const v4k_carry carry = {counts, factor, counts, gains, within, 8};
  uint8_t *packed = array<uint8_t>(31 * 108), *runs = array<uint8_t>(31 * 11);
  for (int64_t format : {V4K_Q3, V4K_Q2}) {
    told("carry_lowbit", v4k_carry_lowbit(dense, 31, 288, format, &carry, packed, runs), runs, 31 * 11);
    told("carry_lowbit codes", V4K_OK, packed, 31 * 288 / 32 * (format == V4K_Q3 ? 12 : 8));
  }
  v4k_format_info about;
  for (int64_t format = V4K_FP4; !v4k_format(format, &about); ++format) {
    const v4k_matrix w = matrix(format, 96, 288);
    for (int64_t n : {int64_t{1}, int64_t{2}, int64_t{7}, N})
      told(about.name, v4k_linear(&w, 2, x, n, y), y, n * 96 * 4);
    const int64_t ids[] = {0, 95, 17};
    float *rows = array<float>(3 * S * 288);
    told("embed", v4k_embed(&w, ids, 3, S, rows), rows, 3 * S * 288 * 4);
  }
}

v4k_expert expert(int64_t number) {
  const int64_t formats[] = {V4K_FP4, V4K_INT8, V4K_INT4, V4K_Q3, V4K_Q2};
  auto one = [&](int64_t rows, int64_t cols) { return matrix(formats[number++ % 5], rows, cols); };
  const v4k_matrix w1 = one(INTER, D), w3 = one(INTER, D), w2 = one(D, INTER);
  return {w1, w3, w2};
}

void mixture() {
  static v4k_expert experts[EXPERTS];
  for (int64_t e = 0; e < EXPERTS; ++e) experts[e] = expert(e);
  const v4k_expert shared = expert(1);
  const float *x = floats(N * D, 2);
  const v4k_router router = {matrix(V4K_F32, EXPERTS, D), floats(EXPERTS), nullptr, TOP, 1.5f};
  int64_t *ids = array<int64_t>(N * TOP);
  float *weights = array<float>(N * TOP), *scores = array<float>(N * EXPERTS), *out = floats(N * D);
  told("route", v4k_route(&router, x, nullptr, N, ids, weights, scores), ids, N * TOP * 8);
  told("route weights", V4K_OK, weights, N * TOP * 4);
  told("route scores", V4K_OK, scores, N * EXPERTS * 4);
  for (int64_t n : {int64_t{1}, N})
    told("experts", v4k_experts(experts, EXPERTS, &shared, x, n, ids, weights, TOP, 10, out), out, n * D * 4);

  v4k_ring ring = {nullptr, 2, 4, D};
  const int64_t bytes = v4k_ring_bytes(&ring);
  ring.memory = memory(bytes);
  const v4k_served_layer layer = {experts, EXPERTS, 10};
  void *server = nullptr;
  require(!v4k_serve_start(&ring, &layer, 1, nullptr, nullptr, 60000000, &server), "serve_start");
  require(!v4k_serve_begin(server), "serve_begin");
  char *job = static_cast<char *>(ring.memory) + 320 + (64 + 3 * 64 + 8 * 4 * D);  // number 1
  const int64_t head[] = {1, 0, 2, 3};
  const int32_t row[] = {0, 1, 1}, chosen[] = {4, 2, 5};
  const float weight[] = {0.5f, 0.25f, 2};
  memcpy(job, head, sizeof head);
  memcpy(job + 64, row, sizeof row);
  memcpy(job + 128, chosen, sizeof chosen);
  memcpy(job + 192, weight, sizeof weight);
  memcpy(job + 256, x, 2 * D * 4);
  v4k_ring_post(&ring, 1);
  const int waited = v4k_ring_wait(&ring, 1, 60000000);
  told("served", waited, job + 256 + 4 * 4 * D, 3 * D * 4);
  require(!v4k_serve_end(server) && !v4k_serve_stop(server), "serve_end");
}

void streams() {
  const v4k_hyper h = {matrix(V4K_F32, S * S + 2 * S, S * D), floats(S * S + 2 * S), floats(3), floats(D), S, 20, 1e-6f, 1e-6f};
  const v4k_hyper last = {matrix(V4K_F32, S, S * D), floats(S), floats(1), floats(D), S, 20, 1e-6f, 1e-6f};
  float *all = floats(N * S * D), *x = array<float>(N * D), *mix = array<float>(N * (S + S * S));
  told("hyper_pre", v4k_hyper_pre(&h, all, N, x, mix), x, N * D * 4);
  told("hyper_pre mix", V4K_OK, mix, N * (S + S * S) * 4);
  told("hyper_post", v4k_hyper_post(x, mix, N, S, D, all), all, N * S * D * 4);
  told("hyper_head", v4k_hyper_head(&last, all, N, x), x, N * D * 4);
}

void attention() {
  const v4k_attention a = {
      matrix(V4K_INT8, LORA, D), matrix(V4K_INT4, H * HEAD, LORA), matrix(V4K_INT8, HEAD, D),
      matrix(V4K_INT8, GROUPS * 32, H * HEAD / GROUPS), matrix(V4K_FP4, D, GROUPS * 32),
      floats(LORA), floats(HEAD), floats(H), H, HEAD, ROPE, GROUPS, WINDOW, 1e-6f};
  float *freqs = floats(ROPE / 2);
  const v4k_compressor main = {matrix(V4K_BF16, 2 * HEAD, D), matrix(V4K_BF16, 2 * HEAD, D), floats(RATIO * 2 * HEAD),
                               floats(HEAD), freqs, RATIO, HEAD, ROPE, 0, 1e-6f};
  const v4k_compressor keys = {matrix(V4K_BF16, 2 * HEAD, D), matrix(V4K_BF16, 2 * HEAD, D), floats(RATIO * 2 * HEAD),
                               floats(HEAD), freqs, RATIO, HEAD, ROPE, 1, 1e-6f};
  const v4k_indexer indexer = {matrix(V4K_INT8, INDEX_HEADS * HEAD, LORA), matrix(V4K_BF16, INDEX_HEADS, D), INDEX_HEADS,
                               HEAD, ROPE, INDEX_TOP};
  const float *x = floats(N * D, 2);
  float *turns = array<float>(N * ROPE), *q = array<float>(N * H * HEAD), *qr = array<float>(N * LORA);
  float *heads = array<float>(N * H * HEAD), *out = array<float>(N * D);
  told("rotations", v4k_rotations(freqs, ROPE / 2, 0, 1, N, turns), turns, N * ROPE * 4);
  told("queries", v4k_queries(&a, x, N, turns, q, qr), q, N * H * HEAD * 4);
  uint8_t *fresh = array<uint8_t>(N * ENTRY), *ring = array<uint8_t>(2 * WINDOW * ENTRY);
  told("window_entries", v4k_window_entries(&a, x, N, turns, fresh), fresh, N * ENTRY);
  v4k_compressed to[2], again[2];
  for (auto *set : {to, again})
    for (int k = 0; k < 2; ++k)
      set[k] = {floats(SLOTS * 2 * HEAD, 0), floats(SLOTS * 2 * HEAD, 0), array<uint8_t>(N / RATIO * (k ? KEY : ENTRY)),
                k ? array<uint8_t>(N / RATIO * KEY_SCALES) : nullptr, SLOTS, 0};
  told("compress", v4k_compress(&main, x, 0, N, to), to[0].entries, N / RATIO * ENTRY);
  told("compress keys", v4k_compress(&keys, x, 0, N, to + 1), to[1].entries, N / RATIO * KEY);
  told("compress key scales", V4K_OK, to[1].scales, N / RATIO * KEY_SCALES);
  int32_t *selected = array<int32_t>(N * INDEX_TOP);
  float *scores = array<float>(N / RATIO), *weights = floats(INDEX_HEADS);
  told("index_scores", v4k_index_scores(&indexer, q, weights, to[1].entries, to[1].scales, N / RATIO, scores), scores,
       N / RATIO * 4);
  told("select", v4k_select(&indexer, x, qr, turns, 0, N, to[1].entries, to[1].scales, selected), selected,
       N * INDEX_TOP * 4);
  told("attend", v4k_attend(&a, q, turns, 0, N, ring, 2 * WINDOW, fresh, to[0].entries, RATIO, selected, INDEX_TOP, heads),
       heads, N * H * HEAD * 4);
  told("attention_output", v4k_attention_output(&a, heads, N, out), out, N * D * 4);

  const v4k_attention_layer layer = {&a, &main, &keys, &indexer, 0};
  void *scratch = memory(v4k_attention_scratch(&layer) * N);
  const v4k_memory kept = {array<uint8_t>((WINDOW + V4K_SPARE_ROWS) * ENTRY), again, again + 1, WINDOW + V4K_SPARE_ROWS};
  const v4k_span parts[] = {{&kept, 0, N - 3, 0}, {&kept, N - 3, 3, 0}};
  float *same = array<float>(N * D);
  int code = v4k_self_attention(&layer, x, turns, parts, 1, scratch, same);
  if (!code) code = v4k_self_attention(&layer, x + (N - 3) * D, turns + (N - 3) * ROPE, parts + 1, 1, scratch, same + (N - 3) * D);
  told("self_attention", code, same, N * D * 4);
}

void sampling() {
  float *logits = floats(VOCAB, 10), *y = array<float>(VOCAB);
  uint8_t *allowed = array<uint8_t>(VOCAB);
  for (int64_t i = 0; i < VOCAB; ++i) allowed[i] = draw() % 3 > 0;
  int64_t drawn[8][2] = {};
  const double temperatures[] = {0, 1, 0.6, 1.7}, top_p[] = {1, 1, 0.9, 0.5};
  int code = V4K_OK;
  for (int i = 0; i < 8 && !code; ++i)
    code = v4k_sample(logits, i % 2 ? allowed : nullptr, VOCAB, temperatures[i / 2], i % 3 * 20, i % 3 ? 0 : 0.05,
                      top_p[i / 2], 0x9e3779b97f4a7c15ULL * (i + 1), &drawn[i][0], &drawn[i][1]);
  told("sample", code, drawn, sizeof drawn);
  told("exp", v4k_elementary(V4K_EXP, logits, VOCAB, y), y, VOCAB * 4);
  told("sqrt_softplus", v4k_elementary(V4K_SQRT_SOFTPLUS, logits, VOCAB, y), y, VOCAB * 4);
  const uint64_t sum = v4k_read_probe(logits, VOCAB * 4);
  told("read_probe", V4K_OK, &sum, 8);
}

// A file whose path is longer than Windows takes by default, and whose first byte is 7.
void long_path(const char *path) {
  char first = 0;
  const int64_t file = v4k_file_open(path, 0);
  require(strlen(path) > 260 && file >= 0 && v4k_file_read(file, &first, 1, 0) == 1 && first == 7, "file_open of a long path");
  v4k_file_close(file);
}

// Memory and files do what v4k.h says; `path` may be written.
void memory_and_files(const char *path) {
  const int64_t page = 1 << 16, n = 8;
  auto *at = static_cast<char *>(v4k_reserve(n * page));
  require(at && !v4k_commit(at, 2 * page) && !v4k_commit(at + 2 * page, 2 * page), "reserve");
  memset(at, 7, 4 * page);
  v4k_large_pages(at, 4 * page);
  v4k_populate(at, 4 * page);
  v4k_discard(at + page, 3 * page);
  require(!v4k_commit(at + page, 3 * page) && at[0] == 7 && at[page] == 0 && at[4 * page - 1] == 0, "discard");

  FILE *out = fopen(path, "wb");
  require(out, "fopen");
  for (int64_t i = 0; i < 3 * page + 100; ++i) fputc(static_cast<int>(i / 4096 + 1), out);
  require(!fclose(out), "fclose");
  for (int direct = 0; direct < 2; ++direct) {
    const int64_t file = v4k_file_open(path, direct);
    if (direct && file == -22) continue;  // where the file system refuses
    require(file >= 0, "file_open");
    int64_t before[3], after[3];
    require(!v4k_file_identity(file, before) && before[1] == 3 * page + 100, "file_identity");
    require(v4k_file_read(file, at, page, page) == page && at[0] == 17 && at[page - 1] == 32, "file_read");
    require(v4k_file_read(file, at, page, 3 * page) == 100 && at[99] == 49, "file_read of the end");
    v4k_file_forget(file, 0, page);
    require(!v4k_file_identity(file, after) && !memcmp(before, after, sizeof before), "file_identity");
    v4k_file_close(file);
  }
  require(v4k_file_open("/nowhere/at/all", 0) == -2, "file_open of none");
  v4k_release(at, n * page);
  remove(path);
  printf("memory and files\n");
}

}  // namespace

int main(int n, char **arguments) {
  if (n < 3) return 2;
  require(v4k_abi_version() == V4K_ABI_VERSION && v4k_cpus() >= 1 && v4k_threads() >= 1, "version");
  char tiers[64];
  strncpy(tiers, v4k_isa_tiers(), sizeof tiers - 1);
  for (char *tier = strtok(tiers, " "); tier; tier = strtok(nullptr, " "))
    for (int threads : {1, 3}) {
      require(!v4k_set_isa(tier) && !strcmp(v4k_isa(), tier) && !v4k_set_threads(threads), "set_isa");
      printf("# %s, %d threads\n", tier, threads);
      state = 1;
      products();
      mixture();
      streams();
      attention();
      sampling();
    }
  require(v4k_scratch_peak() > 0, "scratch_peak");
  long_path(arguments[2]);
  memory_and_files(arguments[1]);
  return 0;
}
