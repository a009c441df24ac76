// One layer's expert MLPs. Slots are (token, expert) pairs sorted by expert, so that an expert's weights are read once
// for all its tokens: first gate and up to quantized z [slots, I], then down, added to out expert by expert.
#include <algorithm>
#include <initializer_list>

#include "acts.h"
#include "check.h"
#include "memory.h"
#include "pool.h"

namespace v4k {
namespace {

const int64_t MOST_ROWS = 4 * V4K_GROUP;  // of a unit: whole groups of z, enough of them to read memory in long streams
const int64_t UNITS_PER_THREAD = 8;
const int64_t SCRATCH_SLOTS = 8192;

// An expert with work to do and its slots [first, first + count).
struct Job {
  const v4k_expert *expert;
  const Acts *z;  // inputs of w2, by slot
  int64_t first, count;
};

bool is_expert(const v4k_expert &e, int64_t d) {
  return is_packed(e.w1) && is_packed(e.w3) && is_packed(e.w2) && e.w1.cols == d && e.w3.cols == d && e.w2.rows == d &&
         e.w1.rows == e.w3.rows && e.w1.rows == e.w2.cols;
}

class Layer {
 public:
  Layer(const v4k_expert *experts, int64_t n_experts, const v4k_expert *shared, float limit)
      : experts_(experts), n_experts_(n_experts), shared_(shared), limit_(limit) {
    d_ = (shared ? shared : experts)->w1.cols;
  }

  int run(const float *x, int64_t n, const int64_t *ids, const float *weights, int64_t top_k, float *out) {
    const int64_t routed = n * top_k, slots = routed + (shared_ ? n : 0);
    if (!slots) return V4K_OK;
    if (!allocate(n, slots, routed)) return V4K_EMEMORY;
    if (int error = plan(n, ids, weights, top_k)) return error;
    if (!reserve_inputs(n)) return V4K_EMEMORY;
    quantize(x, n);
    gate_up();
    down(out);
    return V4K_OK;
  }

 private:
  bool allocate(int64_t n, int64_t slots, int64_t routed) {
    const int64_t most = (shared_ ? 1 : 0) + n_experts_;
    tokens_.reset(slots);
    weights_.reset(slots);
    jobs_.reset(most);
    starts_.reset(n_experts_ + 1);
    if (!tokens_ || !weights_ || !jobs_ || !starts_) return false;
    std::fill(starts_.get(), starts_.get() + n_experts_ + 1, 0);
    if (routed && !z_.reserve(slots, experts_->w2.cols)) return false;
    if (shared_ && !shared_z_.reserve(n, shared_->w2.cols)) return false;
    if (routed)
      for (int64_t i = 0; i < slots; ++i) z_.pad(i);
    if (shared_)
      for (int64_t i = 0; i < n; ++i) shared_z_.pad(i);
    return true;
  }

  // Room for the inputs in every format that a job reads them in.
  bool reserve_inputs(int64_t n) {
    for (int64_t j = 0; j < n_jobs_; ++j)
      for (int64_t format : {jobs_[j].expert->w1.format, jobs_[j].expert->w3.format})
        if (!x_[format].view.q && !x_[format].reserve(n, d_)) return false;
    return true;
  }

  // Sort slots by expert (stable: tokens ascend), shared first.
  int plan(int64_t n, const int64_t *ids, const float *weights, int64_t top_k) {
    const int64_t base = shared_ ? n : 0;
    for (int64_t i = 0; i < base; ++i) {
      tokens_[i] = static_cast<int32_t>(i);
      weights_[i] = 1.0f;
    }
    if (shared_) jobs_[n_jobs_++] = {shared_, &shared_z_, 0, n};
    for (int64_t i = 0; i < n * top_k; ++i) {
      if (ids[i] < 0 || ids[i] >= n_experts_) return V4K_EARGUMENT;
      ++starts_[ids[i] + 1];
    }
    for (int64_t e = 0; e < n_experts_; ++e) {
      const int64_t count = starts_[e + 1];
      starts_[e + 1] += starts_[e];
      if (!count) continue;
      if (!is_expert(experts_[e], d_) || experts_[e].w2.cols != experts_->w2.cols) return V4K_EARGUMENT;
      jobs_[n_jobs_++] = {experts_ + e, &z_, base + starts_[e], count};
    }
    for (int64_t i = 0; i < n * top_k; ++i) {
      const int64_t slot = base + starts_[ids[i]]++;
      tokens_[slot] = static_cast<int32_t>(i / top_k);
      weights_[slot] = weights[i];
    }
    return V4K_OK;
  }

  void quantize(const float *x, int64_t n) {
    auto unit = [&](int64_t i) {
      for (int64_t format = 0; format < V4K_N_FORMATS; ++format)
        if (x_[format].view.q) x_[format].fill(i, x + i * d_, format);
    };
    for_each(n, n * d_ * QUANTIZE_COST, unit);
  }

  // Rows of a unit where there are `rows` in all.
  static int64_t unit_rows(int64_t rows) {
    const int64_t share = rows / (UNITS_PER_THREAD * pool_threads()) / V4K_GROUP * V4K_GROUP;
    return share < V4K_GROUP ? V4K_GROUP : share < MOST_ROWS ? share : MOST_ROWS;
  }

