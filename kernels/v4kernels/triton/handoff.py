"""The device's side of the ring of experts that it does not hold (v4k.h): of each layer `post` says which pairs of
rows and experts are missing, `wait` spins until they are computed, `add_served` adds them. So a step goes from layer to
layer without the host, and can be recorded: which job a layer posts, if any, is counted in memory.

`state` is int64 [STATE] in device memory, written by the host between steps:
  NUMBER   of the last job that was posted
  PENDING  whether that job is still to be waited for, 0 or 1
  OUTCOME  0, or the V4K_E code that a wait ended with; what was computed since then means nothing, and nothing more is
           posted or waited for
  WAITED   for how long, in all: ns, or in the plain form the number of looks

The host writes `served` and `error` while these kernels run: they are read by loads that acquire, and `posted` is
stored with release, both at the scope of the system. An atomic operation would not do everywhere: where the bus has
none, it is a load and a store, and what the host stores in between is lost.
"""

import numpy as np
import triton
import triton.language as tl

from v4kernels.cpu.serve import HEAD, job_dtype
from v4kernels.native import ETIMEOUT
from v4kernels.triton.experts import plus_pairs, store_sum
from v4kernels.triton.types import f32p, i16p, i32p, i64p, u8p


def offsets(layout: np.dtype) -> dict[str, int]:
    """Where fields of a structure are, bytes."""
    assert layout.fields is not None
    return {name: layout.fields[name][1] for name in layout.fields}


POSTED, SERVED, ERROR, FAILED = (tl.constexpr(offsets(HEAD)[name]) for name in ("posted", "served", "error", "failed"))
JOBS = tl.constexpr(HEAD.itemsize)  # where jobs begin
TIMED_OUT = tl.constexpr(ETIMEOUT)
NUMBER, PENDING, OUTCOME, WAITED = (tl.constexpr(i) for i in range(4))
STATE = 4  # numbers of it


def places(pairs: int, dim: int) -> dict[str, int]:
    """Constants of kernels: bytes of a JOB of a ring, and where its lists of ROWs, EXPERTs and WEIGHTs are."""
    job = job_dtype(pairs, dim)
    named = {name.upper(): at for name, at in offsets(job).items() if name in ("row", "expert", "weight", "x", "y")}
    return {"JOB": job.itemsize} | named


@triton.jit
def acquired(word, ASM: tl.constexpr):
    """int64 of the host there, and after it all that its writer stored before."""
    if ASM == "ptx":
        value = tl.inline_asm_elementwise(
            "ld.acquire.sys.global.b64 $0, [$1];", "=l,l,~{memory}", [word], dtype=tl.int64, is_pure=False, pack=1
        )
    else:
        value = tl.atomic_add(word, 0, sem="acquire", scope="sys")
    return value


