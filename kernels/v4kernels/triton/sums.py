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
def tree_total(x, N: tl.constexpr, M: tl.constexpr):
    """x [N, M] fp32, M a power of two up to 8 -> [N]: the tree of v4k.h, neighbours first."""
    if M >= 8:
        x = tl.sum(tl.reshape(x, (N, 4, 2)), axis=2)
    if M >= 4:
        x = tl.sum(tl.reshape(x, (N, 2, 2)), axis=2)
    if M >= 2:
        x = tl.sum(tl.reshape(x, (N, 1, 2)), axis=2)
    return tl.reshape(x, (N,))


@triton.jit
def column_trees(x, M: tl.constexpr, N: tl.constexpr):
    """x [M, N] fp32 -> [N]: the same of columns."""
    if M >= 8:
        x = tl.sum(tl.reshape(x, (4, 2, N)), axis=1)
    if M >= 4:
        x = tl.sum(tl.reshape(x, (2, 2, N)), axis=1)
    if M >= 2:
        x = tl.sum(tl.reshape(x, (1, 2, N)), axis=1)
    return tl.reshape(x, (N,))


@triton.jit
def inverse_rms(squares, COUNT: tl.constexpr, EPS: tl.constexpr):
    """The sum of COUNT squares, fp32 -> 1 / sqrt(squares / COUNT + EPS)."""
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(squares, COUNT * 1.0) + EPS))


@triton.jit
def rms_factor(x, COUNT: tl.constexpr, EPS: tl.constexpr):
    """Of the COUNT fp32 numbers at x, what norms them [1, 1]: 1 / sqrt(lanes(64) of squares / COUNT + EPS)."""
    at = tl.arange(0, 64)[None, :]
    lanes = tl.zeros((1, 64), tl.float32)
    for i in range(0, COUNT, 64):  # lanes without a number take 0 * 0, which changes none
        value = tl.load(x + i + at, i + at < COUNT, 0.0)
        lanes = tl.fma(value, value, lanes)
    return inverse_rms(lanes64_total(lanes, 1), COUNT, EPS)[:, None]


@triton.jit
def exp_lanes(x):
    """e^x of fp32, x cut to [-87, 88]: exp of v4k.h."""
    x = tl.where(x < -87.0, -87.0, x)  # NaN stays, as it would not in a minimum
    x = tl.where(x > 88.0, 88.0, x)
    shifted = x * 1.44269504 + 12582912.0
    n = shifted - 12582912.0
    r = tl.fma(n, 2.12194440e-4, tl.fma(n, -0.693359375, x))
    p = tl.fma(r, 1 / 5040, 1 / 720)
    p = tl.fma(p, r, 1 / 120)
    p = tl.fma(p, r, 1 / 24)
    p = tl.fma(p, r, 1 / 6)
    p = tl.fma(p, r, 0.5)
    p = tl.fma(p, r, 1.0)
    p = tl.fma(p, r, 1.0)
    return p * ((shifted.to(tl.int32, bitcast=True) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def log1p_lanes(t):
    """log(1 + t) of fp32, 0 <= t <= 1: log1p of v4k.h."""
    s = tl.div_rn(t, t + 2.0)
    z = s * s
    p = tl.fma(z, 0.2429026, 0.21430278)
    p = tl.fma(p, z, 0.28616676)
    p = tl.fma(p, z, 0.39998883)
    p = tl.fma(p, z, 0.66666675)
    return tl.fma(0.0 - s, t - z * p, t)


@triton.jit
def sqrt_softplus_lanes(x):
    """sqrt(log(1 + e^x)) of fp32: sqrt(softplus) of v4k.h."""
    magnitude = tl.where(x < 0.0, 0.0 - x, x)
    above = tl.sqrt_rn(tl.where(x < 0.0, 0.0, x) + log1p_lanes(exp_lanes(0.0 - magnitude)))
    return tl.where(x < -20.0, exp_lanes(x * 0.5), above)


@triton.jit
def sigmoid_lanes(x):
    """1 / (1 + e^-x) of fp32."""
    return tl.div_rn(1.0, exp_lanes(0.0 - x) + 1.0)
