// From logits to a token. Weights of tokens are integers, so sums of them are exact in any order.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "bits.h"
#include "dispatch.h"
#include "memory.h"
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
    std::copy(logits_ + first, logits_ + first + count, room_);
    std::fill(room_ + count, room_ + BLOCK, -INFINITY);
    if (allowed_)
      for (int64_t i = 0; i < count; ++i) room_[i] = allowed_[first + i] ? room_[i] : -INFINITY;
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
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000);
}

// Tokens that may be drawn, in ascending order of id.
class Kept {
 public:
  // None, but room for n. False without memory.
  bool reset(int64_t n) {
    size_ = 0;
    if (n > room_) {
      room_ = n;
      keys_.reset(n);
      ids_.reset(n);
      weights_.reset(n);
    }
    if (keys_ && ids_ && weights_) return true;
    room_ = 0;
    return false;
  }

  // Those of a block, from id `first` on, with a logit of `floor` and a weight of `least` or more. Which half of a block
  // may be is no branch's guess.
  void add(const float *x, const int64_t *weights, int64_t first, float floor, int64_t least) {
    int found[BLOCK], count = 0;
    for (int i = 0; i < BLOCK; ++i) {
      found[count] = i;
      count += (weights[i] >= least) & (x[i] >= floor);
    }
    uint32_t *keys = keys_.get() + size_;
    int32_t *ids = ids_.get() + size_;
    int64_t *kept = weights_.get() + size_;
    for (int j = 0; j < count; ++j) {
      const int i = found[j];
      keys[j] = key_of(x[i]);
      ids[j] = static_cast<int32_t>(first + i);
      kept[j] = weights[i];
    }
    size_ += count;
  }

  int64_t sum() const {
    int64_t sum = 0;
    for (int64_t i = 0; i < size_; ++i) sum += weights_[i];
    return sum;
  }

  // Keep the `k` highest.
  void keep_count(int64_t k) {
    if (k < size_) keep(k, [](int64_t) { return int64_t(1); });
  }

  // Keep the fewest, highest first, whose weights add up to `need`.
  void keep_mass(int64_t need) {
    keep(std::min(need, sum()), [this](int64_t i) { return weights_[i]; });
  }

  // The first whose weight and those before it add up to more than `at`.
  int64_t find(int64_t at) const {
    int64_t i = 0;
    while (at >= weights_[i]) at -= weights_[i++];
    return ids_[i];
  }

 private:
  // Highest first, of equals the lower id, as far as it takes for amounts to add up to `need`, which all of them do.
  template <class Amount>
  void keep(int64_t need, Amount amount) {
    int64_t before;  // what those with higher keys add up to
    const uint32_t last = reach(need, amount, &before);
    int64_t ties = 0;  // those with the key `last` stay if they come before this
    for (; before < need; ++ties) before += keys_[ties] == last ? amount(ties) : 0;
    int64_t kept = move(0, ties, last, 0);
    kept = move(ties, size_, last + 1, kept);  // no key is the highest number
    size_ = kept;
  }

  // Those of [first, end) with a key of `least` or more -> `to` and on; returns the end of them.
  int64_t move(int64_t first, int64_t end, uint32_t least, int64_t to) {
    uint32_t *keys = keys_.get();
    int32_t *ids = ids_.get();
    int64_t *weights = weights_.get();
    for (int64_t i = first; i < end; ++i) {
      const uint32_t key = keys[i];
      keys[to] = key;
      ids[to] = ids[i];
      weights[to] = weights[i];
      to += key >= least;
    }
    return to;
  }

  // The key where amounts, added up from the highest on, reach `need`: by radix, of the bits that are not all alike.
  template <class Amount>
  uint32_t reach(int64_t need, Amount amount, int64_t *before) const {
    uint32_t last = keys_[0], unlike = 0;
    for (int64_t i = 0; i < size_; ++i) unlike |= keys_[i] ^ last;
    *before = 0;
    int bits = 0;  // not settled
    while (bits < 32 && unlike >> bits) ++bits;
    while (bits > 0) {
      const int shift = std::max(0, bits - 11);
      const uint32_t settled = bits < 32 ? ~uint32_t(0) << bits : 0, digits = (uint32_t(1) << (bits - shift)) - 1;
      int64_t sums[2048] = {0};
      for (int64_t i = 0; i < size_; ++i)
        if (((keys_[i] ^ last) & settled) == 0) sums[keys_[i] >> shift & digits] += amount(i);
      uint32_t digit = digits;
      while (*before + sums[digit] < need) *before += sums[digit--];
      last = (last & settled) | digit << shift;
      bits = shift;
    }
    return last;
  }

  Array<uint32_t> keys_;
  Array<int32_t> ids_;
  Array<int64_t> weights_;
  int64_t size_ = 0, room_ = 0;
};

// The weights of logits whose blocks have peaks, the highest of which is top.
class Weights {
 public:
  Weights(Allowed &logits, const float *peaks, float top, double temperature)
      : logits_(logits), peaks_(peaks), top_(top), inverse_(std::min(1.0 / temperature, MOST_INVERSE)) {}

