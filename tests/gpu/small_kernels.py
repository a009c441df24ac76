"""Kernels that show one thing each that the PTX machine must be able to run."""

import triton
import triton.language as tl
from v4kernels.triton.sums import exp_lanes, sqrt_softplus_lanes
from v4kernels.triton.types import f32p, i16p, i32p, i64p, u8p


@triton.jit
def add(a: f32p, b: f32p, out: f32p, n: tl.int32, BLOCK: tl.constexpr):
    """out [n] = a [n] + b [n]; the last block is ragged."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(a + i, i < n) + tl.load(b + i, i < n), i < n)


@triton.jit
def largest(x: i32p, out: i32p, N: tl.constexpr):
    """out [rows] = the largest of each row of x [rows, N]: warps meet in shared memory."""
    row = tl.program_id(0)
    tl.store(out + row, tl.max(tl.load(x + row * N + tl.arange(0, N)), axis=0))


@triton.jit
def quotient(a: f32p, b: f32p, out: f32p, BLOCK: tl.constexpr):
    """out [BLOCK] = a [BLOCK] / b [BLOCK] as Triton divides where it is not told to round."""
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(a + i) / tl.load(b + i))


@triton.jit
def folded(x: f32p, out: f32p, N: tl.constexpr):
    """out [rows]: rows of x [rows, N] folded in halves until one number is left."""
    row = tl.program_id(0)
    value = tl.load(x + row * N + tl.arange(0, N))
    n: tl.constexpr = N
    value = tl.sum(tl.reshape(value, (2, n // 2)), axis=0)
    value = tl.sum(tl.reshape(value, (2, n // 4)), axis=0)
    value = tl.sum(tl.reshape(value, (2, n // 8)), axis=0)
    value = tl.sum(tl.reshape(value, (2, n // 16)), axis=0)
    tl.store(out + row * (n // 16) + tl.arange(0, n // 16), value)


@triton.jit
def weighted(x: f32p, lengths: i32p, out: f32p, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    """out [rows, BLOCK] = sum over i < lengths[row], ascending, of x [rows, STRIDE, BLOCK] * (i + 1): every program
    goes round as often as its row says."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(tl.load(lengths + row)):
        factor = tl.zeros((BLOCK,), tl.float32) + (i + 1).to(tl.float32)
        total = tl.fma(tl.load(x + (row * STRIDE + i) * BLOCK + column), factor, total)
    tl.store(out + row * BLOCK + column, total)


@triton.jit
def exponentials(x: f32p, out: f32p, BLOCK: tl.constexpr):
    """out = e^x as results are made of it."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, exp_lanes(tl.load(x + i)))


@triton.jit
def square_roots_of_softplus(x: f32p, out: f32p, BLOCK: tl.constexpr):
    """out = sqrt(log(1 + e^x)), likewise."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, sqrt_softplus_lanes(tl.load(x + i)))


@triton.jit
def gather(table: i64p, out: f32p, N: tl.constexpr):
    """out [rows, N]: the rows whose addresses are in table [rows]."""
    row = tl.program_id(0)
    at = tl.load(table + row).to(tl.pointer_type(tl.float32))
    tl.store(out + row * N + tl.arange(0, N), tl.load(at + tl.arange(0, N)))


@triton.jit
def squares(posted: i32p, data: i32p, answered: i32p, answer: i32p, out: i32p, rounds: tl.int32, N: tl.constexpr):
    """In each round i data [N] = i + 0, 1, ..., and posted [1] = i; when answered [1] is i, out [N] += answer [N]."""
    c = tl.arange(0, N)
    for i in range(1, rounds + 1):
        tl.store(data + c, i + c)
        tl.debug_barrier()  # all have stored when one of them posts
        tl.atomic_xchg(posted, i, sem="release", scope="sys")
        while tl.atomic_add(answered, 0, sem="acquire", scope="sys") != i:
            pass
        tl.store(out + c, tl.load(out + c) + tl.load(answer + c))


@triton.jit
def first_and_last(memory: u8p, slots: i16p, out: u8p, SLOT: tl.constexpr, LAST: tl.constexpr):
    """out [experts, 2] = the first byte and byte LAST of each expert's slot of SLOT bytes, if it has one."""
    e = tl.program_id(0)
    slot = tl.load(slots + e)
    if slot >= 0:
        i = tl.arange(0, 2)
        tl.store(out + 2 * e + i, tl.load(memory + slot.to(tl.int64) * SLOT + i * LAST))
