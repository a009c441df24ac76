"""Several linear layers of the same inputs, for few tokens, by one launch: each program has some rows of one of them.

`table` is int64 [PARTS, 8], a line for each layer:
  FIRST   program of the layer
  CODES, SCALE, Y   addresses: of the matrix, and of what is made, fp32 [tokens, rows]
  ROWS
  FORM    its format: one bit, of the number that it has in FORMS (of numbers a compiler makes a jump table)
"""

import triton
import triton.language as tl

from v4kernels.triton import fp32, linear
from v4kernels.triton.lines import WORD
from v4kernels.triton.types import f32p, i8p, i64p, u8p, u16p

FIRST, CODES, SCALE, Y, ROWS, FORM = (tl.constexpr(i) for i in range(6))
LINE = 8  # numbers of a line
FORMS = ("int8", "fp4", "int4", "bf16", "f32", "q3", "q2")
TILE = tl.constexpr(32)  # rows of a program
PLAIN_TILE = tl.constexpr(4)  # of a format without scales


@triton.jit
def multiply(line, number, t, x, xscale, K: tl.constexpr, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Rows from number * TILE on of a line's layer, whose format is quantized, for token t."""
    rows = tl.load(line + ROWS).to(tl.int32)
    w = tl.multiple_of(tl.load(line + CODES).to(u8p), WORD)
    wscale = tl.multiple_of(tl.load(line + SCALE).to(u8p), WORD)
    r = number * TILE + tl.arange(0, TILE)
    total = linear.products(w, wscale, x, xscale, tl.minimum(r, rows - 1), K, TILE, FORMAT, ASM)
    tl.store(tl.load(line + Y).to(f32p) + t * rows + r, total, r < rows)


@triton.jit
def multiply_plain(line, number, t, x, K: tl.constexpr, TYPE: tl.constexpr):
    """The same of a format without scales."""
    rows = tl.load(line + ROWS).to(tl.int32)
    lane = tl.arange(0, 64)[None, None, :]
    w = tl.multiple_of(tl.load(line + CODES).to(TYPE), WORD)
    r = number * PLAIN_TILE + tl.arange(0, PLAIN_TILE)
    at = tl.minimum(r, rows - 1).to(tl.int64)[None, :, None] * K + lane
    total = fp32.products(w + at, x + lane, K, 1, PLAIN_TILE)
    tl.store(tl.load(line + Y).to(f32p) + t * rows + r, total, r < rows)


@triton.jit
def fan(
    table: i64p,
    x: f32p,  # [tokens, K]
    codes: i8p,  # [tokens, K]: x quantized; read for formats that are
    xscale: f32p,  # [tokens, K/32]
    PARTS: tl.constexpr,
    K: tl.constexpr,
    INT8: tl.constexpr,  # whether a layer has that format
    FP4: tl.constexpr,
    INT4: tl.constexpr,
    BF16: tl.constexpr,
    F32: tl.constexpr,
    Q3: tl.constexpr,
    Q2: tl.constexpr,
    ASM: tl.constexpr,  # see dots.py
):
    """Grid: (programs of all, tokens)."""
    program = tl.program_id(0)
    t = tl.program_id(1)
    line = table
    for i in tl.static_range(1, PARTS):
        line += tl.where(tl.load(table + i * 8 + FIRST) <= program, 8, 0)
    number = program - tl.load(line + FIRST).to(tl.int32)
    form = tl.load(line + FORM).to(tl.int32)
    x += t * K
    codes += t * K
    xscale += t * (K // 32)
    if INT8:
        if form & 1:
            multiply(line, number, t, codes, xscale, K, "int8", ASM)
    if FP4:
        if form & 2:
            multiply(line, number, t, codes, xscale, K, "fp4", ASM)
    if INT4:
        if form & 4:
            multiply(line, number, t, codes, xscale, K, "int4", ASM)
    if BF16:
        if form & 8:
            multiply_plain(line, number, t, x, K, u16p)
    if F32:
        if form & 16:
            multiply_plain(line, number, t, x, K, f32p)
    if Q3:
        if form & 32:
            multiply(line, number, t, codes, xscale, K, "q3", ASM)
    if Q2:
        if form & 64:
            multiply(line, number, t, codes, xscale, K, "q2", ASM)
