"""Attention over packed entries: v4k_attend, in four steps that a card's programs share, and the ring of the window.

attend_scores    s[token, key, head] = lanes(8) of q times key
attend_weights   of every run of 256 keys, in blocks of 64: e^(s - peak), peak the highest so far; by what each block
                 shrinks what was before it; the run's peak and total
attend_values    of every run: weights times values, key after key
attend_merge     runs in order, the sink, division, the turning back of the last ROPE columns
keep_window      the last entries into the ring, as soon as no step reads it any more

A token's keys are those of the window, the oldest first, then compressed entries; `keys` is how many. An entry has
PLAIN = DIM - ROPE bytes of e4m3, ROPE bf16, a scale byte for every 64 of the former, padding to BYTES, a multiple of 8.
Tokens are of any timelines (lines.py): those of a step's own rows have their entries in `fresh` [tokens, BYTES], row by
row, those before in their timeline's ring [ring_rows, BYTES]. Programs of the first axis of a grid share blocks or runs
however many there are, so one launch serves all positions.
"""

import triton
import triton.language as tl

from v4kernels.triton.lines import AHEAD, BACK, ENTRIES, POSITION, RING, address, told
from v4kernels.triton.quantize import quantized
from v4kernels.triton.sums import exp_lanes, from_bf16, lanes_total
from v4kernels.triton.types import f32p, i8p, i32p, i64p, u8p

BLOCK_KEYS = tl.constexpr(64)  # one step of the online softmax
RUN_BLOCKS = tl.constexpr(4)  # of one partial result


@triton.jit
def seen(lines, token, selected, WINDOW: tl.constexpr, RATIO: tl.constexpr, TOP: tl.constexpr):
    """Position of a token, its keys in the window, and all of them."""
    position = told(lines, token, POSITION)
    window = tl.minimum(position + 1, WINDOW)
    keys = window
    if TOP:
        i = tl.arange(0, triton.next_power_of_2(TOP))
        some = tl.load(selected + token * TOP + i, i < TOP, -1) >= 0
        keys += tl.sum(some.to(tl.int32))
    elif RATIO:
        keys += (position + 1) // RATIO
    return position, window, keys


