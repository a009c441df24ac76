"""What attention makes of a step's few rows once they are multiplied: one launch, whose programs have a part of a row
each.

  0  qr: the low-rank query normed, and quantized
  1  the row's own entry, for this step and for the window
  2  of the compressor: the entry of a block that the row completes; the row is kept for later blocks
  3  of the indexer's compressor: the same of keys

Rows are so few that what they keep overwrites nothing that others of them read: rings and tails have SPARE_ROWS more
than that. Where there are more rows each part is a launch of its own (kv.py, attend.py), and what is kept comes last.
"""

import triton
import triton.language as tl

from v4kernels.triton.kv import (
    entry_bytes,
    entry_values,
    keep_channels,
    normed,
    pack_key,
    pool_channels,
    store_entry,
)  # fmt: skip
from v4kernels.triton.lines import ENTRIES, KEY_TAIL_KV, POSITION, RING, TAIL_KV, address, completed, told
from v4kernels.triton.quantize import quantized
from v4kernels.triton.types import f32p, i8p, i64p, u8p


@triton.jit
def query(low, weight, qr, codes, scale, RANK: tl.constexpr, EPS: tl.constexpr, QUANTIZED: tl.constexpr):
    """Pointers to a row each."""
    WIDTH: tl.constexpr = triton.next_power_of_2(RANK)
    c = tl.arange(0, WIDTH)[None, :]
    value = normed(low, weight, WIDTH, RANK, EPS)
    tl.store(qr + c, value, c < RANK)
    if QUANTIZED:
        code, step = quantized(tl.reshape(value, (WIDTH // 32, 32)), WIDTH // 32)
        group = tl.arange(0, WIDTH // 32)
        at = group[:, None] * 32 + tl.arange(0, 32)[None, :]
        tl.store(codes + at, code, at < RANK)
        tl.store(scale + group, step, group < RANK // 32)


@triton.jit
def compress(
    kv, gate, ape, weight, turns, lines, row, part, pooled, RATIO: tl.constexpr, DIMS: tl.constexpr,
    ROPE: tl.constexpr, EPS: tl.constexpr, SLOTS: tl.constexpr, IS_INDEX: tl.constexpr,
):  # fmt: skip
    """A row of one compressor; `pooled` has room for what it completes."""
    TAIL: tl.constexpr = KEY_TAIL_KV if IS_INDEX else TAIL_KV
    WIDTH: tl.constexpr = triton.next_power_of_2(DIMS)
    place = completed(told(lines, row, POSITION), RATIO)
    if place >= 0:
        c = tl.arange(0, WIDTH)
        pool_channels(kv, gate, ape, lines, row, part, pooled, c, RATIO, DIMS, SLOTS, TAIL, WIDTH)
        tl.debug_barrier()
        x = pooled + row.to(tl.int64) * DIMS
        if IS_INDEX:
            pack_key(x, weight, turns, lines, row, part, place, DIMS, ROPE, EPS)
        else:
            value = entry_values(x, weight, turns, DIMS, ROPE, EPS)
            entries = address(lines, row, part, ENTRIES, u8p)
            store_entry(value, entries + place.to(tl.int64) * entry_bytes(DIMS, ROPE), DIMS, ROPE)
    for first in tl.static_range(0, 2 * DIMS if RATIO == 4 else DIMS, WIDTH):
        c = first + tl.arange(0, WIDTH)
        keep_channels(kv, gate, ape, lines, row, part, c, RATIO, DIMS, SLOTS, TAIL)


@triton.jit
def feed(
    low: f32p,  # [n, RANK]
    q_norm: f32p,  # [RANK]
    qr: f32p,  # out [n, RANK]
    qr_codes: i8p,  # out [n, RANK]
    qr_scale: f32p,  # out [n, RANK/32]
    latent: f32p,  # [n, DIMS]
    kv_norm: f32p,  # [DIMS]
    turns: f32p,  # [n, ROPE/2, 2]: cos, sin
    lines: i64p,  # [n, 4]
    part: tl.int32,
    fresh: u8p,  # out [n, bytes of an entry]
    ring_rows: tl.int32,
    block_turns: f32p,  # [n, ROPE/2, 2]: of the blocks that rows complete
    kv: f32p,  # [n, C]: the next five of the compressor, as kv.py has them
    gate: f32p,  # [n, C]
    ape: f32p,  # [RATIO, C]
    norm: f32p,  # [DIMS]
    pooled: f32p,  # out [n, DIMS]
    key_kv: f32p,  # the next five of the indexer's
    key_gate: f32p,
    key_ape: f32p,
    key_norm: f32p,
    key_pooled: f32p,
    RANK: tl.constexpr,
    QUANTIZED: tl.constexpr,  # whether codes and scales of qr are made; RANK is a multiple of 32 then
    DIMS: tl.constexpr,
    ROPE: tl.constexpr,
    EPS: tl.constexpr,
    RATIO: tl.constexpr,  # 0: there is no compressor
    SLOTS: tl.constexpr,  # of tails
    KEY_DIMS: tl.constexpr,  # 0: there is no indexer
):
    """Grid: (4, n); (3, n) without an indexer, (2, n) without a compressor."""
    row = tl.program_id(1)
    if tl.program_id(0) == 0:
        at = row.to(tl.int64) * RANK
        query(low + at, q_norm, qr + at, qr_codes + at, qr_scale + at // 32, RANK, EPS, QUANTIZED)
    elif tl.program_id(0) == 1:
        BYTES: tl.constexpr = entry_bytes(DIMS, ROPE)
        value = entry_values(latent + row.to(tl.int64) * DIMS, kv_norm, turns + row * ROPE, DIMS, ROPE, EPS)
        store_entry(value, fresh + row * BYTES, DIMS, ROPE)
        slot = told(lines, row, POSITION) % ring_rows
        store_entry(value, address(lines, row, part, RING, u8p) + slot * BYTES, DIMS, ROPE)
    elif RATIO:
        block_turns += row * ROPE
        if tl.program_id(0) == 2:
            compress(kv, gate, ape, norm, block_turns, lines, row, part, pooled, RATIO, DIMS, ROPE, EPS, SLOTS, False)
        elif KEY_DIMS:
            compress(
                key_kv, key_gate, key_ape, key_norm, block_turns, lines, row, part, key_pooled, RATIO, KEY_DIMS, ROPE,
                EPS, SLOTS, True,
            )  # fmt: skip
