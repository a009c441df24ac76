"""Linear layers for many tokens on tensor cores: v4k_linear again, to the same bits.

Integer products of a group are exact however they are made, so only what follows has an order: group g is added to lane
g mod 8. A program goes through K once per lane, because eight lanes of a tile at once do not fit into registers.
"""

import triton
import triton.language as tl

from v4kernels.triton.sums import from_bf16
from v4kernels.triton.types import f32p, i8p, u16p


@triton.jit
def lane_sum(w, wscale, x, xscale, lane, K: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr):
    """Groups lane, lane + 8, ... of every output of a tile; pointers of group 0: w [ROWS, 32], wscale [ROWS],
    x [TOKENS, 32], xscale [TOKENS] -> [TOKENS, ROWS] fp32."""
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for g in range(lane, K // 32, 8):
        # 2^23 + 2^22 as float bits: the sum, below 2^22, becomes a float by its bits alone, twice as fast as converted.
        zero = tl.full((TOKENS, ROWS), 0x4B400000, tl.int32)
        dot = tl.dot(tl.load(x + g * 32), tl.trans(tl.load(w + g * 32)), acc=zero, out_dtype=tl.int32)
        dot = dot.to(tl.float32, bitcast=True) - 12582912.0
        scale = from_bf16(tl.load(wscale + g))[None, :] * tl.load(xscale + g)[:, None]
        total = tl.fma(dot, scale, total)
    return total


@triton.jit
def gemm_int8(
    w: i8p,  # [rows, K]
    wscale: u16p,  # [rows, K/32]: bf16
    x: i8p,  # [tokens, K]
    xscale: f32p,  # [tokens, K/32]
    y: f32p,  # out [tokens, rows]
    rows: tl.int32,
    tokens: tl.int32,
    K: tl.constexpr,  # inputs, a multiple of 32
    TOKENS: tl.constexpr,  # a program's tile
    ROWS: tl.constexpr,
):
    """Grid: (ceil(tokens / TOKENS), ceil(rows / ROWS))."""
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    token = tl.minimum(t, tokens - 1)
    row = tl.minimum(r, rows - 1)
    k = tl.arange(0, 32)
    w += row[:, None] * K + k[None, :]
    x += token[:, None] * K + k[None, :]
    wscale += row * (K // 32)
    xscale += token * (K // 32)
    y += t[:, None] * rows + r[None, :]
    some = (t[:, None] < tokens) & (r[None, :] < rows)
    # Lanes 0 4 2 6 1 5 3 7, that is i with its bits reversed, added in pairs, pairs of pairs and halves.
    one = tl.zeros((TOKENS, ROWS), tl.float32)
    two = tl.zeros((TOKENS, ROWS), tl.float32)
    for i in range(8):
        total = lane_sum(w, wscale, x, xscale, (i & 1) * 4 + (i & 2) + (i >> 2), K, TOKENS, ROWS)
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
