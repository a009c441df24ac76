// Rows of weights to Q3 and Q2, in the search that v4k.h tells. Included inside the tier's namespace. Eight runs of 16
// inputs are looked at together, one in each lane, so that sums over a run are in order. What is multiplied is exact:
// levels, multipliers and a row's scale are short. Of all levels the nearest has the least square, rounded or not.

static const int RUN = 16, SIZES = 8, SHRINKS = 4;
static const float LEAST_PEAK = 0x1p-100f;  // rows of smaller weights are zeros

typedef struct {
  float w[RUN][8], importance[RUN][8];  // by input, then by run
} RunBlock;

// What a level is times a step, in each lane: those alone, and of Q3 the others, which have both signs, or are 0.
typedef struct {
  Lanes alone[4], both[2];
} Steps;

template <int F>
static inline Steps steps_of(Lanes step) {
  const float levels[4] = {-10, F == V4K_Q3 ? 7.0f : -3.0f, F == V4K_Q3 ? -6.0f : 7.0f, 2};
  Steps s;
  for (int v = 0; v < 4; ++v) s.alone[v] = mul(splat(levels[v]), step);
  for (int v = 0; v < 2; ++v) s.both[v] = mul(splat(2.0f * (float)(v + 1)), step);
  return s;
}

static inline Lanes square_from(Lanes w, Lanes level) {
  const Lanes d = sub(w, level);
  return mul(d, d);
}

// Of w the least square by levels that `size` has alone; `least` is that by the others.
template <int F>
static inline Lanes least_square(Lanes w, const Steps &size, Lanes least) {
  for (int v = F == V4K_Q3 ? 0 : 1; v < (F == V4K_Q3 ? 3 : 4); ++v) least = min(square_from(w, size.alone[v]), least);
  return least;
}

template <int F>
static inline Lanes first_square(Lanes w, const Steps &size) {
  if (F != V4K_Q3) return square_from(w, size.alone[0]);
  const Lanes a = max(w, sub(zero(), w));
  return min(square_from(a, size.both[1]), min(square_from(a, size.both[0]), mul(w, w)));
}

// Squared errors of eight runs by a step; `turned`, where it is asked for, by the same with the other sign.
template <int F, bool COUNTED>
static inline Lanes run_errors(const RunBlock &runs, Lanes step, Lanes *turned) {
  const Steps size = steps_of<F>(step);
  Lanes sum = zero(), other = zero();
#pragma GCC unroll 16
  for (int i = 0; i < RUN; ++i) {
    const Lanes w = load(runs.w[i]), back = sub(zero(), w), first = first_square<F>(w, size);
    const Lanes first_back = F == V4K_Q3 || !turned ? first : first_square<F>(back, size);
    Lanes e = least_square<F>(w, size, first), f = turned ? least_square<F>(back, size, first_back) : e;
    if (COUNTED) {
      const Lanes counts = load(runs.importance[i]);
      e = mul(e, counts);
      f = mul(f, counts);
    }
    sum = i ? add(sum, e) : e;
    if (turned) other = i ? add(other, f) : f;
  }
  if (turned) *turned = other;
  return sum;
}

// Runs first .. first + n - 1 of a row, n <= 8, times a factor.
static inline void load_runs(const float *w, const float *importance, int64_t first, int n, float factor, RunBlock *to) {
  for (int k = 0; k < 8; ++k) {
    const int64_t at = (first + (k < n ? k : 0)) * RUN;  // past the last: the first again
    for (int i = 0; i < RUN; ++i) to->w[i][k] = w[at + i] * factor;
    for (int i = 0; i < RUN && importance; ++i) to->importance[i][k] = importance[at + i];
  }
}

