"""Hyper-connections: v4k_hyper_pre, v4k_hyper_post, v4k_hyper_head. S streams, a power of two up to 8, of D numbers.

`hyper_products` multiplies the streams [S * D] of a token with fn and with themselves; `hyper_pre` makes of that

  rho = 1 / sqrt(squares / (S * D) + NORM_EPS); gates sigmoid(m * rho * scale + base)
  x = norm(sum over j, in order, of (gate_j + EPS) * stream_j)
  mix = post [S], twice the next gates, and comb [S, S], what m * rho * scale + base is after Sinkhorn's iterations

and `hyper_post` the streams that follow: stream_k = post_k * out + sum over j, in order, of comb[j, k] * stream_j, each
product rounded.
"""

import triton
import triton.language as tl

from v4kernels.triton.fp32 import products
from v4kernels.triton.quantize import quantized
from v4kernels.triton.sums import column_trees, exp_lanes, inverse_rms, lanes64_total, sigmoid_lanes, tree_total
from v4kernels.triton.types import f32p, i8p

STEPS = tl.constexpr(4)  # loads of every stream that are under way together


@triton.jit
def hyper_products(
    fn: f32p,  # [rows, K]
    streams: f32p,  # [n, K]
    m: f32p,  # out [n, rows + 1]: products with fn, then the sum of squares
    rows: tl.int32,  # S*S + 2S; S for the final collapse
    n: tl.int32,  # tokens
    K: tl.constexpr,  # S * D, a multiple of 32
    N: tl.constexpr,  # tokens of a program
):
    """Grid: (rows + 1, ceil(n / N))."""
    row = tl.program_id(0)
    t = tl.program_id(1) * N + tl.arange(0, N)
    lane = tl.arange(0, 64)[None, None, :]
    x = streams + tl.minimum(t, n - 1).to(tl.int64)[:, None, None] * K + lane
    if row < rows:
        total = products(fn + row * K + lane, x, K, N, 1)
    else:
        total = products(x, x, K, N, 1)
    tl.store(m + t * (rows + 1) + row, total, t < n)


@triton.jit
def collapsed(streams, gates, some, S: tl.constexpr, D: tl.constexpr):
    """Pointers into the first stream -> the sum over streams, in order, of gate times stream, 0 where not `some`."""
    total = tl.load(streams, some, 0.0) * gates[0]
    for j in tl.static_range(1, S):
        total += tl.load(streams + j * D, some, 0.0) * gates[j]
    return total


