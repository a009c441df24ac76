// The elementary functions alone, for tests.
#include <cstring>

#include "dispatch.h"

extern "C" int v4k_elementary(int64_t function, const float *x, int64_t n, float *y) {
  if (!x || !y || n < 0) return V4K_EARGUMENT;
  if (x != y) std::memcpy(y, x, static_cast<size_t>(n) * sizeof(float));
  switch (function) {
    case V4K_EXP: v4k::tier().exponentials(y, n); return V4K_OK;
    case V4K_SQRT_SOFTPLUS: v4k::tier().sqrt_softplus(y, n); return V4K_OK;
    default: return V4K_EARGUMENT;
  }
}