// The power of two that x has, x normal and above zero.
static inline float power_in(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  bits &= 0x7f800000;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

// The bf16 number nearest to x, ties to even.
static inline float to_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

// The highest magnitude of n weights; infinity if one is not finite.
static inline float peak_of(const float *w, int64_t n) {
  int32_t peak = 0;
  for (int64_t i = 0; i < n; ++i) {
    int32_t bits;
    __builtin_memcpy(&bits, w + i, 4);
    bits &= 0x7fffffff;
    peak = bits > peak ? bits : peak;
  }
  peak = peak > 0x7f800000 ? 0x7f800000 : peak;
  float x;
  __builtin_memcpy(&x, &peak, 4);
  return x;
}

// Turn the runs whose largest weight, of equals the first, is above zero. Returns its magnitudes.
static inline Lanes turn_runs(RunBlock *runs) {
  Lanes peak = zero(), with_sign = zero();
  for (int i = 0; i < RUN; ++i) {
    const Lanes w = load(runs->w[i]), a = max(w, sub(zero(), w));
    with_sign = choose(peak, a, w, with_sign);
    peak = max(a, peak);
  }
  const Lanes sign = choose(zero(), with_sign, splat(-1), splat(1));
  for (int i = 0; i < RUN; ++i) store(runs->w[i], mul(load(runs->w[i]), sign));
  return peak;
}

// Squared errors of turned runs by a row's scale and the likeliest of the multipliers.
template <int F, bool COUNTED>
static inline Lanes likely_errors(const RunBlock &runs, Lanes peak, float row) {
  Lanes size[3];
  for (int k = 0; k < 3; ++k) size[k] = splat(V4K_MULTIPLIERS[k < 1 ? 0 : k - 1]);
  for (int j = 0; j < SIZES; ++j)
    for (int k = 0; k < 3; ++k) {
      const int next = j + k < SIZES ? j + k : SIZES - 1;
      size[k] = choose(splat(10.0f * V4K_MULTIPLIERS[j] * row), peak, splat(V4K_MULTIPLIERS[next]), size[k]);
    }
  Lanes least = zero();
  for (int k = 0; k < 3; ++k) {
    const Lanes tried = run_errors<F, COUNTED>(runs, mul(size[k], splat(row)), nullptr);
    least = k ? min(tried, least) : tried;
  }
  return least;
}

// The scale of a row whose highest magnitude is `peak`.
template <int F, bool COUNTED>
static float row_scale(const float *w, const float *importance, int64_t runs, float peak) {
  static const float shrink[SHRINKS] = {0.55f, 0.7f, 0.85f, 1.0f};
  const float top = peak / 120.0f, unit = power_in(top);
  float rows[SHRINKS], totals[SHRINKS];
  for (int s = 0; s < SHRINKS; ++s) rows[s] = to_bf16(top * shrink[s]);
  for (int64_t first = 0; first < runs; first += 8) {
    const int n = (int)(runs - first < 8 ? runs - first : 8);
    RunBlock block;
    load_runs(w, importance, first, n, 1 / unit, &block);
    const Lanes peaks = turn_runs(&block);
    for (int s = 0; s < SHRINKS; ++s) {
      float errors[8];
      store(errors, likely_errors<F, COUNTED>(block, peaks, rows[s] / unit));
      for (int k = 0; k < n; ++k) totals[s] = first || k ? totals[s] + errors[k] : errors[0];
    }
  }
  int best = 0;
  for (int s = 1; s < SHRINKS; ++s)
    if (totals[s] < totals[best]) best = s;
  return rows[best];
}

// Which multiplier each of eight runs has.
template <int F, bool COUNTED>
static inline void run_numbers(const RunBlock &runs, Lanes row, float numbers[8]) {
  Lanes least[2], number[2];
  for (int j = 0; j < SIZES; ++j) {
    Lanes tried[2];
    tried[0] = run_errors<F, COUNTED>(runs, mul(splat(V4K_MULTIPLIERS[j]), row), &tried[1]);
    for (int t = 0; t < 2; ++t) {
      const Lanes own = splat((float)(j + SIZES * t));
      number[t] = j ? choose(tried[t], least[t], own, number[t]) : own;
      least[t] = j ? min(tried[t], least[t]) : tried[t];
    }
  }
  store(numbers, choose(least[1], least[0], number[1], number[0]));
}

// What a level of each of eight runs is times: a size and a sign.
typedef struct {
  Lanes size, sign;
} RunSteps;

static inline RunSteps run_steps(Lanes row, const float numbers[8]) {
  float sizes[8], signs[8];
  for (int k = 0; k < 8; ++k) {
    signs[k] = (int)numbers[k] < SIZES ? 1.0f : -1.0f;
    sizes[k] = V4K_MULTIPLIERS[(int)numbers[k] % SIZES];
  }
  return RunSteps{mul(load(sizes), row), load(signs)};
}

// The code of the level nearest to each weight; `level`, where it is asked for, that level.
template <int F>
static inline Lanes nearest_code(Lanes w, const RunSteps &step, Lanes *level) {
  const int8_t *levels = F == V4K_Q3 ? V4K_Q3_LEVELS : V4K_Q2_LEVELS;
  const Lanes turned = mul(w, step.sign);
  Lanes code = zero(), at = splat(levels[0]);
  for (int v = 1; v < (F == V4K_Q3 ? 8 : 4); ++v) {
    const Lanes middle = mul(splat(0.5f * (levels[v - 1] + levels[v])), step.size);
    code = choose(middle, turned, splat((float)v), code);
    if (level) at = choose(middle, turned, splat(levels[v]), at);
  }
  if (level) *level = at;
  return code;
}

// Codes [8][16] of eight runs.
template <int F>
static inline void run_codes(const RunBlock &runs, Lanes row, const float numbers[8], uint8_t *codes) {
  const RunSteps step = run_steps(row, numbers);
  for (int i = 0; i < RUN; ++i) {
    float found[8];
    store(found, nearest_code<F>(load(runs.w[i]), step, nullptr));
    for (int k = 0; k < 8; ++k) codes[k * RUN + i] = (uint8_t)(int)found[k];
  }
}

// The codes c of a group as v4k.h has them.
template <int F>
static inline void pack_group(const uint8_t *c, uint8_t *codes, uint8_t *second) {
  uint8_t last[8];
  for (int i = 0; i < 8; ++i, c += 4) {
    if (F == V4K_Q2) {
      codes[i] = (uint8_t)(c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6);
      continue;
    }
    const int n0 = c[0] | (c[3] & 4) << 1, n1 = (c[1] & 3) | (c[1] & 4) << 1 | (c[3] & 2) << 1;
    codes[i] = (uint8_t)(n0 | n1 << 4);
    last[i] = (uint8_t)((c[2] & 1) | (c[2] & 6) << 1 | (c[3] & 1) << 1);
  }
  for (int i = 0; i < 4 && F == V4K_Q3; ++i) second[i] = (uint8_t)(last[i] | last[i + 4] << 4);
}

template <int F, bool COUNTED>
static void encode_row(const float *w, const float *importance, int64_t cols, uint8_t *codes, uint8_t *scale) {
  const int64_t runs = cols / RUN;
  const float peak = peak_of(w, cols);
  const bool finite = peak < __builtin_inff(), plain = !(finite && peak >= LEAST_PEAK);  // nothing to be chosen
  const float row = plain ? finite ? 0.0f : peak : row_scale<F, COUNTED>(w, importance, runs, peak);
  const float unit = plain ? 1.0f : power_in(row);
  uint32_t bits;
  __builtin_memcpy(&bits, &row, 4);
  *scale++ = (uint8_t)(bits >> 16);
  *scale++ = (uint8_t)(bits >> 24);
  for (int64_t first = 0; first < runs; first += 8) {
    const int n = (int)(runs - first < 8 ? runs - first : 8);
    RunBlock block;
    load_runs(w, importance, first, n, 1 / unit, &block);
    float numbers[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (!plain) run_numbers<F, COUNTED>(block, splat(row / unit), numbers);
    for (int k = 0; k < n; k += 2) *scale++ = (uint8_t)((int)numbers[k] | (int)numbers[k + 1] << 4);
    if (!codes) continue;
    uint8_t found[8 * RUN];
    run_codes<F>(block, splat(row / unit), numbers, found);
    for (int k = 0; k < n; k += 2) {
      const int64_t g = (first + k) / 2;
      pack_group<F>(found + k * RUN, codes + 8 * g, codes + cols / 4 + 4 * g);
    }
  }
}

static void encode_lowbit(const float *w, const float *importance, int64_t cols, int64_t format, uint8_t *codes,
                          uint8_t *scale) {
  if (format == V4K_Q3)
    (importance ? encode_row<V4K_Q3, true> : encode_row<V4K_Q3, false>)(w, importance, cols, codes, scale);
  else
    (importance ? encode_row<V4K_Q2, true> : encode_row<V4K_Q2, false>)(w, importance, cols, codes, scale);
}
