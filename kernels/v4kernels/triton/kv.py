"""What attention reads: queries, entries of the window, compressed entries and index keys.

Each begins as a linear layer's fp32 rows; the kernels here do the rest (v4k.h has the formats):

  v4k_queries         wq_a, `norm` -> qr; quantization, wq_b, `turn_queries` -> q
  v4k_window_entries  wkv, `pack_entries`
  v4k_compress        wkv and wgate, `pool`, `pack_entries` or, of index keys, `pack_keys`; then `keep_tail`

A norm is x * (1 / sqrt(sum of squares / dims + eps)), then * weight. Rotation turns the adjacent pairs (a, b) of the
last ROPE dims: a * cos - b * sin, a * sin + b * cos, each product rounded; cos and sin come from the host
(v4k_rotations). Rows are of any timelines (lines.py). A row that completes a block of RATIO positions makes its entry
or key; programs of other rows end at once.
"""

import triton
import triton.language as tl

from v4kernels.triton.lines import AHEAD, BACK, ENTRIES, KEY_SCALES, KEYS, POSITION, address, completed, told
from v4kernels.triton.sums import exp_lanes, from_e8m0, nearest, rms_factor
from v4kernels.triton.types import f32p, i64p, u8p, u16p


@triton.constexpr_function
def log2(n):
    """Of a power of two."""
    return n.bit_length() - 1


@triton.jit
def over_root(COUNT: tl.constexpr):
    """1 / sqrt(COUNT), [1, 1] fp32."""
    one = tl.full((1, 1), 1.0, tl.float32)
    return tl.div_rn(one, tl.sqrt_rn(one * COUNT))


