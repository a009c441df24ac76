// From logits to a token. Weights of tokens are integers, so sums of them are exact in any order.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "bits.h"
#include "dispatch.h"
#include "scratch.h"

namespace v4k {
namespace {

const int64_t BLOCK = V4K_LOGITS;
const int64_t WHOLE = int64_t(1) << 44;       // the weight of the likeliest
const int64_t MOST_LOGITS = int64_t(1) << 18;  // whose weights add up to less than 2^63
const double MOST_TEMPERATURE = 1e6, MOST_INVERSE = 1e300;  // 0 times which is 0

// The logits that may be chosen from.
class Allowed {
 public:
  Allowed(const float *logits, const uint8_t *allowed, int64_t n) : logits_(logits), allowed_(allowed), n_(n) {}
  int64_t blocks() const { return (n_ + BLOCK - 1) / BLOCK; }

  // Those of a block; minus infinity for others and past the last. Valid until the next call.
  const float *block(int64_t b) {
    const int64_t first = b * BLOCK, count = std::min(BLOCK, n_ - first);
    if (!allowed_ && count == BLOCK) return logits_ + first;
    for (int64_t i = 0; i < count; ++i)
      room_[i] = !allowed_ || allowed_[first + i] ? logits_[first + i] : -INFINITY;
    std::fill(room_ + count, room_ + BLOCK, -INFINITY);
    return room_;
  }

 private:
  const float *logits_;
  const uint8_t *allowed_;
  int64_t n_;
  float room_[BLOCK];
};

// The highest logit of each block -> peaks; of all -> top. V4K_EVALUE if one is NaN or plus infinity, or none is finite.
int find_peaks(Allowed &logits, float *peaks, float *top) {
  *top = -INFINITY;
  for (int64_t b = 0; b < logits.blocks(); ++b) {
    peaks[b] = tier().logit_peak(logits.block(b));
    if (std::isnan(peaks[b])) return V4K_EVALUE;
    *top = std::max(*top, peaks[b]);
  }
  return *top > -INFINITY ? V4K_OK : V4K_EVALUE;
}

// floor(draw / 2^64 * sum): below sum.
int64_t share(uint64_t draw, int64_t sum) {
  return static_cast<int64_t>(static_cast<unsigned __int128>(draw) * static_cast<uint64_t>(sum) >> 64);
}

// The least integer that is `part` of sum or more, at least 1.
int64_t reaching(double part, int64_t sum) {
  const double wanted = std::ceil(part * static_cast<double>(sum));
  return wanted >= static_cast<double>(sum) ? sum : std::max<int64_t>(1, static_cast<int64_t>(wanted));
}

// Integers in the order of the floats.
uint32_t key_of(float x) {
  const uint32_t bits = bits_of(x + 0.0f);  // -0 is 0
  return bits >> 31 ? ~bits : bits | 0x80000000;
}

// Tokens that may be drawn, in ascending order of id.
class Kept {
 public:
  explicit Kept(int64_t most) : keys_(most), ids_(most), weights_(most) {}
  explicit operator bool() const { return keys_ && ids_ && weights_; }
  int64_t size() const { return size_; }

  void add(float logit, int64_t id, int64_t weight) {
    keys_.get()[size_] = key_of(logit);
    ids_.get()[size_] = static_cast<int32_t>(id);
    weights_.get()[size_++] = weight;
  }

  int64_t sum() const {
    int64_t sum = 0;
    for (int64_t i = 0; i < size_; ++i) sum += weights_.get()[i];
    return sum;
  }

  // Keep the `k` highest.
  void keep_count(int64_t k) {
    if (k < size_) keep(k, [](int64_t) { return int64_t(1); });
  }

  // Keep the fewest, highest first, whose weights add up to `need`.
  void keep_mass(int64_t need) {
    keep(need, [this](int64_t i) { return weights_.get()[i]; });
  }

  // The first whose weight and those before it add up to more than `at`.
  int64_t find(int64_t at) const {
    int64_t i = 0;
    while (at >= weights_.get()[i]) at -= weights_.get()[i++];
    return ids_.get()[i];
  }

 private:
  // Highest first, of equals the lower id, as far as it takes for amounts to add up to `need`, which all of them do.
  // The key where that happens is found by radix: 11, 11 and the last 10 bits.
  template <class Amount>
  void keep(int64_t need, Amount amount) {
    const uint32_t *keys = keys_.get();
    uint32_t last = 0, settled = 0;
    int64_t before = 0;  // what those with higher keys add up to
    for (int shift : {21, 10, 0}) {
      int64_t sums[2048] = {0};
      for (int64_t i = 0; i < size_; ++i)
        if (((keys[i] ^ last) & settled) == 0) sums[keys[i] >> shift & 2047] += amount(i);
      uint32_t digit = 2047;
      while (before + sums[digit] < need) before += sums[digit--];
      last |= digit << shift;
      settled = ~uint32_t(0) << shift;
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < size_; ++i) {
      const bool tied = keys[i] == last && before < need;
      if (tied) before += amount(i);
      if (keys[i] <= last && !tied) continue;
      keys_.get()[kept] = keys[i];
      ids_.get()[kept] = ids_.get()[i];
      weights_.get()[kept++] = weights_.get()[i];
    }
    size_ = kept;
  }

