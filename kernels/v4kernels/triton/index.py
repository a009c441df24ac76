"""The indexer of sparse attention: v4k_select, which scores all index keys for a query and chooses the best.

Three kernels, for rows of any timelines (lines.py); a row sees the first (position + 1) / 4 keys of its timeline:

  queries        rotates and transforms queries, and quantizes them to e2m1, as keys are; beside those of attention.
  index_scores   sum over heads of weight * max(s, 0), s the product of a head's query and a key.
  index_choice   the best of every BLOCK scores; then of every BLOCK of those, until one block's are left.

The sum over heads is two trees, of weights above zero and of the others, each over its heads in ascending order. Heads
are numbered for that: those above zero from 0 on, the others from the last number backwards. So both sums are the same
tree over all numbers, with zeros where the other's heads are. Neighbours of a tree are made to lie half of all rows
apart, by bits in reverse: number n is row reverse(n). Then sums of halves, and of halves of these, are the tree.

A choice is exact: by bisection for the lowest score that belongs to it, then equal ones by ascending id. Scores that
are NaN or minus infinity are never chosen, unless all keys that the row sees are. Programs that have nothing to do end,
so a launch for the most keys serves all positions.
"""

import triton
import triton.language as tl

from v4kernels.triton.dots import doubled_e2m1
from v4kernels.triton.kv import hadamard, log2, magnitude, over_root, rotated, scale_byte, turn_head
from v4kernels.triton.lines import KEY_SCALES, KEYS, POSITION, address, told
from v4kernels.triton.sums import from_e8m0, nearest
from v4kernels.triton.types import f32p, i8p, i32p, i64p, u8p


@triton.jit
def reverse(n, BITS: tl.constexpr):
    """The lowest BITS bits of n, the first one last."""
    row = n * 0
    for i in tl.static_range(BITS):
        row = (row << 1) | ((n >> i) & 1)
    return row