  // The sum of all, and of each block -> sums, which may be NULL: then of some. Tokens with a logit of `floor` and a
  // weight of `least` or more -> kept, which may be NULL.
  int64_t sum(int64_t *sums, Kept *kept, float floor, int64_t least) const {
    Allowed peaks(peaks_, nullptr, logits_.blocks());
    int64_t sum = 0, highest[BLOCK], weights[BLOCK];
    for (int64_t b = 0; b < logits_.blocks(); ++b) {
      if (b % BLOCK == 0) weigh(peaks.block(b / BLOCK), highest);
      // Weights are rounded: that of a lower logit may be one more.
      const bool some = kept && peaks_[b] >= floor && highest[b % BLOCK] + 1 >= least;
      const bool any = (double(peaks_[b]) - top_) * inverse_ > -32.0;  // else all are 0
      int64_t here = 0;
      if (any && (some || sums)) {
        const float *x = logits_.block(b);
        here = weigh(x, weights);
        if (some) kept->add(x, weights, b * BLOCK, floor, least);
      }
      if (sums) sums[b] = here;
      sum += here;
    }
    return sum;
  }

  // The sum of the highest of each block.
  int64_t sum_of_peaks() const {
    Allowed peaks(peaks_, nullptr, logits_.blocks());
    int64_t sum = 0, weights[BLOCK];
    for (int64_t b = 0; b < peaks.blocks(); ++b) sum += weigh(peaks.block(b), weights);
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

 private:
  int64_t weigh(const float *x, int64_t *weights) const { return tier().logit_weights(x, top_, inverse_, weights); }

  Allowed &logits_;
  const float *peaks_;
  float top_;
  double inverse_;
};

// A logit that at least k reach, as near to the k-th highest as peaks tell.
float floor_of(const float *peaks, int64_t blocks, int64_t k, float *room) {
  if (k < 1 || k > blocks) return -INFINITY;
  std::copy(peaks, peaks + blocks, room);
  std::nth_element(room, room + (k - 1), room + blocks, [](float a, float b) { return a > b; });
  return room[k - 1];
}

int64_t greedy(Allowed &logits, const float *peaks, float top) {
  int64_t b = 0, i = 0;
  while (peaks[b] != top) ++b;
  const float *x = logits.block(b);
  while (x[i] != top) ++i;
  return b * BLOCK + i;
}

// What the last call used, for the next one: asking the system for memory anew takes as long as the call itself. One
// that finds none, as there are others at the same time, makes its own.
class Borrowed {
 public:
  Borrowed() : kept_(spare().exchange(nullptr)) {
    if (!kept_) kept_ = make<Kept>();
  }
  Borrowed(const Borrowed &) = delete;
  Borrowed &operator=(const Borrowed &) = delete;
  ~Borrowed() { unmake(spare().exchange(kept_)); }
  Kept *get() const { return kept_; }

 private:
  static std::atomic<Kept *> &spare() {
    static std::atomic<Kept *> kept{nullptr};
    return kept;
  }

  Kept *kept_;
};

struct Filters {
  int64_t top_k;
  double min_p, top_p;
};

// A token of n -> token. A logit of `floor` is reached by top_k. `sums`: room for those of blocks; where their sum is
// asked for it goes to `all`. V4K_EMEMORY.
int draw(const Weights &weights, int64_t n, const Filters &by, float floor, uint64_t random, int64_t *sums,
         int64_t *all, int64_t *token) {
  const Borrowed borrowed;
  if (!borrowed.get()) return V4K_EMEMORY;
  Kept &kept = *borrowed.get();
  const bool few = by.top_k || by.min_p > 0, every = !few && by.top_p == 1;
  int64_t least = reaching(by.min_p, WHOLE);
  // What is below this adds up to less than half of what top_p leaves out.
  if (!few) least = 1 + static_cast<int64_t>((1 - by.top_p) * static_cast<double>(weights.sum_of_peaks()) / (2.0 * n));
  if (!every && !kept.reset(n)) return V4K_EMEMORY;
  const int64_t sum = weights.sum(few && !all ? nullptr : sums, every ? nullptr : &kept, floor, least);
  if (all) *all = sum;
  if (every) {
    *token = weights.find(sums, share(random, sum));
    return V4K_OK;
  }
  if (by.top_k) kept.keep_count(by.top_k);
  if (by.top_p < 1) kept.keep_mass(reaching(by.top_p, few ? kept.sum() : sum));
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
  const bool once = temperature == 1 && !allowed;  // what is drawn from is the model's distribution
  if (!once) *norm = Weights(all, peaks.get(), top, 1.0).sum(sums.get(), nullptr, 0, 0);
  if (allowed)
    if (int error = find_peaks(some, peaks.get(), &top)) return error;
  if (temperature == 0) {
    *token = greedy(some, peaks.get(), top);
    return V4K_OK;
  }
  const float floor = floor_of(peaks.get(), blocks, top_k, room.get());
  return draw(Weights(some, peaks.get(), top, temperature), n, {top_k, min_p, top_p}, floor, random, sums.get(),
              once ? norm : nullptr, token);
}