@triton.jit
def entry_of(
    j, token, position, first, window, ring, ring_rows, fresh, entries, selected, RATIO: tl.constexpr,
    TOP: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Pointer to the j-th keys of a token, j below their number; j may be a number or a block. `first` is the position
    of its timeline's first row."""
    oldest = position + 1 - window
    at = oldest + j
    slot = oldest % ring_rows + j
    slot = tl.where(slot >= ring_rows, slot - ring_rows, slot)
    entry = tl.where(at >= first, fresh + (token - position + at) * BYTES, ring + slot * BYTES)
    if RATIO:
        i = tl.maximum(j - window, 0)
        if TOP:
            i = tl.load(selected + token * TOP + i)
        entry = tl.where(j < window, entry, entries + i.to(tl.int64) * BYTES)
    return entry


@triton.jit
def scale_of(byte):
    """2^120 times the scale, as codes are 2^-120 times their values."""
    return ((byte.to(tl.int32) + 120) << 23).to(tl.float32, bitcast=True)


@triton.jit
def from_e4m3(byte):
    """Codes -> fp32 bits of 2^-120 times their values; the sign is copied to where the mask leaves its first."""
    return (byte.to(tl.int32) << 24 >> 4) & -0x78100000


@triton.jit
def halves_of(entry, PLAIN: tl.constexpr):
    """Pointers to the bf16 of entries."""
    return (entry + PLAIN).to(tl.pointer_type(tl.uint16))


@triton.jit
def attend_scores(
    q: f32p,  # [tokens, ALL, DIM]
    lines: i64p,  # [tokens, 4]
    part: tl.int32,
    fresh: u8p,  # [tokens, BYTES]
    selected: i32p,  # [tokens, TOP]: ascending, -1 behind them
    scores: f32p,  # out [tokens, room, ALL]
    ring_rows: tl.int32,  # at least WINDOW
    room: tl.int32,  # at least the keys of any token
    ALL: tl.constexpr,  # heads
    DIM: tl.constexpr,  # of a head
    ROPE: tl.constexpr,
    WINDOW: tl.constexpr,
    RATIO: tl.constexpr,  # positions of a compressed entry; 0: there are none
    TOP: tl.constexpr,  # entries that may be selected; 0: all are visible
    BYTES: tl.constexpr,
    HEADS: tl.constexpr,  # of a program
):
    """Grid: (any number, ceil(ALL / HEADS), tokens)."""
    PLAIN: tl.constexpr = DIM - ROPE
    token = tl.program_id(2)
    position, window, keys = seen(lines, token, selected, WINDOW, RATIO, TOP)
    first = position - told(lines, token, BACK)
    ring = address(lines, token, part, RING, u8p)
    entries = address(lines, token, part, ENTRIES, u8p) if RATIO else ring
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    lane = tl.arange(0, 8)[None, :]
    q += (token * ALL + tl.minimum(h, ALL - 1)).to(tl.int64)[:, None] * DIM + lane
    scores += (token * room).to(tl.int64) * ALL + h[:, None]
    for block in range(tl.program_id(0), tl.cdiv(keys, BLOCK_KEYS), tl.num_programs(0)):
        j = tl.arange(0, BLOCK_KEYS) + block * BLOCK_KEYS
        entry = entry_of(
            tl.minimum(j, keys - 1), token, position, first, window, ring, ring_rows, fresh, entries, selected,
            RATIO, TOP, BYTES,
        )  # fmt: skip
        lanes = tl.zeros((HEADS, BLOCK_KEYS, 8), tl.float32)
        for group in range(PLAIN // 64):
            scale = scale_of(tl.load(entry + PLAIN + 2 * ROPE + group))[:, None]
            for step in tl.static_range(8):
                i = group * 64 + step * 8
                key = from_e4m3(tl.load(entry[:, None] + i + lane)).to(tl.float32, bitcast=True) * scale
                lanes = step_of_lanes(tl.load(q + i), key, lanes, HEADS)
        rope = halves_of(entry, PLAIN)[:, None] + lane
        for i in range(0, ROPE, 8):
            lanes = step_of_lanes(tl.load(q + PLAIN + i), from_bf16(tl.load(rope + i)), lanes, HEADS)
        total = lanes_total(tl.reshape(lanes, (HEADS * BLOCK_KEYS, 8)), HEADS * BLOCK_KEYS)
        tl.store(
            scores + j[None, :] * ALL, tl.reshape(total, (HEADS, BLOCK_KEYS)), (j < keys)[None, :] & (h < ALL)[:, None]
        )


@triton.jit
def step_of_lanes(q, key, lanes, HEADS: tl.constexpr):
    """lanes [HEADS, BLOCK_KEYS, 8] and q [HEADS, 8] times key [BLOCK_KEYS, 8]."""
    SHAPE: tl.constexpr = (HEADS, BLOCK_KEYS, 8)
    return tl.fma(tl.broadcast_to(q[:, None, :], SHAPE), tl.broadcast_to(key[None, :, :], SHAPE), lanes)


@triton.jit
def attend_weights(
    scores: f32p,  # [tokens, room, ALL]
    lines: i64p,  # [tokens, 4]
    selected: i32p,  # [tokens, TOP]
    weights: f32p,  # out [tokens, room, ALL]
    factors: f32p,  # out [tokens, room / 64, ALL]: what the sums of the blocks before are multiplied by
    peaks: f32p,  # out [tokens, room / 256, ALL]
    totals: f32p,  # out [tokens, room / 256, ALL]
    room: tl.int32,  # a multiple of 256
    ALL: tl.constexpr,
    WINDOW: tl.constexpr,
    RATIO: tl.constexpr,
    TOP: tl.constexpr,
    HEADS: tl.constexpr,
):
    """A score that is not finite makes a head's peak NaN, from there on. Grid: (any number, ceil(ALL / HEADS),
    tokens)."""
    token = tl.program_id(2)
    _, _, keys = seen(lines, token, selected, WINDOW, RATIO, TOP)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    real = h < ALL
    scores += (token * room).to(tl.int64) * ALL + h[:, None]
    weights += (token * room).to(tl.int64) * ALL + h[:, None]
    blocks = tl.cdiv(keys, BLOCK_KEYS)
    for run in range(tl.program_id(0), tl.cdiv(blocks, RUN_BLOCKS), tl.num_programs(0)):
        peak = tl.full((HEADS,), float("-inf"), tl.float32)
        total = tl.zeros((HEADS,), tl.float32)
        for block in range(run * RUN_BLOCKS, tl.minimum(run * RUN_BLOCKS + RUN_BLOCKS, blocks)):
            j = tl.arange(0, 8)[None, :] + block * BLOCK_KEYS
            high = tl.full((HEADS, 8), float("-inf"), tl.float32)
            magnitude = tl.zeros((HEADS, 8), tl.int32)
            for i in tl.static_range(0, BLOCK_KEYS, 8):
                some = (j + i < keys) & real[:, None]
                score = tl.load(scores + (j + i) * ALL, some, 0.0)
                magnitude = tl.maximum(magnitude, score.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
                high = tl.where(some & (score > high), score, high)
            top = tl.max(high, axis=1)
            top = tl.where(top > peak, top, peak)
            top = tl.where(tl.max(magnitude, axis=1) < 0x7F800000, top, float("nan"))
            factor = tl.where(total == 0.0, 0.0, exp_lanes(peak - top))
            sums = tl.zeros((HEADS, 8), tl.float32)
            for i in tl.static_range(0, BLOCK_KEYS, 8):
                some = (j + i < keys) & real[:, None]
                weight = exp_lanes(tl.load(scores + (j + i) * ALL, some, 0.0) - top[:, None])
                tl.store(weights + (j + i) * ALL, weight, some)
                sums += tl.where(some, weight, 0.0)
            total = total * factor + lanes_total(sums, HEADS)
            tl.store(factors + (token * (room // BLOCK_KEYS) + block) * ALL + h, factor, real)
            peak = top
        at = (token * (room // BLOCK_KEYS // RUN_BLOCKS) + run) * ALL + h
        tl.store(peaks + at, peak, real)
        tl.store(totals + at, total, real)


@triton.jit
def columns_of(entry, c, DIM: tl.constexpr, ROPE: tl.constexpr):
    """Columns c of an entry, 0 behind the last."""
    PLAIN: tl.constexpr = DIM - ROPE
    plain = c < PLAIN
    rope = (c >= PLAIN) & (c < DIM)
    code = from_e4m3(tl.load(entry + c, plain, 0))
    scale = scale_of(tl.load(entry + PLAIN + 2 * ROPE + c // 64, plain, 0))
    half = from_bf16(tl.load(halves_of(entry, PLAIN) + c - PLAIN, rope, 0))
    return tl.where(plain, code.to(tl.float32, bitcast=True) * scale, half)


@triton.jit
def attend_values(
    weights: f32p,  # [tokens, room, ALL]
    factors: f32p,  # [tokens, room / 64, ALL]
    lines: i64p,  # the next five as in attend_scores
    part: tl.int32,
    fresh: u8p,
    selected: i32p,
    ring_rows: tl.int32,
    parts: f32p,  # out [tokens, room / 256, ALL, DIM]
    room: tl.int32,
    ALL: tl.constexpr,
    DIM: tl.constexpr,
    ROPE: tl.constexpr,
    WINDOW: tl.constexpr,
    RATIO: tl.constexpr,
    TOP: tl.constexpr,
    BYTES: tl.constexpr,
    HEADS: tl.constexpr,  # a program's tile
    COLUMNS: tl.constexpr,
    UNROLL: tl.constexpr,  # keys whose loads are under way at a time
):
    """Grid: (any number, ceil(ALL / HEADS) * ceil(DIM / COLUMNS), tokens)."""
    TILES: tl.constexpr = (DIM + COLUMNS - 1) // COLUMNS
    token = tl.program_id(2)
    position, window, keys = seen(lines, token, selected, WINDOW, RATIO, TOP)
    first = position - told(lines, token, BACK)
    # Columns are loaded byte by byte, so that neighbours have neighbours': then a thread's weights come by fours.
    ring = address(lines, token, part, RING, u8p, 1)
    entries = address(lines, token, part, ENTRIES, u8p, 1) if RATIO else ring
    h = tl.program_id(1) // TILES * HEADS + tl.arange(0, HEADS)[:, None]
    c = tl.program_id(1) % TILES * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    real = h < ALL
    weights += (token * room).to(tl.int64) * ALL + h
    blocks = tl.cdiv(keys, BLOCK_KEYS)
    for run in range(tl.program_id(0), tl.cdiv(blocks, RUN_BLOCKS), tl.num_programs(0)):
        out = tl.zeros((HEADS, COLUMNS), tl.float32)
        for block in range(run * RUN_BLOCKS, tl.minimum(run * RUN_BLOCKS + RUN_BLOCKS, blocks)):
            out *= tl.load(factors + (token * (room // BLOCK_KEYS) + block) * ALL + h, real, 0.0)
            stop = tl.minimum(block * BLOCK_KEYS + BLOCK_KEYS, keys)
            for j in tl.range(block * BLOCK_KEYS, stop, loop_unroll_factor=UNROLL):
                entry = entry_of(
                    j, token, position, first, window, ring, ring_rows, fresh, entries, selected, RATIO, TOP, BYTES
                )
                value = tl.broadcast_to(columns_of(entry, c, DIM, ROPE), (HEADS, COLUMNS))
                weight = tl.load(weights + j * ALL, real, 0.0)
                out = tl.fma(tl.broadcast_to(weight, (HEADS, COLUMNS)), value, out)
        at = (token * (room // BLOCK_KEYS // RUN_BLOCKS) + run).to(tl.int64) * ALL + h
        tl.store(parts + at * DIM + c, out, real & (c < DIM))


@triton.jit
def attend_merge(
    parts: f32p,  # [tokens, room / 256, ALL, DIM]
    peaks: f32p,  # [tokens, room / 256, ALL]
    totals: f32p,  # [tokens, room / 256, ALL]
    sink: f32p,  # [ALL]
    turns: f32p,  # [tokens, ROPE / 2, 2]: cos, sin
    lines: i64p,  # [tokens, 4]
    selected: i32p,  # [tokens, TOP]
    heads: f32p,  # out [tokens, ALL, DIM]
    codes: i8p,  # out [tokens, ALL, DIM]: the same quantized
    scale: f32p,  # out [tokens, ALL, DIM/32]
    room: tl.int32,
    ALL: tl.constexpr,
    DIM: tl.constexpr,
    ROPE: tl.constexpr,
    WINDOW: tl.constexpr,
    RATIO: tl.constexpr,
    TOP: tl.constexpr,
    QUANTIZED: tl.constexpr,  # whether codes and scales are made; DIM is a multiple of 32 then
):
    """Grid: (ALL, tokens)."""
    COLUMNS: tl.constexpr = triton.next_power_of_2(DIM)
    h = tl.program_id(0)
    token = tl.program_id(1)
    _position, _window, keys = seen(lines, token, selected, WINDOW, RATIO, TOP)
    runs = room // BLOCK_KEYS // RUN_BLOCKS
    c = tl.arange(0, COLUMNS)
    at = (token * runs).to(tl.int64) * ALL + h
    out = tl.load(parts + at * DIM + c, c < DIM, 0.0)
    peak = tl.load(peaks + at)
    total = tl.load(totals + at)
    for _ in range(1, tl.cdiv(keys, BLOCK_KEYS * RUN_BLOCKS)):
        at += ALL
        more = tl.load(peaks + at)
        top = tl.where((more > peak) | (more != more), more, peak)
        f = exp_lanes(more - top)
        t = exp_lanes(peak - top)
        out = out * t + tl.load(parts + at * DIM + c, c < DIM, 0.0) * f
        total = total * t + tl.load(totals + at) * f
        peak = top
    last = tl.load(sink + h)
    top = tl.where(peak > last, peak, last)
    f = exp_lanes(peak - top)
    out *= tl.div_rn(f, total * f + exp_lanes(last - top))
    pair = tl.arange(0, COLUMNS // 2)
    turned = (pair >= (DIM - ROPE) // 2) & (pair < DIM // 2)
    turns += token * ROPE + 2 * pair - (DIM - ROPE)
    cos = tl.load(turns, turned, 0.0)
    sin = -tl.load(turns + 1, turned, 0.0)
    a, b = tl.split(tl.reshape(out, (COLUMNS // 2, 2)))
    first = tl.where(turned, a * cos - b * sin, a)
    second = tl.where(turned, a * sin + b * cos, b)
    out = tl.reshape(tl.join(first, second), (COLUMNS,))
    head = (token * ALL + h).to(tl.int64)
    tl.store(heads + head * DIM + c, out, c < DIM)
    if QUANTIZED:
        code, step = quantized(tl.reshape(out, (COLUMNS // 32, 32)), COLUMNS // 32)
        group = tl.arange(0, COLUMNS // 32)
        within = group[:, None] * 32 + tl.arange(0, 32)[None, :]
        tl.store(codes + head * DIM + within, code, within < DIM)
        tl.store(scale + head * (DIM // 32) + group, step, group < DIM // 32)


@triton.jit
def keep_window(
    fresh: i64p,  # [tokens, BYTES / 8]
    lines: i64p,  # [tokens, 4]
    part: tl.int32,
    ring_rows: tl.int32,
    BYTES: tl.constexpr,
):
    """Grid: (tokens,)."""
    token = tl.program_id(0)
    if told(lines, token, AHEAD) < ring_rows:
        word = tl.arange(0, triton.next_power_of_2(BYTES // 8))
        some = word < BYTES // 8
        slot = told(lines, token, POSITION) % ring_rows
        ring = address(lines, token, part, RING, i64p) + slot * (BYTES // 8)
        tl.store(ring + word, tl.load(fresh + token * (BYTES // 8) + word, some), some)
