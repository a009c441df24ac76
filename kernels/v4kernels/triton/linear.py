"""Linear layers for few tokens: v4k_linear, one output row's sum by eight neighbouring threads.

y[t, r] = sum over groups g of 32 inputs of dot[g] * (wscale[r, g] * xscale[t, g]), group g in lane g mod 8 and lanes
added up as v4k.h says. A program computes ROWS rows of one token; a step takes 8 groups of each, one a lane.
"""

import triton
import triton.language as tl

from v4kernels.triton.dots import dot_fp4, dot_int8
from v4kernels.triton.sums import from_bf16, from_e8m0, lanes_total
from v4kernels.triton.types import f32p, i32p, i64p, u8p, u16p


@triton.jit
def step_int8(lanes, w, wscale, x, xscale, PTX: tl.constexpr):
    """lanes [ROWS, 8] and one more group of each; pointers w, x [ROWS, 8, 8] of words, wscale, xscale [ROWS, 8]."""
    dot = tl.sum(dot_int8(tl.load(w), tl.load(x), PTX), axis=2)
    return tl.fma(dot.to(tl.float32), from_bf16(tl.load(wscale)) * tl.load(xscale), lanes)


@triton.jit
def step_fp4(lanes, w, wscale, x, xscale, PTX: tl.constexpr):
    """The same of FP4; w, x [ROWS, 8, 4]. Codes are doubled to be integers, so the scale of x is halved."""
    dot = tl.sum(dot_fp4(tl.load(w), tl.load(x), PTX), axis=2)
    return tl.fma(dot.to(tl.float32), from_e8m0(tl.load(wscale)) * (tl.load(xscale) * 0.5), lanes)


@triton.jit
def linear_int8(
    w: i32p,  # [groups, rows, K/4]: four int8 codes a word
    wscale: u16p,  # [groups, rows, K/32]: bf16
    x: i32p,  # [tokens, groups, K/4]: four int8 codes a word
    xscale: f32p,  # [tokens, groups, K/32]
    y: f32p,  # out [tokens, groups, rows]
    rows: tl.int32,  # of a group
    K: tl.constexpr,  # inputs, a multiple of 32
    ROWS: tl.constexpr,
    PTX: tl.constexpr,  # see dots.py
):
    """Each group has inputs of its own; a plain layer is one group. Grid: (ceil(rows / ROWS), tokens, groups)."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(2)
    token = tl.program_id(1) * tl.num_programs(2) + group  # of the token's group
    w += group * rows * (K // 4)
    wscale += group * rows * (K // 32)
    row = tl.minimum(r, rows - 1)[:, None]
    lane = tl.arange(0, 8)[None, :]
    word = lane[:, :, None] * 8 + tl.arange(0, 8)[None, None, :]  # of a step's 64
    w += row[:, :, None] * (K // 4) + word
    x += token * (K // 4) + (row * 0)[:, :, None] + word
    wscale += row * (K // 32) + lane
    xscale += token * (K // 32) + lane
    lanes = tl.zeros((ROWS, 8), tl.float32)
    for i in range(K // 256):
        lanes = step_int8(lanes, w + i * 64, wscale + i * 8, x + i * 64, xscale + i * 8, PTX)
    if K % 256:
        at = K // 256 * 8 - tl.maximum(lane - (K // 32 % 8 - 1), 0)  # lanes without a group see the last one again
        words = 8 * at[:, :, None]
        more = step_int8(lanes, w + words, wscale + at, x + words, xscale + at, PTX)
        lanes = tl.where(lane < K // 32 % 8, more, lanes)
    tl.store(y + token * rows + r, lanes_total(lanes, ROWS), r < rows)


@triton.jit
def linear_fp4(
    w: i32p,  # [rows, K/8]: eight e2m1 codes a word
    wscale: u8p,  # [rows, K/32]: b = 2^(b-127)
    x: i64p,  # [tokens, K/8]: eight int8 codes a word
    xscale: f32p,  # [tokens, K/32]
    y: f32p,  # out [tokens, rows]
    rows: tl.int32,
    K: tl.constexpr,  # inputs, a multiple of 32
    ROWS: tl.constexpr,
    PTX: tl.constexpr,  # see dots.py
):
    """Grid: (ceil(rows / ROWS), tokens)."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1)
    row = tl.minimum(r, rows - 1)[:, None]
    lane = tl.arange(0, 8)[None, :]
    word = lane[:, :, None] * 4 + tl.arange(0, 4)[None, None, :]  # of a step's 32
    w += row[:, :, None] * (K // 8) + word
    x += token * (K // 8) + (row * 0)[:, :, None] + word
    wscale += row * (K // 32) + lane
    xscale += token * (K // 32) + lane
    lanes = tl.zeros((ROWS, 8), tl.float32)
    for i in range(K // 256):
        lanes = step_fp4(lanes, w + i * 32, wscale + i * 8, x + i * 32, xscale + i * 8, PTX)
    if K % 256:
        at = K // 256 * 8 - tl.maximum(lane - (K // 32 % 8 - 1), 0)  # lanes without a group see the last one again
        words = 4 * at[:, :, None]
        more = step_fp4(lanes, w + words, wscale + at, x + words, xscale + at, PTX)
        lanes = tl.where(lane < K // 32 % 8, more, lanes)
    tl.store(y + token * rows + r, lanes_total(lanes, ROWS), r < rows)
