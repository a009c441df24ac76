"""Quantization of activations: v4k_quantize."""

import triton
import triton.language as tl

from v4kernels.triton.sums import nearest
from v4kernels.triton.types import f32p, i8p


@triton.jit
def quantized(value, GROUPS: tl.constexpr):
    """value [GROUPS, 32] fp32 -> codes [GROUPS, 32] int8, -127 to 127, and scales [GROUPS] fp32.

    A scale is max(amax / 127, 2^-120), codes are value / scale rounded to the nearest, ties to even. A group that is
    not finite has scale NaN and codes 0.
    """
    # As integers magnitudes have the order that they have as floats, with NaN above all.
    peak = tl.max(value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)
    finite = peak < 0x7F800000
    scale = tl.div_rn(peak.to(tl.float32, bitcast=True), tl.full((GROUPS,), 127.0, tl.float32))
    scale = tl.where(finite, tl.maximum(scale, 7.52316384526264e-37), float("nan"))
    code = nearest(tl.div_rn(value, tl.broadcast_to(scale[:, None], (GROUPS, 32))))
    return tl.where(finite[:, None], code, 0.0).to(tl.int8), scale


@triton.jit
def quantize(
    x: f32p,  # [groups, 32]
    q: i8p,  # out [groups, 32]
    scale: f32p,  # out [groups]
    groups: tl.int32,
    BLOCK: tl.constexpr,  # groups a program
):
    """Grid: (ceil(groups / BLOCK),)."""
    g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = g[:, None] * 32 + tl.arange(0, 32)[None, :]
    some = g < groups
    code, step = quantized(tl.load(x + at, some[:, None], 0.0), BLOCK)
    tl.store(q + at, code, some[:, None])
    tl.store(scale + g, step, some)
