// A thread plays the device: many jobs in a ring, several in flight, every result compared with v4k_experts. Then a server
// that is stopped while it is waited for. For sanitizers; the argument is the number of jobs.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "v4k.h"

namespace {

const int64_t D = 32, I = 32, LAYERS = 3, EXPERTS = 8, PAIRS = 6, JOBS = 4, TIMEOUT_US = 20'000'000;
const float LIMIT = 10;
std::mt19937 rng(1);

struct Model {
  std::vector<std::vector<uint8_t>> memory;
  std::vector<v4k_expert> experts;
  std::vector<v4k_served_layer> layers;

  v4k_matrix matrix(int64_t rows, int64_t cols) {
    std::vector<uint8_t> codes(rows * cols / 2), scale(rows * cols / V4K_GROUP, 122);
    for (auto &code : codes) code = static_cast<uint8_t>(rng());
    memory.push_back(codes), memory.push_back(scale);
    return {memory[memory.size() - 2].data(), memory.back().data(), rows, cols, V4K_FP4};
  }

  Model() {
    memory.reserve(6 * LAYERS * EXPERTS);
    for (int64_t e = 0; e < LAYERS * EXPERTS; ++e) experts.push_back({matrix(I, D), matrix(I, D), matrix(D, I)});
    for (int64_t l = 0; l < LAYERS; ++l) layers.push_back({experts.data() + l * EXPERTS, EXPERTS, LIMIT});
  }
};

// The device's side of a ring, by the offsets that v4k.h names.
struct Device {
  v4k_ring ring{nullptr, JOBS, PAIRS, D};
  void *memory;

  Device() {
    const int64_t bytes = v4k_ring_bytes(&ring);
    ring.memory = memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    std::memset(memory, 0, bytes);
  }
  ~Device() { std::free(memory); }

  char *job(uint64_t number) { return static_cast<char *>(memory) + 320 + number % JOBS * (64 + 3 * 64 + 8 * PAIRS * D); }
  int32_t *row(uint64_t number) { return reinterpret_cast<int32_t *>(job(number) + 64); }
  int32_t *expert(uint64_t number) { return reinterpret_cast<int32_t *>(job(number) + 128); }
  float *weight(uint64_t number) { return reinterpret_cast<float *>(job(number) + 192); }
  float *x(uint64_t number) { return reinterpret_cast<float *>(job(number) + 256); }
  float *y(uint64_t number) { return x(number) + PAIRS * D; }

  int64_t layer(uint64_t number) { return reinterpret_cast<int64_t *>(job(number))[1]; }
  int64_t pairs(uint64_t number) { return reinterpret_cast<int64_t *>(job(number))[3]; }

  void post(uint64_t number) {
    const int64_t rows = 1 + rng() % 2, pairs = rng() % (PAIRS + 1), layer = rng() % LAYERS;
    const int64_t head[] = {static_cast<int64_t>(number), layer, rows, pairs};
    std::memcpy(job(number), head, sizeof head);
    for (int64_t p = 0; p < pairs; ++p) {
      row(number)[p] = static_cast<int32_t>(rng() % rows);
      expert(number)[p] = static_cast<int32_t>(rng() % EXPERTS);
      weight(number)[p] = 0.25f * static_cast<float>(1 + rng() % 4);
    }
    for (int64_t i = 0; i < rows * D; ++i) x(number)[i] = static_cast<float>(static_cast<int>(rng() % 200) - 100) / 64;
    v4k_ring_post(&ring, number);
  }

  // Results that are not those of v4k_experts.
  int64_t wrong(const Model &model, uint64_t number) {
    int64_t count = 0;
    for (int64_t p = 0; p < pairs(number); ++p) {
      float want[D] = {};
      const int64_t id = expert(number)[p];
      v4k_experts(model.layers[layer(number)].experts, EXPERTS, nullptr, x(number) + row(number)[p] * D, 1, &id,
                  weight(number) + p, 1, LIMIT, want);
      count += std::memcmp(want, y(number) + p * D, sizeof want) != 0;
    }
    return count;
  }
};

}  // namespace

int main(int, char **argv) {
  const uint64_t rounds = std::strtoull(argv[1], nullptr, 10);
  Model model;
  Device device;
  void *server = nullptr;
  int64_t bad = v4k_serve_start(&device.ring, model.layers.data(), LAYERS, nullptr, nullptr, TIMEOUT_US, &server) != 0;
  const uint64_t in_step = 50;
  for (uint64_t first = 1; first <= rounds && !bad; first += in_step) {
    bad += v4k_serve_begin(server) != 0;
    uint64_t sent = first;
    for (uint64_t number = first; number < first + in_step; ++number) {
      for (; sent < first + in_step && sent < number + JOBS; ++sent) device.post(sent);
      bad += v4k_ring_wait(&device.ring, number, TIMEOUT_US) != 0;
      bad += device.wrong(model, number);
    }
    bad += v4k_serve_end(server) != 0;
    if (first % 5000 == 1) std::this_thread::sleep_for(std::chrono::milliseconds(3));
  }
  bad += v4k_serve_begin(server) != 0;
  int told = V4K_OK;
  std::thread waiting([&] { told = v4k_ring_wait(&device.ring, UINT64_MAX, TIMEOUT_US); });
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  bad += v4k_serve_stop(server) != 0;
  waiting.join();
  bad += told != V4K_ESTOPPED;
  std::printf("%lld wrong\n", static_cast<long long>(bad));
  return bad != 0;
}
