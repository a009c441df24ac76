"""Experts of a decode step: v4k_experts, to the same bits, for the experts that lie in device memory.

A pair is a row (token) and one of its experts: pair = row * TOP_K + j. `gate_up` makes of every pair's quantized input
z = silu(min(w1 x, limit)) * clamp(w3 x, -limit, limit) * weight, quantized; `down` makes rows w2 z; `add_experts` adds
the rows of a token to what is there: the shared expert's, then by ascending id.

Experts lie in slots of SLOT bytes. slots [experts] is the number of an expert's slot, -1 where it has none; its pairs
are skipped, and their rows come from elsewhere before `add_experts`. Parts of an expert lie anywhere within its slot,
at multiples of 16 bytes. A launch knows one format of each matrix: experts of other formats are another launch, with a
table of their own. The shared expert is a pair of every row, of weight 1, beside others: `gate_up_all`, `down_all`.

Pairs are the first axis of a grid, so programs that run together read the same rows: weights that several pairs need
come from memory once, and from the cache behind that.

For many rows the matrices are multiplied by `gemm_experts` (gemm.py); `swiglu_pairs` is what lies between.
"""

import triton
import triton.language as tl

from v4kernels.triton.hyper import put_back
from v4kernels.triton.linear import inputs_at, last_step, products, weights_at, whole_step
from v4kernels.triton.quantize import quantized
from v4kernels.triton.sums import exp_lanes, lanes_total
from v4kernels.triton.types import f32p, i8p, i16p, i32p, i64p, u8p


@triton.jit
def swiglu(gate, up, weight, limit):
    """silu(min(gate, limit)) * clamp(up, -limit, limit) * weight, fp32. NaN stays NaN, as it would not in a minimum."""
    gate = tl.where(limit < gate, limit, gate)
    up = tl.where(limit < up, limit, up)
    up = tl.where(-limit > up, -limit, up)
    return tl.div_rn(gate, 1.0 + exp_lanes(0.0 - gate)) * up * weight