@triton.jit
def rotated(x, turns, N: tl.constexpr, WIDTH: tl.constexpr, DIMS: tl.constexpr, ROPE: tl.constexpr):
    """x [N, WIDTH], of which DIMS count, with the adjacent pairs of the last ROPE dims turned by turns [ROPE/2, 2], a
    pointer."""
    a, b = tl.split(tl.reshape(x, (N, WIDTH // 2, 2)))
    pair = tl.arange(0, WIDTH // 2)[None, :] - (DIMS - ROPE) // 2
    turning = (pair >= 0) & (pair < ROPE // 2)
    cosine = tl.load(turns + 2 * pair, turning, 1.0)
    sine = tl.load(turns + 2 * pair + 1, turning, 0.0)
    first = tl.where(turning, a * cosine - b * sine, a)
    second = tl.where(turning, a * sine + b * cosine, b)
    return tl.reshape(tl.join(first, second), (N, WIDTH))


@triton.jit
def normed(x, weight, WIDTH: tl.constexpr, COUNT: tl.constexpr, EPS: tl.constexpr):
    """The row of COUNT numbers at x [1, WIDTH], zeros behind them; weight None: without."""
    c = tl.arange(0, WIDTH)[None, :]
    value = tl.load(x + c, c < COUNT, 0.0) * rms_factor(x, COUNT, EPS)
    if weight is not None:
        value *= tl.load(weight + c, c < COUNT, 0.0)
    return value


# -- stored numbers ---------------------------------------------------------------------------------------------------


@triton.jit
def scale_byte(top, MOST: tl.constexpr):
    """top fp32 above 0 -> b of the smallest 2^(b - 127) that is no less than top / MOST."""
    bits = tl.div_rn(top, tl.full(top.shape, MOST, tl.float32)).to(tl.int32, bitcast=True)
    return (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(tl.int32)


@triton.jit
def magnitude(x):
    """|x|, 0 of NaN: what scales are made for."""
    return tl.where(x == x, tl.abs(x), 0.0)


@triton.jit
def to_e4m3(x):
    """x fp32 -> codes of the nearest e4m3, ties to even, int32; |x| is cut to 448, NaN is 0x7f."""
    bits = x.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 0x80
    cut = tl.minimum(bits & 0x7FFFFFFF, 0x43E00000)
    rounded = cut + 0x7FFFF + ((cut >> 20) & 1)
    normal = (((rounded >> 23) - 120) << 3) | ((rounded >> 20) & 7)
    small = nearest(tl.minimum(cut, 0x3C800000).to(tl.float32, bitcast=True) * 512.0).to(tl.int32)
    code = sign | tl.where(cut < 0x3C800000, small, normal)  # 2^-6
    return tl.where(x == x, code, 0x7F)


@triton.jit
def to_bf16(x):
    """x fp32 -> bits of the nearest bf16, ties to even, int32; NaN is 0x7fc0."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x == x, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)


@triton.jit
def hadamard(x, N: tl.constexpr, DIMS: tl.constexpr):
    """Orthonormal Walsh-Hadamard transform of x [N, DIMS] fp32. Sums and differences of neighbours become the two
    halves; when every bit of an index was the lowest once, all are where they were."""
    for _ in tl.static_range(log2(DIMS)):
        a, b = tl.split(tl.reshape(x, (N, DIMS // 2, 2)))
        x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), (N, DIMS))
    return x * over_root(DIMS)


@triton.jit
def to_e2m1(x):
    """x fp32 -> codes of the nearest e2m1, ties to even, int32; |x| is cut to 6, NaN is 6, and 0 has no sign."""
    a = tl.abs(x)
    a = tl.where(a < 6.0, a, 6.0)
    per_unit = tl.where(a < 2.0, 2.0, tl.where(a < 4.0, 1.0, 0.5))  # values between 2 and 4 are 1 apart
    code = (nearest(a * per_unit) + tl.where(a < 2.0, 0.0, tl.where(a < 4.0, 2.0, 4.0))).to(tl.int32)
    return tl.where((x < 0) & (code > 0), code | 8, code)


# -- rows -------------------------------------------------------------------------------------------------------------


@triton.jit
def turn_head(x, turns, q, DIMS: tl.constexpr, ROPE: tl.constexpr, EPS: tl.constexpr):
    """The query of a head at x, to q: normed without weights, rotated, * (1 / sqrt(DIMS))."""
    WIDTH: tl.constexpr = triton.next_power_of_2(DIMS)
    c = tl.arange(0, WIDTH)[None, :]
    value = rotated(normed(x, None, WIDTH, DIMS, EPS), turns, 1, WIDTH, DIMS, ROPE)
    tl.store(q + c, value * over_root(DIMS), c < DIMS)


@triton.constexpr_function
def entry_bytes(dims, rope):
    """Of an entry: DIMS - ROPE e4m3, ROPE bf16, a scale byte of every 64 e4m3, padded to 8."""
    return dims + rope + (dims - rope + 511) // 512 * 8


@triton.constexpr_function
def groups_of(dims):
    """Groups of 64 that a program has for an entry, padding included."""
    return max(8, triton.next_power_of_2(triton.cdiv(dims, 64)))


@triton.jit
def entry_values(x, weight, turns, DIMS: tl.constexpr, ROPE: tl.constexpr, EPS: tl.constexpr):
    """What an entry of the row at x holds, [groups_of(DIMS), 64] fp32: x normed and rotated."""
    ROOM: tl.constexpr = groups_of(DIMS)
    value = normed(x, weight, ROOM * 64, DIMS, EPS)
    return tl.reshape(rotated(value, turns, 1, ROOM * 64, DIMS, ROPE), (ROOM, 64))


@triton.jit
def store_entry(value, entry, DIMS: tl.constexpr, ROPE: tl.constexpr):
    """At a pointer. Scales: the smallest 2^(b-127) >= max(amax, 1e-4) / 448."""
    PLAIN: tl.constexpr = DIMS - ROPE
    g = tl.arange(0, groups_of(DIMS))
    c = g[:, None] * 64 + tl.arange(0, 64)[None, :]
    scale = scale_byte(tl.maximum(tl.max(magnitude(value), axis=1), 1e-4), 448.0)
    code = to_e4m3(value * from_e8m0((254 - scale) & 255)[:, None])
    tl.store(entry + c, code.to(tl.uint8), c < PLAIN)
    halves = (entry + PLAIN).to(u16p) + (c - PLAIN)
    tl.store(halves, to_bf16(value).to(tl.uint16), (c >= PLAIN) & (c < DIMS))
    scales = tl.where(g < PLAIN // 64, scale, 0).to(tl.uint8)
    tl.store(entry + PLAIN + 2 * ROPE + g, scales, g < entry_bytes(DIMS, ROPE) - PLAIN - 2 * ROPE)


@triton.jit
def pack_key(x, weight, turns, lines, row, part, place, DIMS: tl.constexpr, ROPE: tl.constexpr, EPS: tl.constexpr):
    """The key of the row at x, number `place` of its timeline, normed, rotated, transformed: DIMS/2 bytes of e2m1
    pairs, the low nibble first, and DIMS/32 scales, the smallest 2^(b-127) >= max(amax, 6 * 2^-126) / 6."""
    GROUPS: tl.constexpr = DIMS // 32
    codes = address(lines, row, part, KEYS, u8p) + place.to(tl.int64) * (DIMS // 2)
    scales = address(lines, row, part, KEY_SCALES, u8p) + place.to(tl.int64) * GROUPS
    value = rotated(normed(x, weight, DIMS, DIMS, EPS), turns, 1, DIMS, DIMS, ROPE)
    value = tl.reshape(hadamard(value, 1, DIMS), (GROUPS, 32))
    top = tl.maximum(tl.max(magnitude(value), axis=1), 7.052966104933725e-38)
    scale = scale_byte(top, 6.0)
    code = to_e2m1(value * from_e8m0((254 - scale) & 255)[:, None])
    code = tl.reshape(code, (DIMS // 2, 2)) << (4 * tl.arange(0, 2))[None, :]
    tl.store(codes + tl.arange(0, DIMS // 2), tl.sum(code, axis=1).to(tl.uint8))
    tl.store(scales + tl.arange(0, GROUPS), scale.to(tl.uint8))


@triton.jit
def gate_of(gate, ape, row, position, c, mask, WIDTH: tl.constexpr, RATIO: tl.constexpr):
    """Channels c of a row: what wgate gave, and what is learned of the place in its block."""
    learned = tl.load(ape + position % RATIO * WIDTH + c, mask, 0.0)
    return tl.load(gate + row.to(tl.int64) * WIDTH + c, mask, 0.0) + learned


@triton.jit
def pool_channels(
    kv, gate, ape, lines, row, part, out, c, RATIO: tl.constexpr, DIMS: tl.constexpr, SLOTS: tl.constexpr,
    TAIL: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Channels c [CHANNELS] of the block that a row completes: its tokens by the softmax of their gates. Of overlapping
    blocks the previous one's tokens come first, with the first half of their channels; its own have the second."""
    OVERLAP: tl.constexpr = RATIO == 4
    WIDTH: tl.constexpr = 2 * DIMS if OVERLAP else DIMS
    BEFORE: tl.constexpr = RATIO if OVERLAP else 0
    last = told(lines, row, POSITION)
    block = completed(last, RATIO)
    some = c < DIMS
    since = last - told(lines, row, BACK)
    tail_kv = address(lines, row, part, TAIL, f32p)
    tail_gate = address(lines, row, part, TAIL + 1, f32p)
    first = tl.where(block > 0, 0, BEFORE)  # no block is before the first one
    top = tl.full((CHANNELS,), float("-inf"), tl.float32)
    total = tl.zeros((CHANNELS,), tl.float32)
    mixed = tl.zeros((CHANNELS,), tl.float32)
    for j in range(first, BEFORE + RATIO):
        position = block * RATIO - BEFORE + j
        at = c + tl.where(j < BEFORE, 0, WIDTH - DIMS)
        new = some & (position >= since)
        g = gate_of(gate, ape, row - last + position, position, at, new, WIDTH, RATIO)
        old = tl.load(tail_gate + position % SLOTS * WIDTH + at, some & (position < since), 0.0)
        g = tl.where(position >= since, g, old)
        top = tl.where(g > top, g, top)
    for j in range(first, BEFORE + RATIO):
        position = block * RATIO - BEFORE + j
        at = c + tl.where(j < BEFORE, 0, WIDTH - DIMS)
        new = some & (position >= since)
        kept = position % SLOTS * WIDTH + at
        g = gate_of(gate, ape, row - last + position, position, at, new, WIDTH, RATIO)
        g = tl.where(position >= since, g, tl.load(tail_gate + kept, some & (position < since), 0.0))
        k = tl.load(kv + (row - last + position).to(tl.int64) * WIDTH + at, new, 0.0)
        k = tl.where(position >= since, k, tl.load(tail_kv + kept, some & (position < since), 0.0))
        weight = exp_lanes(g - top)
        total += weight
        mixed = tl.fma(weight, k, mixed)
    tl.store(out + row.to(tl.int64) * DIMS + c, tl.div_rn(mixed, total), some)


@triton.jit
def keep_channels(
    kv, gate, ape, lines, row, part, c, RATIO: tl.constexpr, DIMS: tl.constexpr, SLOTS: tl.constexpr,
    TAIL: tl.constexpr,
):  # fmt: skip
    """Channels c of what later blocks need of a row: those of the unfinished block, and of as many whole ones as always
    fit SLOTS, are kept."""
    WIDTH: tl.constexpr = 2 * DIMS if RATIO == 4 else DIMS
    position = told(lines, row, POSITION)
    end = position + told(lines, row, AHEAD) + 1
    if position >= tl.maximum(end - (SLOTS - RATIO), 0) // RATIO * RATIO:
        some = c < WIDTH
        to = position % SLOTS * WIDTH + c
        value = tl.load(kv + row.to(tl.int64) * WIDTH + c, some, 0.0)
        tl.store(address(lines, row, part, TAIL, f32p) + to, value, some)
        value = gate_of(gate, ape, row, position, c, some, WIDTH, RATIO)
        tl.store(address(lines, row, part, TAIL + 1, f32p) + to, value, some)


# -- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit
def norm(
    x: f32p,  # [rows, COUNT]
    weight: f32p,  # [COUNT]
    y: f32p,  # out [rows, COUNT]
    COUNT: tl.constexpr,  # a multiple of 8
    EPS: tl.constexpr,
):
    """Grid: (rows,)."""
    WIDTH: tl.constexpr = triton.next_power_of_2(COUNT)
    at = tl.program_id(0).to(tl.int64) * COUNT
    c = tl.arange(0, WIDTH)[None, :]
    tl.store(y + at + c, normed(x + at, weight, WIDTH, COUNT, EPS), c < COUNT)


@triton.jit
def turn_queries(
    x: f32p,  # [tokens, heads, DIMS]
    turns: f32p,  # [tokens, ROPE/2, 2]: cos, sin
    q: f32p,  # out like x: normed without weights, rotated, * (1 / sqrt(DIMS))
    DIMS: tl.constexpr,  # even, as ROPE
    ROPE: tl.constexpr,
    EPS: tl.constexpr,
):
    """Grid: (heads, tokens)."""
    token = tl.program_id(1).to(tl.int64)
    at = (token * tl.num_programs(0) + tl.program_id(0)) * DIMS
    turn_head(x + at, turns + token * ROPE, q + at, DIMS, ROPE, EPS)


@triton.jit
def pack_entries(
    x: f32p,  # [n, DIMS]
    weight: f32p,  # [DIMS]: of the norm
    turns: f32p,  # [n, ROPE/2, 2]: cos, sin
    lines: i64p,  # [n, 4]
    part: tl.int32,
    fresh: u8p,  # out [n, bytes]: DIMS - ROPE e4m3, ROPE bf16, a scale byte of every 64 e4m3, padded to 8
    DIMS: tl.constexpr,  # DIMS - ROPE a multiple of 64
    ROPE: tl.constexpr,  # a multiple of 16
    EPS: tl.constexpr,
    RATIO: tl.constexpr,  # 0: all rows are stored, in `fresh`; else those that complete a block, in their timelines
):
    """Rows normed, rotated and stored. Grid: (n,)."""
    row = tl.program_id(0)
    place = completed(told(lines, row, POSITION), RATIO) if RATIO else row
    if place >= 0:
        entries = address(lines, row, part, ENTRIES, u8p) if RATIO else fresh
        value = entry_values(x + row.to(tl.int64) * DIMS, weight, turns + row * ROPE, DIMS, ROPE, EPS)
        store_entry(value, entries + place.to(tl.int64) * entry_bytes(DIMS, ROPE), DIMS, ROPE)


@triton.jit
def pack_keys(
    x: f32p,  # [n, DIMS]
    weight: f32p,  # [DIMS]: of the norm
    turns: f32p,  # [n, ROPE/2, 2]: cos, sin
    lines: i64p,  # [n, 4]
    part: tl.int32,
    DIMS: tl.constexpr,  # a power of two, at least 32
    ROPE: tl.constexpr,  # even
    EPS: tl.constexpr,
    RATIO: tl.constexpr,
):
    """Rows that complete a block normed, rotated, transformed and stored. Grid: (n,)."""
    row = tl.program_id(0)
    place = completed(told(lines, row, POSITION), RATIO)
    if place >= 0:
        x += row.to(tl.int64) * DIMS
        pack_key(x, weight, turns + row * ROPE, lines, row, part, place, DIMS, ROPE, EPS)


@triton.jit
def pool(
    kv: f32p,  # [n, C]; C = DIMS, twice that for ratio 4, whose blocks overlap
    gate: f32p,  # [n, C]
    ape: f32p,  # [RATIO, C]
    lines: i64p,  # [n, 4]
    part: tl.int32,
    out: f32p,  # [n, DIMS]: of rows that complete a block; the others are left as they are
    RATIO: tl.constexpr,
    DIMS: tl.constexpr,
    SLOTS: tl.constexpr,
    TAIL: tl.constexpr,  # TAIL_KV or KEY_TAIL_KV: [SLOTS, C] of tokens before the step, by position mod SLOTS
    CHANNELS: tl.constexpr,  # a program
):
    """Grid: (n, ceil(DIMS / CHANNELS))."""
    row = tl.program_id(0)
    if completed(told(lines, row, POSITION), RATIO) >= 0:
        c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        pool_channels(kv, gate, ape, lines, row, part, out, c, RATIO, DIMS, SLOTS, TAIL, CHANNELS)


@triton.jit
def keep_tail(
    kv: f32p,  # [n, C], as `pool` has them
    gate: f32p,  # [n, C]
    ape: f32p,  # [RATIO, C]
    lines: i64p,  # [n, 4]
    part: tl.int32,
    RATIO: tl.constexpr,
    DIMS: tl.constexpr,
    SLOTS: tl.constexpr,
    TAIL: tl.constexpr,
    CHANNELS: tl.constexpr,  # a program
):
    """Comes behind `pool` of all rows, which reads what this overwrites. Grid: (n, ceil(C / CHANNELS))."""
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    keep_channels(kv, gate, ape, lines, tl.program_id(0), part, c, RATIO, DIMS, SLOTS, TAIL)