@triton.jit
def release(word, value, ASM: tl.constexpr):
    """Store int64 for the host, and before it all that this program stored in front of a barrier."""
    if ASM == "ptx":
        tl.inline_asm_elementwise(
            """
            {
            .reg .pred first;
            .reg .b32 thread;
            mov.u32 thread, %tid.x;
            setp.eq.u32 first, thread, 0;
            @first st.release.sys.global.b64 [$1], $2;
            mov.b32 $0, 0;
            }
            """,
            "=r,l,l,~{memory}",
            [word, value],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.atomic_xchg(word, value, sem="release", scope="sys")


@triton.jit
def now(looks, ASM: tl.constexpr):
    """ns of a clock, int64; in the plain form how often `wait` has looked."""
    if ASM == "ptx":
        time = tl.inline_asm_elementwise("mov.u64 $0, %globaltimer;", "=l", [], dtype=tl.int64, is_pure=False, pack=1)
    else:
        time = looks
    return time


@triton.jit
def job_of(ring, state, jobs, JOB: tl.constexpr):
    """Pointer to the job that was posted last."""
    return ring + JOBS + tl.load(state + NUMBER) % jobs * JOB


@triton.jit
def post(
    ring: u8p,  # mapped memory
    state: i64p,
    slots: i16p,  # [experts], see experts.py
    ids: i64p,  # [rows, TOP_K]
    weights: f32p,  # [rows, TOP_K]
    scores: f32p,  # [rows, EXPERTS]
    x: f32p,  # [rows, DIM]
    seen_ids: i64p,  # out [rows, TOP_K]: copies, for the host to read after the step
    seen_scores: f32p,  # out [rows, EXPERTS]
    order: i32p,  # out [rows, TOP_K]: which result of the job is a pair's, -1 where its expert has a slot
    layer: tl.int32,
    rows: tl.int32,
    jobs: tl.int32,  # of the ring
    DIM: tl.constexpr,
    TOP_K: tl.constexpr,
    EXPERTS: tl.constexpr,
    PAIRS: tl.constexpr,  # a power of two, at least rows * TOP_K
    JOB: tl.constexpr,  # see `places`
    ROW: tl.constexpr,
    EXPERT: tl.constexpr,
    WEIGHT: tl.constexpr,
    X: tl.constexpr,
    BLOCK: tl.constexpr,  # values that are copied at a time
    ASM: tl.constexpr,
):
    """Post a job of the pairs whose expert has no slot, if there are any. Grid: (1,)."""
    pair = tl.arange(0, PAIRS)
    some = pair < rows * TOP_K
    expert = tl.load(ids + pair, some, 0)
    missing = some & (tl.load(slots + expert, some, 0) < 0)
    place = tl.cumsum(missing.to(tl.int32), 0) - 1
    tl.store(order + pair, tl.where(missing, place, -1), some)
    tl.store(seen_ids + pair, expert, some)
    for first in range(0, rows * EXPERTS, BLOCK):
        at = first + tl.arange(0, BLOCK)
        tl.store(seen_scores + at, tl.load(scores + at, at < rows * EXPERTS), at < rows * EXPERTS)
    count = tl.sum(missing.to(tl.int64), 0)
    posts = (count > 0) & (tl.load(state + OUTCOME) == 0)
    number = tl.load(state + NUMBER) + posts.to(tl.int64)
    if posts:
        job = ring + JOBS + number % jobs * JOB
        tl.store(job.to(i64p), number)
        tl.store(job.to(i64p) + 1, layer.to(tl.int64))
        tl.store(job.to(i64p) + 2, rows.to(tl.int64))
        tl.store(job.to(i64p) + 3, count)
        tl.store((job + ROW).to(i32p) + place, pair // TOP_K, missing)
        tl.store((job + EXPERT).to(i32p) + place, expert.to(tl.int32), missing)
        tl.store((job + WEIGHT).to(f32p) + place, tl.load(weights + pair, missing), missing)
        for row in range(rows):
            if tl.max((missing & (pair // TOP_K == row)).to(tl.int32), 0) > 0:
                for first in range(0, DIM, BLOCK):
                    at = first + tl.arange(0, BLOCK)
                    value = tl.load(x + row * DIM + at, at < DIM)
                    tl.store((job + X).to(f32p) + row * DIM + at, value, at < DIM)
    tl.debug_barrier()
    if posts:
        release((ring + POSTED).to(i64p), number, ASM)
    tl.store(state + NUMBER, number)
    tl.store(state + PENDING, posts.to(tl.int64))


@triton.jit
def wait(
    ring: u8p,  # mapped memory
    state: i64p,
    limit: tl.int64,  # ns, or looks
    ASM: tl.constexpr,
):
    """Until the job that was posted last is served, the server has an error, or the limit is reached. One warp, so that
    all its threads see the same. Grid: (1,)."""
    served = (ring + SERVED).to(i64p)
    error = (ring + ERROR).to(i64p)
    if (tl.load(state + PENDING) != 0) & (tl.load(state + OUTCOME) == 0):
        number = tl.load(state + NUMBER)
        waited = tl.load(state + WAITED)
        looks = number * 0
        begin = now(looks, ASM)
        outcome = number * 0
        while (acquired(served, ASM) < number) & (outcome == 0):
            looks += 1
            outcome = acquired(error, ASM)
            if (outcome == 0) & (now(looks, ASM) - begin > limit):
                outcome = number * 0 + TIMED_OUT
                release((ring + FAILED).to(i64p), outcome, ASM)
        tl.debug_barrier()
        tl.store(state + OUTCOME, outcome)
        tl.store(state + WAITED, waited + now(looks, ASM) - begin)
        tl.store(state + PENDING, number * 0)


@triton.jit
def add_served(
    ring: u8p,  # mapped memory
    state: i64p,
    order: i32p,  # [rows, TOP_K]: as `post` made it
    ids: i64p,  # [rows, TOP_K]
    hits: f32p,  # [rows, TOP_K, N]
    out: f32p,  # the next three as in add_experts
    mix: f32p,
    streams: f32p,
    jobs: tl.int32,  # of the ring
    N: tl.constexpr,
    TOP_K: tl.constexpr,  # at most 16
    S: tl.constexpr,
    JOB: tl.constexpr,  # see `places`
    Y: tl.constexpr,
    BLOCK: tl.constexpr,  # values a program
):
    """`add_placed` (experts.py) with what the server computed. Grid: (ceil(N / BLOCK), rows)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    misses = (job_of(ring, state, jobs, JOB) + Y).to(f32p)
    total = tl.load(out + tl.program_id(1) * N + at, at < N)
    store_sum(plus_pairs(total, at, order, ids, hits, misses, N, TOP_K, True), at, out, mix, streams, N, S)