@triton.jit
def make_group(
    expert, weight, x, xscale, z, zscale, limit, group, K: tl.constexpr, W1: tl.constexpr, W1_SCALE: tl.constexpr,
    W3: tl.constexpr, W3_SCALE: tl.constexpr, W1_FORMAT: tl.constexpr, W3_FORMAT: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """One group of z of a pair, by 32 rows of either matrix; pointers to the slot and to rows of the pair."""
    row = group * 32 + tl.arange(0, 32)
    w1 = weights_at(expert + W1, expert + W1_SCALE, row, K, W1_FORMAT, ASM)
    w3 = weights_at(expert + W3, expert + W3_SCALE, row, K, W3_FORMAT, ASM)
    x1, x3 = inputs_at(x, xscale, row, W1_FORMAT, ASM), inputs_at(x, xscale, row, W3_FORMAT, ASM)
    gates, ups = tl.zeros((32, 8), tl.float32), tl.zeros((32, 8), tl.float32)
    for i in range(K // 256):
        gates = whole_step(gates, i, w1, x1, W1_FORMAT, ASM)
        ups = whole_step(ups, i, w3, x3, W3_FORMAT, ASM)
    gate = lanes_total(last_step(gates, w1, x1, K, W1_FORMAT, ASM), 32)
    up = lanes_total(last_step(ups, w3, x3, K, W3_FORMAT, ASM), 32)
    code, scale = quantized(tl.reshape(swiglu(gate, up, weight, limit), (1, 32)), 1)
    one = tl.arange(0, 1)
    tl.store(z + group * 32 + one[:, None] + tl.arange(0, 32)[None, :], code)
    tl.store(zscale + group + one, scale)


@triton.jit
def gate_up(
    memory: u8p,  # slots
    slots: i16p,  # [experts]
    ids: i64p,  # [pairs]
    weights: f32p,  # [pairs]
    x: i8p,  # [rows, K]: quantized inputs
    xscale: f32p,  # [rows, K/32]
    z: i8p,  # out [pairs, N]
    zscale: f32p,  # out [pairs, N/32]
    limit: tl.float32,
    K: tl.constexpr,  # inputs and outputs of w1 and w3, multiples of 32
    N: tl.constexpr,
    TOP_K: tl.constexpr,  # pairs a row
    SLOT: tl.constexpr,
    W1: tl.constexpr,  # where in a slot codes and scales are
    W1_SCALE: tl.constexpr,
    W3: tl.constexpr,
    W3_SCALE: tl.constexpr,
    W1_FORMAT: tl.constexpr,  # see linear.py
    W3_FORMAT: tl.constexpr,
    ASM: tl.constexpr,  # see dots.py
):
    """A program makes one group of z, 32 rows of either matrix. Grid: (pairs, N / 32)."""
    pair = tl.program_id(0)
    group = tl.program_id(1)
    slot = tl.load(slots + tl.load(ids + pair))
    if slot >= 0:
        expert = memory + slot.to(tl.int64) * SLOT
        make_group(
            expert, tl.load(weights + pair), x + pair // TOP_K * K, xscale + pair // TOP_K * (K // 32), z + pair * N,
            zscale + pair * (N // 32), limit, group, K, W1, W1_SCALE, W3, W3_SCALE, W1_FORMAT, W3_FORMAT, ASM,
        )  # fmt: skip


@triton.jit
def gate_up_all(
    memory: u8p,  # as in gate_up
    slots: i16p,
    ids: i64p,
    weights: f32p,
    shared: u8p,  # the slot of the shared expert
    x: i8p,
    xscale: f32p,
    z: i8p,
    zscale: f32p,
    shared_z: i8p,  # out [rows, SHARED_N]
    shared_zscale: f32p,  # out [rows, SHARED_N/32]
    limit: tl.float32,
    pairs: tl.int32,
    K: tl.constexpr,
    N: tl.constexpr,
    TOP_K: tl.constexpr,
    SLOT: tl.constexpr,
    W1: tl.constexpr,
    W1_SCALE: tl.constexpr,
    W3: tl.constexpr,
    W3_SCALE: tl.constexpr,
    W1_FORMAT: tl.constexpr,
    W3_FORMAT: tl.constexpr,
    SHARED_N: tl.constexpr,
    SHARED_W1: tl.constexpr,
    SHARED_W1_SCALE: tl.constexpr,
    SHARED_W3: tl.constexpr,
    SHARED_W3_SCALE: tl.constexpr,
    SHARED_W1_FORMAT: tl.constexpr,
    SHARED_W3_FORMAT: tl.constexpr,
    ASM: tl.constexpr,
):
    """`gate_up` of pairs and, behind them, of the shared expert for every row. Grid: (pairs + rows, the larger of N and
    SHARED_N / 32)."""
    pair = tl.program_id(0)
    group = tl.program_id(1)
    if pair < pairs:
        slot = tl.load(slots + tl.load(ids + pair))
        if (slot >= 0) & (group < N // 32):
            expert = memory + slot.to(tl.int64) * SLOT
            make_group(
                expert, tl.load(weights + pair), x + pair // TOP_K * K, xscale + pair // TOP_K * (K // 32),
                z + pair * N, zscale + pair * (N // 32), limit, group, K, W1, W1_SCALE, W3, W3_SCALE, W1_FORMAT,
                W3_FORMAT, ASM,
            )  # fmt: skip
    elif group < SHARED_N // 32:
        row = pair - pairs
        make_group(
            shared, 1.0, x + row * K, xscale + row * (K // 32), shared_z + row * SHARED_N,
            shared_zscale + row * (SHARED_N // 32), limit, group, K, SHARED_W1, SHARED_W1_SCALE, SHARED_W3,
            SHARED_W3_SCALE, SHARED_W1_FORMAT, SHARED_W3_FORMAT, ASM,
        )  # fmt: skip


@triton.jit
def swiglu_pairs(
    gate: f32p,  # [pairs, N]
    up: f32p,  # [pairs, N]
    weights: f32p,  # [pairs]
    z: i8p,  # out [pairs, N]
    zscale: f32p,  # out [pairs, N/32]
    limit: tl.float32,
    groups: tl.int32,  # pairs * N/32
    N: tl.constexpr,
    BLOCK: tl.constexpr,  # groups a program
):
    """The end of `gate_up`, of products that were made before. Grid: (ceil(groups / BLOCK),)."""
    g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = g[:, None] * 32 + tl.arange(0, 32)[None, :]
    some = g < groups
    weight = tl.load(weights + g // (N // 32), some, 0.0)[:, None]
    value = swiglu(tl.load(gate + at, some[:, None], 0.0), tl.load(up + at, some[:, None], 0.0), weight, limit)
    code, scale = quantized(value, BLOCK)
    tl.store(z + at, code, some[:, None])
    tl.store(zscale + g, scale, some)


@triton.jit
def down(
    memory: u8p,  # slots
    slots: i16p,  # [experts]
    ids: i64p,  # [pairs]
    z: i8p,  # [pairs, K]
    zscale: f32p,  # [pairs, K/32]
    y: f32p,  # out [pairs, N]
    K: tl.constexpr,  # inputs and outputs of w2, multiples of 32
    N: tl.constexpr,
    SLOT: tl.constexpr,
    W2: tl.constexpr,  # where in a slot codes and scales are
    W2_SCALE: tl.constexpr,
    W2_FORMAT: tl.constexpr,  # see linear.py
    ROWS: tl.constexpr,  # a divisor of N
    ASM: tl.constexpr,  # see dots.py
):
    """Grid: (pairs, N / ROWS)."""
    pair = tl.program_id(0)
    slot = tl.load(slots + tl.load(ids + pair))
    if slot >= 0:
        expert = memory + slot.to(tl.int64) * SLOT
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        z += pair * K
        zscale += pair * (K // 32)
        total = products(expert + W2, expert + W2_SCALE, z, zscale, row, K, ROWS, W2_FORMAT, ASM)
        tl.store(y + pair * N + row, total)


@triton.jit
def down_all(
    memory: u8p,  # as in down
    slots: i16p,
    ids: i64p,
    shared: u8p,  # the slot of the shared expert
    z: i8p,
    zscale: f32p,
    shared_z: i8p,  # [rows, SHARED_K]
    shared_zscale: f32p,  # [rows, SHARED_K/32]
    y: f32p,
    shared_y: f32p,  # out [rows, N]
    pairs: tl.int32,
    K: tl.constexpr,
    N: tl.constexpr,
    SLOT: tl.constexpr,
    W2: tl.constexpr,
    W2_SCALE: tl.constexpr,
    W2_FORMAT: tl.constexpr,
    SHARED_K: tl.constexpr,
    SHARED_W2: tl.constexpr,
    SHARED_W2_SCALE: tl.constexpr,
    SHARED_W2_FORMAT: tl.constexpr,
    ROWS: tl.constexpr,
    ASM: tl.constexpr,
):
    """`down` of pairs and, behind them, of the shared expert for every row. Grid: (pairs + rows, N / ROWS)."""
    pair = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    if pair < pairs:
        slot = tl.load(slots + tl.load(ids + pair))
        if slot >= 0:
            w = memory + slot.to(tl.int64) * SLOT + W2
            scale = zscale + pair * (K // 32)
            total = products(w, w + (W2_SCALE - W2), z + pair * K, scale, row, K, ROWS, W2_FORMAT, ASM)
            tl.store(y + pair * N + row, total)
    else:
        token = pair - pairs
        w = shared + SHARED_W2
        scale = shared_zscale + token * (SHARED_K // 32)
        total = products(
            w, w + (SHARED_W2_SCALE - SHARED_W2), shared_z + token * SHARED_K, scale, row, SHARED_K, ROWS,
            SHARED_W2_FORMAT, ASM,
        )  # fmt: skip
        tl.store(shared_y + token * N + row, total)


@triton.jit
def plus_pairs(total, at, where, ids, hits, misses, N: tl.constexpr, TOP_K: tl.constexpr, BY_PAIR: tl.constexpr):
    """total, numbers `at` of a row, and those of the row's pairs by ascending id: from hits, or a row of misses.
    `where` is the slot of an expert, and misses have a row of every pair; or, BY_PAIR, it is a pair's row of misses, -1
    for none."""
    row = tl.program_id(1)
    some = at < N
    j = tl.arange(0, 16)
    END: tl.constexpr = 1 << 30  # above every key
    keys = tl.load(ids + row * TOP_K + j, j < TOP_K, 0).to(tl.int32) * 16 + j  # pairs of one id in their own order
    keys = tl.where(j < TOP_K, keys, END)
    for _ in range(TOP_K):
        key = tl.min(keys, axis=0)
        pair = row * TOP_K + key % 16
        if BY_PAIR:
            missed = tl.load(where + pair)
        else:
            missed = tl.where(tl.load(where + key // 16) >= 0, -1, pair)
        of_hit = tl.load(hits + pair.to(tl.int64) * N + at, some & (missed < 0))
        of_miss = tl.load(misses + missed.to(tl.int64) * N + at, some & (missed >= 0))
        total += tl.where(missed < 0, of_hit, of_miss)
        keys = tl.where(keys == key, END, keys)
    return total


@triton.jit
def store_sum(total, at, out, mix, streams, N: tl.constexpr, S: tl.constexpr):
    """Numbers `at` of a program's row of a layer's sum."""
    row = tl.program_id(1).to(tl.int64)
    if S:
        put_back(total, at, at < N, row, mix, streams, S, N)
    else:
        tl.store(out + row * N + at, total, at < N)


@triton.jit
def add_experts(
    slots: i16p,  # [experts]
    ids: i64p,  # [rows, TOP_K]
    shared: f32p,  # [rows, N]: of the shared expert
    hits: f32p,  # [rows, TOP_K, N]: of experts that have a slot
    misses: f32p,  # [rows, TOP_K, N]: of those that have none
    out: f32p,  # in [rows, N]; out, unless it goes back into streams
    mix: f32p,  # [rows, S + S*S], see hyper.py
    streams: f32p,  # [rows, S, N], in place
    N: tl.constexpr,
    TOP_K: tl.constexpr,  # at most 16
    S: tl.constexpr,  # streams that the sum goes back into; 0: it is stored in `out`
    BLOCK: tl.constexpr,  # values a program
):
    """out + shared, then the row of every pair, by ascending id. Grid: (ceil(N / BLOCK), rows)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1)
    total = tl.load(out + row * N + at, at < N) + tl.load(shared + row * N + at, at < N)
    total = plus_pairs(total, at, slots, ids, hits, misses, N, TOP_K, False)
    store_sum(total, at, out, mix, streams, N, S)


@triton.jit
def add_placed(
    order: i32p,  # [rows, TOP_K]: a pair's row of misses, -1 where its expert has a slot
    ids: i64p,  # [rows, TOP_K]
    hits: f32p,  # [rows, TOP_K, N]
    misses: f32p,  # [.., N]
    out: f32p,  # in, out [rows, N]
    N: tl.constexpr,
    TOP_K: tl.constexpr,  # at most 16
    BLOCK: tl.constexpr,  # values a program
):
    """out += the row of every pair, by ascending id. Grid: (ceil(N / BLOCK), rows)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    out += tl.program_id(1) * N + at
    total = plus_pairs(tl.load(out, at < N), at, order, ids, hits, misses, N, TOP_K, True)
    tl.store(out, total, at < N)
