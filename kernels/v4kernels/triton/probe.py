"""Kernels that do nothing else than what a GPU's limits are measured by."""

import triton
import triton.language as tl

from v4kernels.triton.types import i32p, i64p


@triton.jit
def nothing(out: i32p):
    """Grid: any."""


@triton.jit
def read_words(
    words: i32p,  # [n]
    out: i32p,  # out [programs]: the sum of what each has read
    n: tl.int64,  # a multiple of BLOCK
    BLOCK: tl.constexpr,
):
    """Grid: (programs,), which take blocks in turns."""
    total = tl.zeros((BLOCK,), tl.int32)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    for at in range(first, n, tl.num_programs(0).to(tl.int64) * BLOCK):
        total += tl.load(words + at + tl.arange(0, BLOCK))
    tl.store(out + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def gather_rows(
    rows: i64p,  # [any, WORDS]
    which: i32p,  # [programs]
    out: i64p,  # out [programs, WORDS]
    WORDS: tl.constexpr,
):
    """Some rows, one behind the other. Grid: (programs,)."""
    i = tl.program_id(0)
    word = tl.arange(0, triton.next_power_of_2(WORDS))
    value = tl.load(rows + tl.load(which + i).to(tl.int64) * WORDS + word, word < WORDS, 0)
    tl.store(out + i * WORDS + word, value, word < WORDS)
