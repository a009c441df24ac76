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
