"""A kernel that does nothing else than what a limit of a GPU is measured by; measure.py has others."""

import triton
import triton.language as tl

from v4kernels.triton.types import i32p, i64p


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
