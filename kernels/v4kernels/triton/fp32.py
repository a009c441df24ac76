"""Linear layers of weights that are not quantized: v4k_linear of BF16 and F32, inputs in fp32.

y[t, r] = sum over i of w[r, i] * x[t, i], input i in lane i mod 64 by fma, and lanes added up as v4k.h says. Outputs
may fall into groups, each of which sees its own part of x.

A lane is a chain of K/64 additions that wait for each other, so it is the loads that must not: STEPS of them are under
way together.
"""

import triton
import triton.language as tl

from v4kernels.triton.sums import from_bf16, lanes64_total
from v4kernels.triton.types import f32p, u16p

STEPS = tl.constexpr(8)


@triton.jit
def products(w, x, K: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr):
    """w [1, ROWS, 64], bf16 as uint16 or fp32, x [N, 1, 64] fp32: pointers to the first 64 inputs of each
    -> sums [N * ROWS] fp32. K: inputs, a multiple of 8."""
    lanes = tl.zeros((N, ROWS, 64), tl.float32)
    nothing = tl.zeros((N, ROWS, 64), tl.int32)
    w += nothing  # every thread loads what it multiplies, instead of exchanging it
    x += nothing
    for i in range(0, K // 64 // STEPS * STEPS, STEPS):
        for j in tl.static_range(STEPS):
            lanes = tl.fma(as_fp32(tl.load(w + (i + j) * 64)), tl.load(x + (i + j) * 64), lanes)
    for j in tl.static_range(K // 64 // STEPS * STEPS, K // 64):
        lanes = tl.fma(as_fp32(tl.load(w + j * 64)), tl.load(x + j * 64), lanes)
    if K % 64:
        some = tl.arange(0, 64)[None, None, :] < K % 64
        last = as_fp32(tl.load(w + K // 64 * 64, some, 0))
        lanes = tl.where(some, tl.fma(last, tl.load(x + K // 64 * 64, some, 0.0), lanes), lanes)
    return lanes64_total(tl.reshape(lanes, (N * ROWS, 64)), N * ROWS)


@triton.jit
def as_fp32(w):
    """Weights as loaded -> fp32."""
    if w.dtype == tl.uint16:
        w = from_bf16(w)
    return w


@triton.jit
def multiplied(w, x, y, width, n, K: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr):
    """A program's tile of a layer."""
    groups = tl.num_programs(1)
    group = tl.program_id(1)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t = tl.program_id(2) * N + tl.arange(0, N)
    lane = tl.arange(0, 64)[None, None, :]
    row = (group * width + tl.minimum(r, width - 1)).to(tl.int64)
    token = (tl.minimum(t, n - 1) * groups + group).to(tl.int64)
    total = products(w + row[None, :, None] * K + lane, x + token[:, None, None] * K + lane, K, N, ROWS)
    to = y + t[:, None].to(tl.int64) * (groups * width) + group * width + r[None, :]
    tl.store(to, tl.reshape(total, (N, ROWS)), (t[:, None] < n) & (r[None, :] < width))


@triton.jit
def linear_bf16(
    w: u16p,  # [groups, width, K]: bf16
    x: f32p,  # [n, groups, K]
    y: f32p,  # out [n, groups, width]
    width: tl.int32,  # rows of a group
    n: tl.int32,  # tokens
    K: tl.constexpr,  # inputs, a multiple of 8
    N: tl.constexpr,  # a program's tile: tokens
    ROWS: tl.constexpr,  # and rows
):
    """Grid: (ceil(width / ROWS), groups, ceil(n / N))."""
    multiplied(w, x, y, width, n, K, N, ROWS)


@triton.jit
def linear_f32(
    w: f32p,  # [groups, width, K]
    x: f32p,  # [n, groups, K]
    y: f32p,  # out [n, groups, width]
    width: tl.int32,  # rows of a group
    n: tl.int32,  # tokens
    K: tl.constexpr,  # inputs, a multiple of 8
    N: tl.constexpr,  # a program's tile: tokens
    ROWS: tl.constexpr,  # and rows
):
    """Grid: (ceil(width / ROWS), groups, ceil(n / N))."""
    multiplied(w, x, y, width, n, K, N, ROWS)
