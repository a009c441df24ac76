"""Linear layers for many tokens on tensor cores: v4k_linear again, to the same bits.

Integer products of a group are exact however they are made, so only what follows has an order: group g is added to lane
g mod 8. A program goes through K once per lane, because eight lanes of a tile at once do not fit into registers.
"""

import triton
import triton.language as tl

from v4kernels.triton import lowbit
from v4kernels.triton.lowbit import has_runs
from v4kernels.triton.sums import from_bf16, from_e8m0
from v4kernels.triton.types import f32p, i8p, i32p, u8p
from v4kernels.triton.unpack import in_words, unpacked


@triton.jit
def lane_sum(
    w, x, xscale, lane, K: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, FORMAT: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Groups lane, lane + 8, ... of every output of a tile; w as `weights_at` found it, pointers of group 0: x [TOKENS,
    32], xscale [TOKENS] -> [TOKENS, ROWS] fp32."""
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for g in range(lane, K // 32, 8):
        if has_runs(FORMAT):
            codes = lowbit.unpacked(w, g, ROWS, FORMAT, ASM)
        else:
            EACH: tl.constexpr = 32 if FORMAT == "int8" else 4 if in_words(FORMAT, ASM) else 16
            codes = tl.load(w[0] + g * EACH)
            if FORMAT != "int8":
                codes = unpacked(codes, ROWS, FORMAT, ASM)
        # 2^23 + 2^22 as float bits: the sum, below 2^22, becomes a float by its bits alone, twice as fast as converted.
        zero = tl.full((TOKENS, ROWS), 0x4B400000, tl.int32)
        dot = tl.dot(tl.load(x + g * 32), tl.trans(codes), acc=zero, out_dtype=tl.int32)
        dot = dot.to(tl.float32, bitcast=True) - 12582912.0
        if has_runs(FORMAT):
            scale = w[3][None, :] * tl.load(xscale + g)[:, None]
        elif FORMAT == "fp4":  # codes are doubled to be integers, so the scale of x is halved
            scale = from_e8m0(tl.load(w[1] + g))[None, :] * (tl.load(xscale + g) * 0.5)[:, None]
        else:
            scale = from_bf16(tl.load(w[1] + g))[None, :] * tl.load(xscale + g)[:, None]
        total = tl.fma(dot, scale, total)
    return total


@triton.jit
def tile(
    w, x, xscale, y, some, K: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, FORMAT: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Outputs of a tile, those that `some` [TOKENS, ROWS] tells, to pointers y; others as in `lane_sum`."""
    # Lanes 0 4 2 6 1 5 3 7, that is i with its bits reversed, added in pairs, pairs of pairs and halves.
    one = tl.zeros((TOKENS, ROWS), tl.float32)
    two = tl.zeros((TOKENS, ROWS), tl.float32)
    for i in range(8):
        total = lane_sum(w, x, xscale, (i & 1) * 4 + (i & 2) + (i >> 2), K, TOKENS, ROWS, FORMAT, ASM)
        if i & 1 == 0:
            one = total
        else:
            total = one + total
            if i & 2 == 0:
                two = total
            else:
                total = two + total
                if i == 7:
                    total = tl.load(y, some, 0.0) + total  # the first half waited there, not in registers
                tl.store(y, total, some)


@triton.jit
def weights_at(w, wscale, row, K: tl.constexpr, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Pointers of group 0 of rows [ROWS] of a matrix: to codes [ROWS, 32], or what is unpacked, and scales [ROWS]; or
    as lowbit.py has them."""
    if has_runs(FORMAT):
        found = lowbit.groups_at(w, wscale, row, K, FORMAT, ASM)
    else:
        WORDS: tl.constexpr = in_words(FORMAT, ASM)
        EACH: tl.constexpr = 32 if FORMAT == "int8" else 4 if WORDS else 16
        CODES: tl.constexpr = tl.pointer_type(tl.int8 if FORMAT == "int8" else tl.int32 if WORDS else tl.uint8)
        SCALE: tl.constexpr = tl.pointer_type(tl.uint8 if FORMAT == "fp4" else tl.uint16)
        codes = w.to(CODES) + row[:, None] * (K // 32 * EACH) + tl.arange(0, EACH)[None, :]
        found = codes, wscale.to(SCALE) + row * (K // 32)
    return found


@triton.jit
def gemm(
    w: u8p,  # codes of the rows as formats.py has them
    wscale: u8p,  # and their scales
    x: i8p,  # [tokens, K]
    xscale: f32p,  # [tokens, K/32]
    y: f32p,  # out [tokens, rows]
    rows: tl.int32,
    tokens: tl.int32,
    K: tl.constexpr,  # inputs, a multiple of 32
    TOKENS: tl.constexpr,  # a program's tile
    ROWS: tl.constexpr,
    FORMAT: tl.constexpr,  # a name of formats.py
    ASM: tl.constexpr,  # see unpack.py
):
    """Grid: (ceil(tokens / TOKENS), ceil(rows / ROWS))."""
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    token = tl.minimum(t, tokens - 1)
    weights = weights_at(w, wscale, tl.minimum(r, rows - 1), K, FORMAT, ASM)
    x += token[:, None] * K + tl.arange(0, 32)[None, :]
    y += t[:, None] * rows + r[None, :]
    some = (t[:, None] < tokens) & (r[None, :] < rows)
    tile(weights, x, xscale + token * (K // 32), y, some, K, TOKENS, ROWS, FORMAT, ASM)


@triton.jit
def gemm_experts(
    memory: u8p,  # slots of experts, see experts.py
    tiles: i32p,  # [tiles, 3]: slot, and the first and the number of its pairs in `order`, at most TOKENS
    order: i32p,  # numbers of pairs, those of an expert together
    x: i8p,  # [rows, K], SHARE pairs a row
    xscale: f32p,  # [rows, K/32]
    y: f32p,  # out [pairs, N]
    K: tl.constexpr,  # inputs and outputs of the matrix, multiples of 32
    N: tl.constexpr,
    SHARE: tl.constexpr,
    SLOT: tl.constexpr,  # bytes
    W: tl.constexpr,  # where in a slot codes and scales are
    W_SCALE: tl.constexpr,
    TOKENS: tl.constexpr,  # a program's tile
    ROWS: tl.constexpr,
    FORMAT: tl.constexpr,  # a name of formats.py
    ASM: tl.constexpr,  # see unpack.py
):
    """One matrix of many experts, each times its pairs. Grid: (tiles, ceil(N / ROWS))."""
    tiles += tl.program_id(0) * 3
    first, count = tl.load(tiles + 1), tl.load(tiles + 2)
    t = tl.arange(0, TOKENS)
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    pair = tl.load(order + first + tl.minimum(t, count - 1))
    expert = memory + tl.load(tiles).to(tl.int64) * SLOT
    weights = weights_at(expert + W, expert + W_SCALE, tl.minimum(r, N - 1), K, FORMAT, ASM)
    x += (pair // SHARE)[:, None] * K + tl.arange(0, 32)[None, :]
    y += pair[:, None] * N + r[None, :]
    some = (t[:, None] < count) & (r[None, :] < N)
    tile(weights, x, xscale + pair // SHARE * (K // 32), y, some, K, TOKENS, ROWS, FORMAT, ASM)
