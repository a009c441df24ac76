// The k best of many scores, exactly, without keeping the others.
#ifndef V4K_BEST_H
#define V4K_BEST_H

#include <algorithm>
#include <atomic>
#include <cmath>

#include "bits.h"
#include "memory.h"
#include "scratch.h"

namespace v4k {

// Candidates come in ascending order of id; of equal scores the lower id is the better. Up to 2k are held; each time
// there are so many, the k best stay, and only what is above the last of them can still be among the k best.
class Best {
 public:
  // Room for 2k scores and 4k ids. `floor`, shared by all of one token: below the k-th best score of any of them.
  void reset(int64_t k, float *scores, int32_t *ids, std::atomic<float> *floor) {
    k_ = k;
    count_ = 0;
    scores_ = scores;
    ids_ = ids;
    order_ = ids + 2 * k;
    floor_ = floor;
    least_ = -INFINITY;
  }

  // What a score must exceed to be worth an offer.
  float least() const { return std::max(least_, floor_->load(std::memory_order_relaxed)); }

  void offer(float score, int32_t id) {
    scores_[count_] = score;
    ids_[count_++] = id;
    if (count_ == 2 * k_) shrink();
  }

  // Offer all that `later` holds, whose ids are higher.
  void join(const Best &later) {
    for (int64_t j = 0; j < later.count_; ++j)
      if (later.scores_[j] > least()) offer(later.scores_[j], later.ids_[j]);
  }

  // The ids, ascending; -1 behind them.
  void finish(int32_t *selected) {
    if (count_ > k_) shrink();
    std::copy(ids_, ids_ + count_, selected);
    std::fill(selected + count_, selected + k_, -1);
  }

 private:
  void shrink() {
    least_ = kth();
    int64_t equal = k_, kept = 0;
    for (int64_t j = 0; j < count_; ++j) equal -= scores_[j] > least_;
    for (int64_t j = 0; j < count_; ++j) {
      scores_[kept] = scores_[j];
      ids_[kept] = ids_[j];
      kept += scores_[j] > least_;
      if (scores_[j] == least_ && equal-- > 0) ++kept;
    }
    count_ = kept;
    const float below = std::nextafter(least_, -INFINITY);  // where ids are lower, equals are better
    float found = floor_->load(std::memory_order_relaxed);
    while (found < below && !floor_->compare_exchange_weak(found, below, std::memory_order_relaxed)) {
    }
  }

  // The k-th best score, by bisection: as integers in the order of the floats, whose bits are settled from the highest
  // on by counting. 32 passes that compare many at a time beat any that branch.
  float kth() {
    for (int64_t j = 0; j < count_; ++j) {
      const int32_t bits = static_cast<int32_t>(bits_of(scores_[j]));
      order_[j] = bits ^ ((bits >> 31) & INT32_MAX);
    }
    uint32_t found = 0x80000000;  // the lowest int32
    for (uint32_t bit = 0x80000000; bit; bit >>= 1) {
      const int32_t tried = static_cast<int32_t>(found + bit);
      int32_t reached = 0;
      for (int64_t j = 0; j < count_; ++j) reached += order_[j] >= tried;
      if (reached >= k_) found += bit;
    }
    const int32_t order = static_cast<int32_t>(found);
    return from_bits(static_cast<uint32_t>(order ^ ((order >> 31) & INT32_MAX)));
  }

  int64_t k_ = 0, count_ = 0;
  float least_ = -INFINITY, *scores_ = nullptr;
  int32_t *ids_ = nullptr, *order_ = nullptr;
  std::atomic<float> *floor_ = nullptr;
};

// The best of `tokens` tokens, collected apart in `ranges` ascending ranges of ids. 24 k bytes for each of both.
class Bests {
 public:
  Bests(int64_t tokens, int64_t ranges, int64_t k)
      : tokens_(tokens), ranges_(ranges), k_(k), scores_(tokens * ranges * 2 * k), ids_(tokens * ranges * 4 * k),
        floors_(tokens), all_(tokens * ranges) {
    if (!*this) return;
    for (int64_t t = 0; t < tokens; ++t) new (&floors_[t]) std::atomic<float>(-INFINITY);
    for (int64_t i = 0; i < tokens * ranges; ++i)
      (new (&all_[i]) Best)->reset(k, scores_.get() + i * 2 * k, ids_.get() + i * 4 * k, &floors_[i % tokens]);
  }
  explicit operator bool() const { return scores_ && ids_ && floors_ && all_; }

  // Those of one range, by token.
  Best *of(int64_t range) { return all_.get() + range * tokens_; }

  // Token t's choice among `seen` ids: selected [k].
  void finish(int64_t t, int64_t seen, int32_t *selected) {
    if (seen <= k_) {
      for (int64_t j = 0; j < k_; ++j) selected[j] = j < seen ? static_cast<int32_t>(j) : -1;
      return;
    }
    Best &first = of(0)[t];
    for (int64_t r = 1; r < ranges_; ++r) first.join(of(r)[t]);
    first.finish(selected);
  }

 private:
  int64_t tokens_, ranges_, k_;
  Scratch<float> scores_;
  Scratch<int32_t> ids_;
  Array<std::atomic<float>> floors_;
  Array<Best> all_;
};

}  // namespace v4k
#endif