  Scratch<uint32_t> keys_;
  Scratch<int32_t> ids_;
  Scratch<int64_t> weights_;
  int64_t size_ = 0;
};

// A logit that at least k reach, as near to the k-th highest as peaks tell.
float floor_of(const float *peaks, int64_t blocks, int64_t k, float *room) {
  if (k < 1 || k > blocks) return -INFINITY;
  std::copy(peaks, peaks + blocks, room);
  std::nth_element(room, room + (k - 1), room + blocks, [](float a, float b) { return a > b; });
  return room[k - 1];
}

// One call. The logits' blocks have peaks; top is the highest of them.
class Draw {
 public:
  Draw(Allowed &logits, const float *peaks, float top, double temperature)
      : logits_(logits), peaks_(peaks), top_(top), inverse_(std::min(1.0 / temperature, MOST_INVERSE)) {}

  // The sum of the weights of each block -> sums; of all is returned.
  int64_t sum(int64_t *sums) const {
    int64_t sum = 0, weights[BLOCK];
    for (int64_t b = 0; b < logits_.blocks(); ++b) {
      const bool any = (double(peaks_[b]) - top_) * inverse_ > -64.0;  // e^-64 rounds to 0
      sums[b] = any ? weigh(logits_.block(b), weights) : 0;
      sum += sums[b];
    }
    return sum;
  }

  // The first token whose weight and those before it add up to more than `at`.
  int64_t find(const int64_t *sums, int64_t at) const {
    int64_t b = 0, i = 0, weights[BLOCK];
    while (at >= sums[b]) at -= sums[b++];
    weigh(logits_.block(b), weights);
    while (at >= weights[i]) at -= weights[i++];
    return b * BLOCK + i;
  }

  // The tokens with a logit of `floor` and a weight of `least` or more.
  void collect(float floor, int64_t least, Kept &kept) const {
    Allowed peaks(peaks_, nullptr, logits_.blocks());
    int64_t highest[BLOCK], weights[BLOCK];
    for (int64_t b = 0; b < logits_.blocks(); ++b) {
      if (b % BLOCK == 0) weigh(peaks.block(b / BLOCK), highest);
      // Weights are rounded: that of a lower logit may be one more.
      if (peaks_[b] < floor || highest[b % BLOCK] + 1 < least) continue;
      const float *x = logits_.block(b);
      weigh(x, weights);
      for (int64_t i = 0; i < BLOCK; ++i)
        if (weights[i] >= least && x[i] >= floor) kept.add(x[i], b * BLOCK + i, weights[i]);
    }
  }

 private:
  int64_t weigh(const float *x, int64_t *weights) const {
    return tier().logit_weights(x, top_, inverse_, weights);
  }

  Allowed &logits_;
  const float *peaks_;
  float top_;
  double inverse_;
};

int64_t greedy(Allowed &logits, const float *peaks, float top) {
  int64_t b = 0, i = 0;
  while (peaks[b] != top) ++b;
  const float *x = logits.block(b);
  while (x[i] != top) ++i;
  return b * BLOCK + i;
}

struct Filters {
  int64_t top_k;
  double min_p, top_p;
};

// A token of n -> token. `sum` of all weights and `sums` of blocks, or -1 and room for them. V4K_EMEMORY.
int choose(const Draw &draw, int64_t n, const Filters &by, uint64_t random, int64_t sum, int64_t *sums, float floor,
           int64_t *token) {
  const bool few = by.top_k || by.min_p > 0;
  if (!few && sum < 0) sum = draw.sum(sums);
  if (!few && by.top_p == 1) {
    *token = draw.find(sums, share(random, sum));
    return V4K_OK;
  }
  Kept kept(n);
  if (!kept) return V4K_EMEMORY;
  int64_t need = few ? 0 : reaching(by.top_p, sum);
  // Without what is below this, `need` is reached all the same.
  draw.collect(floor, few ? reaching(by.min_p, WHOLE) : (sum - need) / n + 1, kept);
  if (by.top_k) kept.keep_count(by.top_k);
  if (few) need = reaching(by.top_p, kept.sum());
  if (by.top_p < 1) kept.keep_mass(need);
  *token = kept.find(share(random, kept.sum()));
  return V4K_OK;
}

}  // namespace
}  // namespace v4k

extern "C" int v4k_sample(const float *logits, const uint8_t *allowed, int64_t n, double temperature, int64_t top_k,
                          double min_p, double top_p, uint64_t random, int64_t *token, int64_t *norm) {
  using namespace v4k;
  if (!logits || n < 1 || n > MOST_LOGITS || !(temperature >= 0 && temperature <= MOST_TEMPERATURE) || top_k < 0 ||
      !(min_p >= 0 && min_p < 1) || !(top_p > 0 && top_p <= 1) || !token || !norm)
    return V4K_EARGUMENT;
  Allowed all(logits, nullptr, n), some(logits, allowed, n);
  const int64_t blocks = all.blocks();
  Scratch<float> peaks(blocks), room(blocks);
  Scratch<int64_t> sums(blocks);
  if (!peaks || !room || !sums) return V4K_EMEMORY;
  float top;
  if (int error = find_peaks(all, peaks.get(), &top)) return error;
  *norm = Draw(all, peaks.get(), top, 1.0).sum(sums.get());
  if (allowed)
    if (int error = find_peaks(some, peaks.get(), &top)) return error;
  if (temperature == 0) {
    *token = greedy(some, peaks.get(), top);
    return V4K_OK;
  }
  const Draw draw(some, peaks.get(), top, temperature);
  const int64_t known = temperature == 1 && !allowed ? *norm : -1;
  const float floor = floor_of(peaks.get(), blocks, top_k, room.get());
  return choose(draw, n, {top_k, min_p, top_p}, random, known, sums.get(), floor, token);
}
