// NEON with the dot product instructions.
#include <arm_neon.h>
#include <stdint.h>

#include "tier.h"

namespace v4k_neon {

#include "neon.inl"

}  // namespace v4k_neon

extern "C" const v4k_tier v4k_tier_neon = {
    "neon",                  v4k_neon::quantize,      v4k_neon::rows,
    v4k_neon::swiglu,        v4k_neon::rows_fp32,     v4k_neon::sum_squares,
    v4k_neon::rms_norm,      v4k_neon::exponentials,  v4k_neon::sqrt_softplus,
    v4k_neon::unpack,        v4k_neon::attend,        v4k_neon::pool,
    v4k_neon::index_panel,   v4k_neon::index_scores,  v4k_neon::logit_peak,
    v4k_neon::logit_weights,  v4k_neon::encode_lowbit,  v4k_neon::carry_lowbit,
    v4k_neon::carry_step,     v4k_neon::read};