@triton.jit
def doubled_codes(x, N: tl.constexpr, DIMS: tl.constexpr):
    """x [N, DIMS] fp32 -> twice the nearest e2m1 values [N, DIMS/32, 32] int8, ties to even codes, and the scale bytes
    of groups [N, DIMS/32] int32. NaN does not count for the scale and becomes the highest value."""
    x = tl.reshape(x, (N, DIMS // 32, 32))
    byte = scale_byte(tl.maximum(tl.max(magnitude(x), axis=2), 7.052966104933725e-38), 6.0)  # 6 * 2^-126
    x *= from_e8m0((254 - byte) & 255)[:, :, None]
    a = tl.abs(x)
    a = tl.where(a < 6.0, a, 6.0)
    per_unit = tl.where(a < 2.0, 2.0, tl.where(a < 4.0, 1.0, 0.5))  # values between 2 and 4 are 1 apart
    twice = nearest(a * per_unit) * tl.where(a < 2.0, 1.0, tl.where(a < 4.0, 2.0, 4.0))
    return tl.where(x < 0, -twice, twice).to(tl.int8), byte


@triton.jit
def queried(
    q, products, turns, codes, scale, weight, number, token, HEADS: tl.constexpr, ROWS: tl.constexpr,
    DIMS: tl.constexpr, ROPE: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """EACH heads, group `number` of a token's."""
    head = number * EACH + tl.arange(0, EACH)
    some = head < HEADS
    group = tl.arange(0, DIMS // 32)
    every = tl.arange(0, ROWS)
    q += (token * HEADS + head[:, None]) * DIMS + tl.arange(0, DIMS)[None, :]
    x = rotated(tl.load(q, some[:, None], 0.0), turns, EACH, DIMS, DIMS, ROPE)
    value, byte = doubled_codes(hadamard(x, EACH, DIMS), EACH, DIMS)

    above = tl.load(products + token * HEADS + every, every < HEADS, 0.0) > 0
    before = tl.sum((above[None, :] & (every[None, :] < head[:, None])).to(tl.int32), axis=1)
    product = tl.load(products + token * HEADS + head, some, 0.0)
    number = tl.where(product > 0, before, ROWS - 1 - (head - before))
    row = token * ROWS + reverse(number, log2(ROWS))

    even, odd = tl.split(tl.reshape(value, (EACH, DIMS // 32, 16, 2)))
    zero = tl.zeros_like(even)
    at = row[:, None, None] * DIMS + group[None, :, None] * 32 + tl.arange(0, 16)[None, None, :]
    tl.store(codes + at, tl.where(some[:, None, None], even, zero))
    tl.store(codes + at + 16, tl.where(some[:, None, None], odd, zero))
    step = tl.where(some[:, None], 0.25 * from_e8m0(byte), 0.0)
    at = token * ROWS * (DIMS // 32) + group[None, :] * ROWS + (row - token * ROWS)[:, None]
    tl.store(scale + at, step)
    tl.store(weight + row, product * tl.reshape(over_root(DIMS * HEADS), (1,)))


@triton.jit
def queries(
    raw: f32p,  # [tokens, ALL, DIM]
    turns: f32p,  # [tokens, ROPE/2, 2]: cos, sin
    heads: f32p,  # out like raw
    q: f32p,  # [tokens, HEADS, DIMS], not rotated: of the indexer, as what follows
    products: f32p,  # [tokens, HEADS]: of the weights' projection
    codes: i8p,  # out [tokens, ROWS, DIMS]: twice e2m1 values; of every 32 first the even dims, then the odd ones
    scale: f32p,  # out [tokens, DIMS/32, ROWS]: a quarter of the groups', as both factors of products are doubled
    weight: f32p,  # out [tokens, ROWS]
    ALL: tl.constexpr,  # heads of attention
    DIM: tl.constexpr,
    EPS: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,  # a power of two, at least HEADS; rows without a head are zero
    DIMS: tl.constexpr,  # a power of two, at least 32
    ROPE: tl.constexpr,  # even; of both
    EACH: tl.constexpr,  # heads of the indexer a program
):
    """`turn_queries` (kv.py) and, by the last ROWS / EACH programs of a token, the indexer's.
    Grid: (ALL + ROWS / EACH, tokens)."""
    head = tl.program_id(0)
    token = tl.program_id(1)
    if head < ALL:
        at = (token * ALL + head).to(tl.int64) * DIM
        turn_head(raw + at, turns + token * ROPE, heads + at, DIM, ROPE, EPS)
    else:
        turns += token * ROPE
        head -= ALL
        queried(q, products, turns, codes, scale, weight, head, token, HEADS, ROWS, DIMS, ROPE, EACH)


@triton.jit
def unpacked(pair, ASM: tl.constexpr):
    """Bytes of two e2m1 codes, uint8 -> twice their values, int8: of low nibbles, of high ones.

    In PTX, four bytes at a time: `prmt` looks eight magnitudes m up, brings them to their places, and spreads signs to
    masks. 128 - m never borrows from the next byte, and with its highest bit turned it is -m.
    """
    if ASM == "ptx":
        low, high = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 codes, first, last, signs, minus;
            and.b32 codes, $2, 0x77777777;
            prmt.b32 first, 0x03020100, 0x0c080604, codes;
            shr.u32 codes, codes, 16;
            prmt.b32 last, 0x03020100, 0x0c080604, codes;
            shl.b32 signs, $2, 4;
            prmt.b32 signs, signs, signs, 0xba98;
            prmt.b32 codes, first, last, 0x6420;
            sub.u32 minus, 0x80808080, codes;
            xor.b32 minus, minus, 0x80808080;
            xor.b32 minus, minus, codes;
            and.b32 minus, minus, signs;
            xor.b32 $0, codes, minus;
            prmt.b32 signs, $2, $2, 0xba98;
            prmt.b32 codes, first, last, 0x7531;
            sub.u32 minus, 0x80808080, codes;
            xor.b32 minus, minus, 0x80808080;
            xor.b32 minus, minus, codes;
            and.b32 minus, minus, signs;
            xor.b32 $1, codes, minus;
            }
            """,
            "=&r,=r,r",
            [pair],
            dtype=(tl.int8, tl.int8),
            is_pure=True,
            pack=4,
        )
    else:
        word = pair.to(tl.int32)
        low = doubled_e2m1(word & 15).to(tl.int8)
        high = doubled_e2m1(word >> 4).to(tl.int8)
    return low, high


@triton.jit
def tree(x, N: tl.constexpr, ROWS: tl.constexpr):
    """x [N, ROWS] fp32 -> [N]: halves are added, then halves of these, until one number is left."""
    for i in tl.static_range(log2(ROWS)):
        x = tl.sum(tl.reshape(x, (N, 2, ROWS >> (i + 1))), axis=1)
    return tl.reshape(x, (N,))


@triton.jit
def scores_of(
    keys, kscale, codes, scale, weight, BLOCK: tl.constexpr, ROWS: tl.constexpr, DIMS: tl.constexpr, ASM: tl.constexpr
):
    """[BLOCK] fp32; pointers of group 0: keys [BLOCK, 16], kscale [BLOCK], codes [ROWS, 32], scale, weight [ROWS]."""
    total = tl.zeros((BLOCK, ROWS), tl.float32)
    for g in tl.static_range(DIMS // 32):
        low, high = unpacked(tl.load(keys + g * 16), ASM)
        key = tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), (BLOCK, 32))
        # 2^23 + 2^22 as float bits: the sum, below 2^22, becomes a float by its bits alone.
        zero = tl.full((BLOCK, ROWS), 0x4B400000, tl.int32)
        dot = tl.dot(key, tl.trans(tl.load(codes + g * 32)), acc=zero, out_dtype=tl.int32)
        dot = dot.to(tl.float32, bitcast=True) - 12582912.0
        step = from_e8m0(tl.load(kscale + g))[:, None] * tl.load(scale + g * ROWS)[None, :]
        total = tl.fma(dot, step, total)
    by = tl.load(weight)[None, :]
    term = by * tl.where(total > 0, total, 0.0)
    up = tree(tl.where(by > 0, term, 0.0), BLOCK, ROWS)
    return up + tree(tl.where(by > 0, 0.0, term), BLOCK, ROWS)


@triton.jit
def index_scores(
    codes: i8p,  # [tokens, ROWS, DIMS]
    scale: f32p,  # [tokens, DIMS/32, ROWS]
    weight: f32p,  # [tokens, ROWS]: all three by `queries`
    lines: i64p,  # [tokens, 4]
    part: tl.int32,
    scores: f32p,  # out [tokens, stride]: of the keys that a token sees; the rest is left as it is
    stride: tl.int32,
    ROWS: tl.constexpr,  # at least 16
    DIMS: tl.constexpr,
    BLOCK: tl.constexpr,  # keys a program scores at once
    ASM: tl.constexpr,  # see `unpacked`
):
    """Grid: (programs, tokens); any number of programs, which take blocks in turns."""
    token = tl.program_id(1)
    seen = (told(lines, token, POSITION) + 1) >> 2
    keys = address(lines, token, part, KEYS, u8p)
    kscale = address(lines, token, part, KEY_SCALES, u8p)
    row = tl.arange(0, ROWS)
    codes += (token * ROWS + row[:, None]) * DIMS + tl.arange(0, 32)[None, :]
    scale += token * (ROWS * DIMS // 32) + row
    weight += token * ROWS + row
    scores += token.to(tl.int64) * stride
    for block in range(tl.program_id(0), tl.cdiv(seen, BLOCK), tl.num_programs(0)):
        k = block * BLOCK + tl.arange(0, BLOCK)
        key = tl.minimum(k, seen - 1)
        at = keys + key[:, None] * (DIMS // 2) + tl.arange(0, 16)[None, :]
        score = scores_of(at, kscale + key * (DIMS // 32), codes, scale, weight, BLOCK, ROWS, DIMS, ASM)
        tl.store(scores + k, score, k < seen)


@triton.jit
def ordered(score):
    """fp32 -> int32 in the same order; the lowest there is for NaN and minus infinity, which are not to be chosen."""
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(score > -float("inf"), bits ^ ((bits >> 31) & 0x7FFFFFFF), -0x80000000)


@triton.jit
def last_chosen(order, TOP: tl.constexpr):
    """The TOP-th highest of order, or the lowest int32 where only so many are above that: its sign, then its bits from
    the highest on, are settled by counting."""
    found = tl.where(tl.sum((order >= 0).to(tl.int32), axis=0) >= TOP, 0, -0x80000000)
    for i in range(31):
        tried = found + (1 << (30 - i))
        found = tl.where(tl.sum((order >= tried).to(tl.int32), axis=0) >= TOP, tried, found)
    return found


@triton.jit
def index_choice(
    scores: f32p,  # [tokens, stride]: level 0: of all keys; else what the level before left
    ids: i32p,  # [tokens, stride]: theirs; not read at level 0, where they are their numbers
    lines: i64p,  # [tokens, 4]
    best: f32p,  # out [tokens, blocks, TOP]: scores of the chosen, minus infinity behind them; not at the last level
    chosen: i32p,  # out [tokens, blocks, TOP]: their ids, ascending, -1 behind them
    stride: tl.int32,
    level: tl.int32,
    last: tl.int32,  # whether this is the last level
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,  # a power of two, at least 2 * TOP and below 65,536
):
    """Grid: (blocks, tokens), as many as most scores need, one at the last level."""
    block = tl.program_id(0)
    token = tl.program_id(1)
    seen = (told(lines, token, POSITION) + 1) >> 2
    count = seen
    for _ in range(level):
        count = tl.cdiv(count, BLOCK) * TOP
    if (block * BLOCK < count) | (last != 0):
        i = block * BLOCK + tl.arange(0, BLOCK)
        from_row = token.to(tl.int64) * stride
        score = tl.load(scores + from_row + i, i < count, -float("inf"))
        score = tl.where((level == 0) & (seen <= TOP) & (i < count), 0.0, score)  # all are chosen
        order = ordered(score)
        least = last_chosen(order, TOP)
        above = order > least
        equal = (order == least) & (least > -0x80000000)
        so_far = tl.cumsum(above.to(tl.int32) + (equal.to(tl.int32) << 16), axis=0)  # of both
        missing = TOP - tl.sum(above.to(tl.int32), axis=0)
        among = so_far >> 16
        kept = above | (equal & (among <= missing))
        place = (so_far & 0xFFFF) + tl.minimum(among, missing) - 1
        to = (token * tl.num_programs(0) + block) * TOP
        name = tl.where(level == 0, i, tl.load(ids + from_row + i, (level > 0) & kept, -1))
        tl.store(chosen + to + place, name, kept)
        number = tl.sum(kept.to(tl.int32), axis=0)
        rest = tl.arange(0, BLOCK)
        empty = (rest >= number) & (rest < TOP)
        tl.store(chosen + to + rest, tl.full((BLOCK,), -1, tl.int32), empty)
        if last == 0:
            tl.store(best + to + place, score, kept)
            tl.store(best + to + rest, tl.full((BLOCK,), -float("inf"), tl.float32), empty)