  // A unit is some rows of w1 and of w3 of one job.
  void gate_up() {
    int64_t rows = 0, n_units = 0;
    for (int64_t j = 0; j < n_jobs_; ++j) {
      rows += jobs_[j].expert->w1.rows;
      cost_ += jobs_[j].count * jobs_[j].expert->w1.rows * d_;
    }
    const int64_t step = unit_rows(rows);
    auto units = [&](const Job &job) { return (job.expert->w1.rows + step - 1) / step; };
    for (int64_t j = 0; j < n_jobs_; ++j) n_units += units(jobs_[j]);
    auto unit = [&](int64_t u) {
      const Job *job = jobs_.get();
      for (; u >= units(*job); ++job) u -= units(*job);
      const int64_t left = job->expert->w1.rows - u * step;
      gate_up_rows(*job, u * step, left < step ? left : step);
    };
    for_each(n_units, 2 * cost_, unit);
  }

  // z of all slots of a job, `rows` of its values from `row` on.
  void gate_up_rows(const Job &job, int64_t row, int64_t rows) {
    float gate[V4K_TOKEN_BLOCK * MOST_ROWS], up[V4K_TOKEN_BLOCK * MOST_ROWS];
    const v4k_expert &e = *job.expert;
    for (int64_t i = 0; i < job.count; i += V4K_TOKEN_BLOCK) {
      const int64_t n = job.count - i < V4K_TOKEN_BLOCK ? job.count - i : V4K_TOKEN_BLOCK;
      const int32_t *tokens = tokens_.get() + job.first + i;
      tier().rows(&e.w1, row, rows, &x_[e.w1.format].view, tokens, n, gate, rows);
      tier().rows(&e.w3, row, rows, &x_[e.w3.format].view, tokens, n, up, rows);
      for (int64_t k = 0; k < n; ++k) {
        const int64_t slot = job.first + i + k;
        tier().swiglu(gate + k * rows, up + k * rows, rows, weights_[slot], limit_, gate + k * rows);
        tier().quantize(gate + k * rows, row / V4K_GROUP, rows / V4K_GROUP, e.w2.format, job.z->row(slot));
      }
    }
  }

  void down(float *out) {
    const int64_t step = unit_rows(d_);
    auto unit = [&](int64_t u) {
      const int64_t row = u * step, rows = d_ - row < step ? d_ - row : step;
      for (int64_t j = 0; j < n_jobs_; ++j) down_rows(jobs_[j], row, rows, out);
    };
    for_each((d_ + step - 1) / step, cost_, unit);
  }

  void down_rows(const Job &job, int64_t row, int64_t rows, float *out) {
    float y[V4K_TOKEN_BLOCK * MOST_ROWS];
    int32_t slots[V4K_TOKEN_BLOCK];
    for (int64_t i = 0; i < job.count; i += V4K_TOKEN_BLOCK) {
      const int64_t n = job.count - i < V4K_TOKEN_BLOCK ? job.count - i : V4K_TOKEN_BLOCK;
      for (int64_t k = 0; k < n; ++k) slots[k] = static_cast<int32_t>(job.first + i + k);
      tier().rows(&job.expert->w2, row, rows, &job.z->view, slots, n, y, rows);
      for (int64_t k = 0; k < n; ++k) {
        float *to = out + tokens_[job.first + i + k] * d_ + row;
        for (int64_t r = 0; r < rows; ++r) to[r] += y[k * rows + r];
      }
    }
  }

  const v4k_expert *experts_;
  int64_t n_experts_;
  const v4k_expert *shared_;
  float limit_;
  int64_t d_ = 0, n_jobs_ = 0, cost_ = 0;
  Acts x_[V4K_N_FORMATS];  // inputs by the format of what they are multiplied with
  Acts z_, shared_z_;
  Array<int32_t> tokens_;  // by slot
  Array<float> weights_;   // by slot
  Array<Job> jobs_;
  Array<int64_t> starts_;
};

}  // namespace
}  // namespace v4k

extern "C" int v4k_experts(const v4k_expert *experts, int64_t n_experts, const v4k_expert *shared, const float *x,
                           int64_t n, const int64_t *ids, const float *weights, int64_t top_k, float limit,
                           float *out) {
  using namespace v4k;
  const bool routed = n_experts > 0 && top_k > 0;
  if (n < 0 || n_experts < 0 || top_k < 0 || !x || !out || (!routed && top_k > 0)) return V4K_EARGUMENT;
  if (routed && (!experts || !ids || !weights)) return V4K_EARGUMENT;
  if (routed && !(is_packed(experts->w1) && is_packed(experts->w2))) return V4K_EARGUMENT;
  if (!routed && !shared) return V4K_OK;
  if (shared && !is_expert(*shared, shared->w1.cols)) return V4K_EARGUMENT;
  if (shared && routed && shared->w1.cols != experts->w1.cols) return V4K_EARGUMENT;
  const int64_t d = (shared ? shared : experts)->w1.cols;
  const int64_t chunk = SCRATCH_SLOTS / (top_k + 1);
  for (int64_t i = 0; i < n; i += chunk) {
    const int64_t count = n - i < chunk ? n - i : chunk;
    Layer layer(experts, n_experts, shared, limit);
    if (int error = layer.run(x + i * d, count, ids + i * top_k, weights + i * top_k, top_k, out + i * d)) return error;
  }
  return V4K_OK;
}