@triton.jit
def collapse(
    streams, gates, norm, x, q, scale, S: tl.constexpr, D: tl.constexpr, NORM_EPS: tl.constexpr,
    QUANTIZED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x [D], the normed sum of the streams [S, D] of one token, and where QUANTIZED its codes and scales; pointers."""
    lane = tl.arange(0, 64)[None, :]
    lanes = tl.zeros((1, 64), tl.float32)
    for i in range(0, tl.cdiv(D, 64 * STEPS)):
        for j in tl.static_range(STEPS):  # lanes without a number take 0 * 0, which changes none
            at = (i * STEPS + j) * 64 + lane
            value = collapsed(streams + at, gates, at < D, S, D)
            lanes = tl.fma(value, value, lanes)
    factor = inverse_rms(tl.sum(lanes64_total(lanes, 1), axis=0), D, NORM_EPS)
    for i in range(0, D, BLOCK):
        at = i + tl.arange(0, BLOCK // 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
        value = collapsed(streams + at, gates, at < D, S, D) * factor * tl.load(norm + at, at < D, 0.0)
        tl.store(x + at, value, at < D)
        if QUANTIZED:
            code, step = quantized(value, BLOCK // 32)
            tl.store(q + at, code, at < D)
            group = i // 32 + tl.arange(0, BLOCK // 32)
            tl.store(scale + group, step, group < D // 32)


@triton.jit
def sinkhorn(c, S: tl.constexpr, ITERS: tl.constexpr, EPS: tl.constexpr):
    """c [S, S]: softmax along rows, plus EPS; then over sums plus EPS, of columns and of rows in turn, columns last."""
    c = exp_lanes(c - tl.max(c, axis=1)[:, None])
    c = tl.div_rn(c, tree_total(c, S, S)[:, None]) + EPS
    c = tl.div_rn(c, (column_trees(c, S, S) + EPS)[None, :])
    for _ in range(1, ITERS):
        c = tl.div_rn(c, (tree_total(c, S, S) + EPS)[:, None])
        c = tl.div_rn(c, (column_trees(c, S, S) + EPS)[None, :])
    return c


@triton.jit
def hyper_pre(
    streams: f32p,  # [n, S, D]
    m: f32p,  # [n, rows + 1], see hyper_products
    base: f32p,  # [rows]
    scale: f32p,  # [3]; [1] of the final collapse
    norm: f32p,  # [D]
    x: f32p,  # out [n, D]
    mix: f32p,  # out [n, S + S*S]: post, then comb[j, k]; not written by the final collapse
    q: i8p,  # out [n, D]: x quantized, and its scales, for layers that want it so
    q_scale: f32p,  # out [n, D/32]
    rows: tl.int32,  # S*S + 2S; S for the final collapse
    S: tl.constexpr,
    D: tl.constexpr,  # a multiple of 8
    ITERS: tl.constexpr,
    NORM_EPS: tl.constexpr,
    EPS: tl.constexpr,
    QUANTIZED: tl.constexpr,  # whether q is made; D is a multiple of 32 then
    BLOCK: tl.constexpr,  # numbers of x normed together
):
    """Grid: (n, 2), where the second program of a token makes its mix; (n, 1) for the final collapse."""
    t = tl.program_id(0).to(tl.int64)
    m += t * (rows + 1)
    mix += t * (S + S * S)
    rho = inverse_rms(tl.load(m + rows), S * D, NORM_EPS)
    if tl.program_id(1) == 0:
        gates = ()
        for j in tl.static_range(S):
            gates += (sigmoid_lanes(tl.load(m + j) * rho * tl.load(scale) + tl.load(base + j)) + EPS,)
        q += t * D
        q_scale += t * (D // 32)
        collapse(streams + t * S * D, gates, norm, x + t * D, q, q_scale, S, D, NORM_EPS, QUANTIZED, BLOCK)
    else:
        j = tl.arange(0, S)
        post = sigmoid_lanes(tl.load(m + S + j) * rho * tl.load(scale + 1) + tl.load(base + S + j))
        tl.store(mix + j, 2.0 * post)
        at = S * j[:, None] + j[None, :]
        c = tl.load(m + 2 * S + at) * rho * tl.load(scale + 2) + tl.load(base + 2 * S + at)
        tl.store(mix + S + at, sinkhorn(c, S, ITERS, EPS))


@triton.jit
def put_back(value, at, some, t, mix, streams, S: tl.constexpr, D: tl.constexpr):
    """Numbers `at` [n], where `some`, of a sublayer's result for token t (int64) go back into its streams."""
    mix += t * (S + S * S)
    streams += t * S * D
    old = ()
    for j in tl.static_range(S):
        old += (tl.load(streams + j * D + at, some, 0.0),)
    tl.debug_barrier()  # no thread stores what another is still to read
    for k in tl.static_range(S):
        total = tl.load(mix + k) * value
        for j in tl.static_range(S):
            total += tl.load(mix + S + j * S + k) * old[j]
        tl.store(streams + k * D + at, total, some)


@triton.jit
def hyper_post(
    out: f32p,  # [n, D]: of the sublayer
    mix: f32p,  # [n, S + S*S], see hyper_pre
    streams: f32p,  # [n, S, D], in place
    S: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (ceil(D / BLOCK), n)."""
    t = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    put_back(tl.load(out + t * D + at, at < D, 0.0), at, at < D, t, mix, streams, S, D)
