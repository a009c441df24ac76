"""Linear layers for few tokens: v4k_linear, one output row's sum by eight neighbouring threads.

y[t, r] = sum over groups g of 32 inputs of dot[g] * (wscale[r, g] * xscale[t, g]), group g in lane g mod 8 and lanes
added up as v4k.h says. A program computes ROWS rows of one token; a step takes 8 groups of each, one a lane.

FORMAT is a name of formats.py. Codes are read in words of int32: of int8 eight a group, four codes each; of fp4 and
int4 four a group, eight codes each, whose inputs, int8 in every case, make an int64.
"""

import triton
import triton.language as tl

from v4kernels.triton import lowbit
from v4kernels.triton.dots import dot_fp4, dot_int4, dot_int8
from v4kernels.triton.hyper import put_back
from v4kernels.triton.lowbit import has_runs
from v4kernels.triton.quantize import quantized
from v4kernels.triton.sums import from_bf16, from_e8m0, lanes_total
from v4kernels.triton.types import f32p, i8p, i32p, i64p, u8p, u16p


@triton.jit
def first_words(FORMAT: tl.constexpr):
    """Where the words of a step lie, [1, 8, words of a group]."""
    WORDS: tl.constexpr = 8 if FORMAT == "int8" else 4
    return tl.arange(0, 8)[None, :, None] * WORDS + tl.arange(0, WORDS)[None, None, :]


