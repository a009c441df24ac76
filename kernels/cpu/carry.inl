// Rounding to Q3 and Q2 with errors carried on, as v4k_carry_lowbit has it. Included inside the tier's namespace behind
// lowbit.inl. Sixteen rows are rounded together, one in each lane of two: rows do not know of each other.

static const int ABREAST = V4K_ABREAST;  // rows

// Rows of weights, each divided by the power of two in its scale.
typedef struct {
  const float *w[ABREAST];
  const uint8_t *numbers[ABREAST];  // of multipliers, pairs, as chosen without carrying
  float factor[ABREAST], scale[ABREAST];
} AbreastRows;

// What rows that are finished up to some input are like: of each direction the sum of factor * error.
typedef struct {
  float sums[V4K_MAX_RANK][ABREAST];
} Carried;

static inline void load_abreast(const AbreastRows &rows, int64_t first, float to[RUN][ABREAST]) {
  for (int k = 0; k < ABREAST; ++k)
    for (int i = 0; i < RUN; ++i) to[i][k] = rows.w[k][first + i] * rows.factor[k];
}

// Add to the weights of a run what errors before it are worth there; gains [16][rank].
static inline void add_carried(const float *gains, int64_t rank, const Carried &carried, RunBlock runs[2]) {
  for (int i = 0; i < RUN; i += 4) {
    Lanes sum[4][2];
    for (int k = 0; k < 4; ++k)
      for (int v = 0; v < 2; ++v) sum[k][v] = load(runs[v].w[i + k]);
    for (int64_t r = 0; r < rank; ++r) {
      const Lanes a = load(carried.sums[r]), b = load(carried.sums[r] + 8);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const Lanes gain = splat(gains[(i + k) * rank + r]);
        sum[k][0] = fma(gain, a, sum[k][0]);
        sum[k][1] = fma(gain, b, sum[k][1]);
      }
    }
    for (int k = 0; k < 4; ++k)
      for (int v = 0; v < 2; ++v) store(runs[v].w[i + k], sum[k][v]);
  }
}

// The errors of a run behind those before it; factor [16][rank].
static inline void add_errors(const float *factor, int64_t rank, const float errors[RUN][ABREAST], Carried *carried) {
  for (int64_t r = 0; r < rank; r += 4) {
    Lanes sum[4][2];
    for (int k = 0; k < 4; ++k)
      for (int v = 0; v < 2; ++v) sum[k][v] = load(carried->sums[r + k] + 8 * v);
    for (int i = 0; i < RUN; ++i) {
      const Lanes a = load(errors[i]), b = load(errors[i] + 8);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const Lanes f = splat(factor[i * rank + r + k]);
        sum[k][0] = fma(f, a, sum[k][0]);
        sum[k][1] = fma(f, b, sum[k][1]);
      }
    }
    for (int k = 0; k < 4; ++k)
      for (int v = 0; v < 2; ++v) store(carried->sums[r + k] + 8 * v, sum[k][v]);
  }
}

// Round a run of eight rows, input by input. `runs` are the weights with what is carried to them, own[i][0..7] those that
// they were; within [16][16], `found` codes [8 rows][cols] from the run on, or NULL. Adds to the loss.
template <int F>
static inline void round_run(RunBlock *runs, const float (*own)[ABREAST], Lanes row, const float numbers[8],
                             const float *within, const float *rest, float (*errors)[ABREAST], uint8_t *found,
                             int64_t cols, Lanes *loss) {
  const RunSteps step = run_steps(row, numbers);
  for (int i = 0; i < RUN; ++i) {
    Lanes level;
    float codes[8];
    store(codes, nearest_code<F>(load(runs->w[i]), step, &level));
    const Lanes e = sub(load(own[i]), mul(mul(level, step.size), step.sign));
    store(errors[i], e);
    *loss = fma(mul(splat(rest[i]), e), e, *loss);
    if (!found) continue;
    for (int k = 0; k < 8; ++k) found[k * cols + i] = (uint8_t)(int)codes[k];
    for (int j = i + 1; j < RUN; ++j) store(runs->w[j], fma(splat(within[i * RUN + j]), e, load(runs->w[j])));
  }
}

