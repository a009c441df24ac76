"""What a step says of its rows, and where their timelines remember: so one launch serves any mix of them.

`lines` is int64 [rows, 4] in device memory, a line for each row: the address of its timeline's table; the position of
its token; how many rows of its timeline come directly before it in this step, at the positions before; how many behind.

A table is int64 [layers, 8]: the addresses of what a layer of the timeline keeps, 0 where there is nothing. `part` is
8 * layer. What is kept has the bytes of the CPU's (v4k.h): positions go around in rings and tails, entries lie one
behind the other. All addresses are multiples of launch.ALIGNMENT.

A launch over a part of the rows is one with pointers that begin at its first row, a multiple of 16. Rows read what is
in front of them there, of the rows of their timeline.
"""

import triton
import triton.language as tl

from v4kernels.triton.launch import ALIGNMENT
from v4kernels.triton.types import i64p

LINE = tl.constexpr(4)  # numbers of a line
TABLE = tl.constexpr(0)
POSITION = tl.constexpr(1)
BACK = tl.constexpr(2)
AHEAD = tl.constexpr(3)

PARTS = tl.constexpr(8)  # addresses of a layer
RING = tl.constexpr(0)
ENTRIES = tl.constexpr(1)
TAIL_KV = tl.constexpr(2)
TAIL_GATE = tl.constexpr(3)
KEYS = tl.constexpr(4)
KEY_SCALES = tl.constexpr(5)
KEY_TAIL_KV = tl.constexpr(6)
KEY_TAIL_GATE = tl.constexpr(7)

WORD = tl.constexpr(ALIGNMENT)


@triton.jit
def told(lines, row, WHAT: tl.constexpr):
    """POSITION, BACK or AHEAD of a row, int32."""
    return tl.load(lines + row * LINE + WHAT).to(tl.int32)


@triton.jit
def address(lines, row, part, WHAT: tl.constexpr, TYPE: tl.constexpr, MULTIPLE: tl.constexpr = WORD):
    """Pointer of that type to what a row's timeline keeps: RING, ENTRIES, ... The compiler takes it for a multiple of
    MULTIPLE."""
    table = tl.load(lines + row * LINE + TABLE).to(i64p)
    return tl.multiple_of(tl.load(table + part + WHAT).to(TYPE), MULTIPLE)


@triton.jit
def completed(position, RATIO: tl.constexpr):
    """Which entry of RATIO positions the token there completes; -1: none."""
    return tl.where((position + 1) % RATIO == 0, position // RATIO, -1)
