"""Quantization of activations: v4k_quantize."""

import triton
import triton.language as tl

from v4kernels.triton.sums import nearest
from v4kernels.triton.types import f32p, i8p


@triton.jit
def quantize(
    x: f32p,  # [groups, 32]
    q: i8p,  # out [groups, 32], -127 to 127
    scale: f32p,  # out [groups]: max(amax / 127, 2^-120); NaN, with q = 0, for a group that is not finite
    groups: tl.int32,
    BLOCK: tl.constexpr,  # groups a program
):
    """Codes of one group are x / scale rounded to the nearest, ties to even. Grid: (ceil(groups / BLOCK),)."""
    g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = g[:, None] * 32 + tl.arange(0, 32)[None, :]
    some = g < groups
    value = tl.load(x + at, some[:, None], 0.0)
    peak = tl.max(
        value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1
    )  # orders magnitudes as floats do, NaN above all
    finite = peak < 0x7F800000
    step = tl.div_rn(peak.to(tl.float32, bitcast=True), tl.full((BLOCK,), 127.0, tl.float32))
    step = tl.where(finite, tl.maximum(step, 7.52316384526264e-37), float("nan"))
    code = nearest(tl.div_rn(value, tl.broadcast_to(step[:, None], (BLOCK, 32))))
    code = tl.where(finite[:, None], code, 0.0)
    tl.store(q + at, code.to(tl.int8), some[:, None])
    tl.store(scale + g, step, some)
