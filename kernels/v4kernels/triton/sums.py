"""Arithmetic that decides bits: rounding, scales, and sums of fp32 in the order of v4k.h.

A sum of more than two numbers is written as sums of two: their order cannot matter, so no layout that a compiler
chooses can change a bit. Products that are added at once are `tl.fma`; everything else is compiled without contraction
(launch.py).
"""

import triton
import triton.language as tl


@triton.jit
def nearest(x):
    """x fp32, |x| < 2^22 -> the nearest integer, ties to even, fp32."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def lanes_total(lanes, N: tl.constexpr):
    """lanes [N, 8] fp32 -> [N]: ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7))."""
    fours = tl.sum(tl.reshape(lanes, (N, 2, 4)), axis=1)
    twos = tl.sum(tl.reshape(fours, (N, 2, 2)), axis=1)
    return tl.sum(twos, axis=1)


@triton.jit
def from_e8m0(byte):
    """Scale bytes b -> 2^(b - 127) fp32; 2^-127 is a denormal number."""
    bits = byte.to(tl.int32) << 23
    return tl.where(bits == 0, 0x400000, bits).to(tl.float32, bitcast=True)


@triton.jit
def from_bf16(bits):
    """bf16 as uint16 -> fp32."""
    return (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def lanes64_total(lanes, N: tl.constexpr):
    """lanes [N, 64] fp32 -> [N]: the upper half is added to the lower one until 8 are left, then as above."""
    half = tl.sum(tl.reshape(lanes, (N, 2, 32)), axis=1)
    quarter = tl.sum(tl.reshape(half, (N, 2, 16)), axis=1)
    return lanes_total(tl.sum(tl.reshape(quarter, (N, 2, 8)), axis=1), N)


@triton.jit
def rms_factor(x, COUNT: tl.constexpr, EPS: tl.constexpr):
    """Of the COUNT fp32 numbers at x, what norms them [1, 1]: 1 / sqrt(lanes(64) of squares / COUNT + EPS)."""
    at = tl.arange(0, 64)[None, :]
    lanes = tl.zeros((1, 64), tl.float32)
    for i in range(0, COUNT, 64):  # lanes without a number take 0 * 0, which changes none
        value = tl.load(x + i + at, i + at < COUNT, 0.0)
        lanes = tl.fma(value, value, lanes)
    one = tl.full((1,), 1.0, tl.float32)
    return tl.div_rn(one, tl.sqrt_rn(tl.div_rn(lanes64_total(lanes, 1), one * COUNT) + EPS))[:, None]


@triton.jit
def exp_lanes(x):
    """e^x, x cut to [-87, 88], as elementary.inl of the CPU kernels takes it; NaN of NaN."""
    x = tl.where(x < -87.0, -87.0, x)
    x = tl.where(x > 88.0, 88.0, x)
    shifted = x * 1.44269504 + 12582912.0  # 1.5 * 2^23: rounds to an integer, in the lowest bits
    n = shifted - 12582912.0
    r = tl.fma(n, tl.full(x.shape, -0.693359375, tl.float32), x)
    r = tl.fma(n, tl.full(x.shape, 2.12194440e-4, tl.float32), r)
    p = tl.full(x.shape, 1.0 / 5040, tl.float32)
    p = tl.fma(p, r, tl.full(x.shape, 1.0 / 720, tl.float32))
    p = tl.fma(p, r, tl.full(x.shape, 1.0 / 120, tl.float32))
    p = tl.fma(p, r, tl.full(x.shape, 1.0 / 24, tl.float32))
    p = tl.fma(p, r, tl.full(x.shape, 1.0 / 6, tl.float32))
    p = tl.fma(p, r, tl.full(x.shape, 0.5, tl.float32))
    p = tl.fma(p, r, tl.full(x.shape, 1.0, tl.float32))
    p = tl.fma(p, r, tl.full(x.shape, 1.0, tl.float32))
    power = (shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000
    return p * power.to(tl.float32, bitcast=True)