@triton.jit
def weights_at(w, wscale, row, K: tl.constexpr, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """What steps read of rows [ROWS] of a matrix, from the first one: pointers to codes [ROWS, 8, words] and scales
    [ROWS, 8], or as lowbit.py has them."""
    if has_runs(FORMAT):
        found = lowbit.weights_at(w, wscale, row[:, None], K, FORMAT, ASM)
    else:
        WORDS: tl.constexpr = 8 if FORMAT == "int8" else 4
        SCALE: tl.constexpr = tl.pointer_type(tl.uint8 if FORMAT == "fp4" else tl.uint16)
        codes = w.to(tl.pointer_type(tl.int32)) + row[:, None, None] * (K // 32 * WORDS) + first_words(FORMAT)
        found = codes, wscale.to(SCALE) + row[:, None] * (K // 32) + tl.arange(0, 8)[None, :]
    return found


@triton.jit
def inputs_at(x, xscale, row, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """The same of one token's inputs; a copy for every row, so that each thread loads what it multiplies."""
    if has_runs(FORMAT):
        found = lowbit.inputs_at(x, xscale, row[:, None], ASM)
    else:
        INPUTS: tl.constexpr = tl.pointer_type(tl.int32 if FORMAT == "int8" else tl.int64)
        codes = x.to(INPUTS) + (row * 0)[:, None, None] + first_words(FORMAT)
        found = codes, xscale + tl.arange(0, 8)[None, :]
    return found


@triton.jit
def step(lanes, w, wscale, x, xscale, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """lanes [ROWS, 8] and one more group of each."""
    if FORMAT == "int8":
        dot = tl.sum(dot_int8(tl.load(w), tl.load(x), ASM), axis=2)
        scale = from_bf16(tl.load(wscale)) * tl.load(xscale)
    elif FORMAT == "int4":
        dot = tl.sum(dot_int4(tl.load(w), tl.load(x), ASM), axis=2) >> 4
        scale = from_bf16(tl.load(wscale)) * tl.load(xscale)
    else:  # codes are doubled to be integers, so the scale of x is halved
        dot = tl.sum(dot_fp4(tl.load(w), tl.load(x), ASM), axis=2)
        scale = from_e8m0(tl.load(wscale)) * (tl.load(xscale) * 0.5)
    return tl.fma(dot.to(tl.float32), scale, lanes)


@triton.jit
def whole_step(lanes, i, w, x, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Step i, by what `weights_at` and `inputs_at` found."""
    if has_runs(FORMAT):
        lanes = lowbit.step(lanes, w, x, i * 8, i * 8, FORMAT, ASM)
    else:
        WORDS: tl.constexpr = 64 if FORMAT == "int8" else 32
        lanes = step(lanes, w[0] + i * WORDS, w[1] + i * 8, x[0] + i * WORDS, x[1] + i * 8, FORMAT, ASM)
    return lanes


@triton.jit
def last_step(lanes, w, x, K: tl.constexpr, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """The groups behind whole steps, if there are any."""
    if K % 256:
        if has_runs(FORMAT):
            lanes = lowbit.last_step(lanes, w, x, K, FORMAT, ASM)
        else:
            WORDS: tl.constexpr = 8 if FORMAT == "int8" else 4
            lane = tl.arange(0, 8)[None, :]
            at = K // 256 * 8 - tl.maximum(lane - (K // 32 % 8 - 1), 0)  # lanes without a group see the last one again
            words = WORDS * at[:, :, None]
            more = step(lanes, w[0] + words, w[1] + at, x[0] + words, x[1] + at, FORMAT, ASM)
            lanes = tl.where(lane < K // 32 % 8, more, lanes)
    return lanes


@triton.jit
def products(w, wscale, x, xscale, row, K: tl.constexpr, ROWS: tl.constexpr, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Rows [ROWS] of a matrix times one token: [ROWS] fp32."""
    FORM: tl.constexpr = lowbit.form_of(ASM, ROWS) if has_runs(FORMAT) else ASM
    weights = weights_at(w, wscale, row, K, FORMAT, FORM)
    inputs = inputs_at(x, xscale, row, FORMAT, FORM)
    lanes = tl.zeros((ROWS, 8), tl.float32)
    for i in range(K // 256):
        lanes = whole_step(lanes, i, weights, inputs, FORMAT, FORM)
    return lanes_total(last_step(lanes, weights, inputs, K, FORMAT, FORM), ROWS)


@triton.jit
def multiplied(
    w, wscale, x, xscale, y, rows, K: tl.constexpr, ROWS: tl.constexpr, FORMAT: tl.constexpr, ASM: tl.constexpr
):
    """A program's rows of a layer, of one token."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t = tl.program_id(1)
    x += t * (K // 4 if FORMAT == "int8" else K // 8)
    total = products(w, wscale, x, xscale + t * (K // 32), tl.minimum(r, rows - 1), K, ROWS, FORMAT, ASM)
    tl.store(y + t * rows + r, total, r < rows)


@triton.jit
def linear_int8(
    w: i32p,  # [rows, K/4]: four int8 codes a word
    wscale: u16p,  # [rows, K/32]: bf16
    x: i32p,  # [tokens, K/4]: four int8 codes a word
    xscale: f32p,  # [tokens, K/32]
    y: f32p,  # out [tokens, rows]
    rows: tl.int32,
    K: tl.constexpr,  # inputs, a multiple of 32
    ROWS: tl.constexpr,
    ASM: tl.constexpr,  # see dots.py
):
    """Grid: (ceil(rows / ROWS), tokens)."""
    multiplied(w, wscale, x, xscale, y, rows, K, ROWS, "int8", ASM)


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
    ASM: tl.constexpr,  # see dots.py
):
    """Grid: (ceil(rows / ROWS), tokens)."""
    multiplied(w, wscale, x, xscale, y, rows, K, ROWS, "fp4", ASM)


@triton.jit
def linear_int4(
    w: i32p,  # [rows, K/8]: eight codes a word, value = code - 8
    wscale: u16p,  # [rows, K/32]: bf16
    x: i64p,  # [tokens, K/8]: eight int8 codes a word
    xscale: f32p,  # [tokens, K/32]
    y: f32p,  # out [tokens, rows]
    rows: tl.int32,
    K: tl.constexpr,  # inputs, a multiple of 32
    ROWS: tl.constexpr,
    ASM: tl.constexpr,  # see dots.py
):
    """Grid: (ceil(rows / ROWS), tokens)."""
    multiplied(w, wscale, x, xscale, y, rows, K, ROWS, "int4", ASM)


@triton.jit
def linear_q3(
    w: u8p,  # [rows, K*3/8]
    wscale: u8p,  # [rows, 2 + K/32]
    x: i64p,  # [tokens, K/8]: eight int8 codes a word
    xscale: f32p,  # [tokens, K/32]
    y: f32p,  # out [tokens, rows]
    rows: tl.int32,
    K: tl.constexpr,  # inputs, a multiple of 32
    ROWS: tl.constexpr,
    ASM: tl.constexpr,  # see lowbit.py
):
    """Grid: (ceil(rows / ROWS), tokens)."""
    multiplied(w, wscale, x, xscale, y, rows, K, ROWS, "q3", ASM)


@triton.jit
def linear_q2(
    w: u8p,  # [rows, K/4]
    wscale: u8p,  # [rows, 2 + K/32]
    x: i64p,  # [tokens, K/8]: eight int8 codes a word
    xscale: f32p,  # [tokens, K/32]
    y: f32p,  # out [tokens, rows]
    rows: tl.int32,
    K: tl.constexpr,  # inputs, a multiple of 32
    ROWS: tl.constexpr,
    ASM: tl.constexpr,  # see lowbit.py
):
    """Grid: (ceil(rows / ROWS), tokens)."""
    multiplied(w, wscale, x, xscale, y, rows, K, ROWS, "q2", ASM)


@triton.jit
def linear_put_back(
    w: u8p,  # the first four as in the kernel of that format
    wscale: u8p,
    x: i8p,
    xscale: f32p,
    mix: f32p,  # [tokens, S + S*S], see hyper.py
    streams: f32p,  # [tokens, S, rows], in place
    K: tl.constexpr,
    N: tl.constexpr,  # rows
    S: tl.constexpr,
    ROWS: tl.constexpr,
    FORMAT: tl.constexpr,
    ASM: tl.constexpr,
):
    """A layer whose result goes back into streams. Grid: (ceil(N / ROWS), tokens)."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t = tl.program_id(1)
    total = products(w, wscale, x + t * K, xscale + t * (K // 32), tl.minimum(r, N - 1), K, ROWS, FORMAT, ASM)
    put_back(total, r, r < N, t.to(tl.int64), mix, streams, S, N)


@triton.jit
def linear_grouped(
    memory: u8p,  # [groups, SLOT]: of each its codes and, from SCALE on, its scales
    x: i8p,  # [tokens, groups, K]: quantized inputs
    xscale: f32p,  # [tokens, groups, K/32]
    y: f32p,  # out [tokens, groups, N]
    q: i8p,  # out [tokens, groups, N]: the same quantized
    qscale: f32p,  # out [tokens, groups, N/32]
    groups: tl.int32,
    K: tl.constexpr,  # inputs and outputs of a group
    N: tl.constexpr,
    SLOT: tl.constexpr,
    SCALE: tl.constexpr,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr,  # a divisor of N
    QUANTIZED: tl.constexpr,  # whether q is made; ROWS is a multiple of 32 then
    ASM: tl.constexpr,
):
    """Outputs fall into groups, each of which sees its part of the inputs. Grid: (tokens * groups, N / ROWS)."""
    pair = tl.program_id(0)
    w = memory + (pair % groups).to(tl.int64) * SLOT
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    total = products(w, w + SCALE, x + pair * K, xscale + pair * (K // 32), r, K, ROWS, FORMAT, ASM)
    tl.store(y + pair * N + r, total)
    if QUANTIZED:
        code, step = quantized(tl.reshape(total, (ROWS // 32, 32)), ROWS // 32)
        group = tl.program_id(1) * (ROWS // 32) + tl.arange(0, ROWS // 32)
        at = group[:, None] * 32 + tl.arange(0, 32)[None, :]
        tl.store(q + pair * N + at, code)
        tl.store(qscale + pair * (N // 32) + group, step)