// The loss of each row, by the multipliers that it has, or, with `found` codes [16][cols] and numbers [16][cols / 16]
// behind them, by those that are best for what is carried.
template <int F>
static void carry_pass(const AbreastRows &rows, int64_t cols, const v4k_carry *carry, uint8_t *found, float *loss) {
  const int64_t rank = carry->rank;
  Carried carried;
  for (int64_t r = 0; r < rank; ++r)
    for (int k = 0; k < ABREAST; ++k) carried.sums[r][k] = 0;
  Lanes total[2] = {zero(), zero()};
  for (int64_t first = 0; first < cols; first += RUN) {
    float own[RUN][ABREAST], errors[RUN][ABREAST];
    RunBlock runs[2];
    load_abreast(rows, first, own);
    for (int v = 0; v < 2; ++v)
      for (int i = 0; i < RUN; ++i) {
        store(runs[v].w[i], load(own[i] + 8 * v));
        store(runs[v].importance[i], splat(carry->importance[first + i]));
      }
    if (found) add_carried(carry->gains + first * rank, rank, carried, runs);
    for (int v = 0; v < 2; ++v) {
      const Lanes row = load(rows.scale + 8 * v);
      const int64_t run = first / RUN;
      float numbers[8];
      if (found) run_numbers<F, true>(runs[v], row, numbers);
      for (int k = 0; k < 8; ++k) {
        if (found) found[ABREAST * cols + (8 * v + k) * (cols / RUN) + run] = (uint8_t)(int)numbers[k];
        else numbers[k] = rows.numbers[8 * v + k][run / 2] >> run % 2 * 4 & 15;
      }
      round_run<F>(runs + v, (const float(*)[ABREAST])(&own[0][8 * v]), row, numbers, carry->within + first * RUN,
                   carry->rest + first, (float(*)[ABREAST])(&errors[0][8 * v]),
                   found ? found + 8 * v * cols + first : nullptr, cols, total + v);
    }
    add_errors(carry->factor + first * rank, rank, errors, &carried);
  }
  for (int64_t r = 0; r < rank; ++r)
    for (int v = 0; v < 2; ++v) {
      const Lanes sum = load(carried.sums[r] + 8 * v);
      total[v] = fma(sum, sum, total[v]);
    }
  for (int v = 0; v < 2; ++v) store(loss + 8 * v, total[v]);
}

template <int F>
static void carry_rows(const float *w, int64_t n, int64_t cols, const v4k_carry *carry, uint8_t *found, uint8_t *codes,
                       uint8_t *scale) {
  const int64_t groups = cols / V4K_GROUP, code_bytes = groups * V4K_FORMATS[F].info.code_bytes;
  AbreastRows rows;
  for (int64_t k = 0; k < ABREAST; ++k) {
    const int64_t r = k < n ? k : n - 1;  // past the last: the last again
    const uint8_t *own = scale + r * (2 + groups);
    const float row = bf16_at(own);
    const bool some = row > 0 && row < __builtin_inff();  // else nothing is to be chosen, and no loss is less
    const float unit = some ? power_in(row) : 1.0f;
    rows.w[k] = w + r * cols;
    rows.numbers[k] = own + 2;
    rows.factor[k] = some ? 1 / unit : 0.0f;
    rows.scale[k] = some ? row / unit : 0.0f;
  }
  float plain[ABREAST], carried[ABREAST];
  carry_pass<F>(rows, cols, carry, nullptr, plain);
  carry_pass<F>(rows, cols, carry, found, carried);
  for (int64_t k = 0; k < n; ++k) {
    if (!(carried[k] < plain[k])) continue;
    const uint8_t *number = found + ABREAST * cols + k * (cols / RUN);
    for (int64_t g = 0; g < groups; ++g) {
      scale[k * (2 + groups) + 2 + g] = (uint8_t)(number[2 * g] | number[2 * g + 1] << 4);
      uint8_t *row = codes + k * code_bytes;
      pack_group<F>(found + k * cols + g * V4K_GROUP, row + 8 * g, row + cols / 4 + 4 * g);
    }
  }
}

static void carry_lowbit(const float *w, int64_t n, int64_t cols, int64_t format, const v4k_carry *carry, uint8_t *found,
                         uint8_t *codes, uint8_t *scale) {
  (format == V4K_Q3 ? carry_rows<V4K_Q3> : carry_rows<V4K_Q2>)(w, n, cols, carry, found, codes, scale);
}

// As a loop over vectors of whatever width: no sum is taken in another order.
static void carry_step(double *left, int64_t rank, const double *v, double divisor, const float *before, double *next) {
  for (int64_t i = 0; i < rank; ++i) next[i] = 0;
  for (int64_t k = 0; k < rank; ++k) {
    double *row = left + k * rank;
    const double f = v[k] / divisor, c = before[k];
    for (int64_t i = 0; i < rank; ++i) {
      row[i] -= f * v[i];
      next[i] += c * row[i];
    }
  }
}
