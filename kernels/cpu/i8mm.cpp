// NEON with the instructions that multiply matrices of bytes, 2x8 by 8x2.
#include <arm_neon.h>
#include <stdint.h>

#include "tier.h"

namespace v4k_i8mm {

#include "neon.inl"

}  // namespace v4k_i8mm

extern "C" const v4k_tier v4k_tier_i8mm = {
    "i8mm",                  v4k_i8mm::quantize,      v4k_i8mm::rows,
    v4k_i8mm::swiglu,        v4k_i8mm::rows_fp32,     v4k_i8mm::sum_squares,
    v4k_i8mm::rms_norm,      v4k_i8mm::exponentials,  v4k_i8mm::sqrt_softplus,
    v4k_i8mm::unpack,        v4k_i8mm::attend,        v4k_i8mm::pool,
    v4k_i8mm::index_panel,   v4k_i8mm::index_scores,  v4k_i8mm::logit_peak,
    v4k_i8mm::logit_weights,  v4k_i8mm::encode_lowbit,  v4k_i8mm::carry_lowbit,
    v4k_i8mm::carry_step,     v4k_i8mm::read};
