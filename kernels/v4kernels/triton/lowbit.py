"""Products with weights in q3 and q2 (formats.py), whose integer dots have the multipliers in them.

In PTX codes are int16, eight inputs of q2 each, and of q3 their first parts, whose second ones are as many bytes;
inputs are int64, eight each. So all have one shape, [ROWS, 32] of a step, and one layout: a thread takes two groups of
a row at once, lanes 2i and 2i + 1, whose codes are a load of 128 bits, and a group is four elements, which one piece of
assembly takes. For other GPUs and for Triton's interpreter they are words of int32, [ROWS, 8], and codes of four inputs
a byte: c0 of four bytes, then c1, c2 and c3.
"""

import triton
import triton.language as tl

from v4kernels.formats import LEVELS, MULTIPLIERS
from v4kernels.triton.amd import dot4, perm
from v4kernels.triton.dots import signed_byte
from v4kernels.triton.sums import from_bf16


def table(values: tuple[int, ...]) -> int:
    """Eight int8 in one int64, the first in the lowest byte; four of them twice."""
    return int.from_bytes(bytes(v & 0xFF for v in (values * 2)[:8]), "little", signed=True)


def halves(number: int) -> str:
    """An int64 as two operands of PTX."""
    return f"0x{number & 0xFFFFFFFF:08x}, 0x{number >> 32 & 0xFFFFFFFF:08x}"


assert MULTIPLIERS[8:] == tuple(-m for m in MULTIPLIERS[:8])
Q3, Q2 = tl.constexpr(table(LEVELS["q3"])), tl.constexpr(table(LEVELS["q2"]))
MAGNITUDES = tl.constexpr(table(MULTIPLIERS[:8]))


def dot_in_ptx(form: str) -> str:
    """The two runs of a group: a product of four codes takes their levels, looked up by `prmt`, and the inputs that
    they belong to, which another one brings together. Out: the sum of either run, as int16, and nothing in three more
    operands. In: codes, of q3 their second part, inputs."""
    q3 = form == "q3"
    inputs, pairs = (7, ("0x5410", "0x7632")) if q3 else (6, ("0x6420", "0x7531"))
    levels = halves(table(LEVELS[form])) if q3 else f"0, {halves(table(LEVELS[form])).split()[1]}"
    lines = [".reg .b32 x0, x1, x2, x3, sum0, sum1, some, other, four, levels, inputs, above, second, shifted;"]
    if q3:
        lines += ["shr.u32 above, $6, 1;", lop3("second", "above", "$6", "0x66666666")]
    for run, word in enumerate(("$4", "$5")):
        lines += [f"mov.b64 {{x{2 * i}, x{2 * i + 1}}}, ${inputs + 2 * run + i};" for i in range(2)]
        lines += _selectors_q3(word, "$6", run) if q3 else _selectors_q2(word)
        for i in range(4):
            selectors, pair = ("some", "other")[i % 2], f"x{i // 2 * 2}, x{i // 2 * 2 + 1}, {pairs[i % 2]}"
            lines += [f"shr.u32 {selectors}, {selectors}, 16;"] if i >= 2 else []
            lines += [f"prmt.b32 levels, {levels}, {selectors};", f"prmt.b32 inputs, {pair};"]
            lines += [f"dp4a.s32.s32 sum{run}, levels, inputs, {f'sum{run}' if i else 0};"]
    lines += ["prmt.b32 $0, sum0, sum1, 0x5410;", *(f"mov.b32 ${i}, 0;" for i in (1, 2, 3))]
    return "{\n" + "\n".join(lines) + "\n}"


def lop3(to: str, one: str, other: str, mask: str) -> str:
    """Bits of `one` where the mask has ones, else of the other."""
    return f"lop3.b32 {to}, {one}, {other}, {mask}, 0xe4;"


def _selectors_q2(word: str) -> list[str]:
    """By nibbles: codes 0 and 2 of every four, and codes 1 and 3; plus 4, as levels are the upper table."""
    return [
        "mov.b32 four, 0x44444444;",
        f"lop3.b32 some, {word}, 0x33333333, four, 0xea;",  # and, or
        f"shr.u32 other, {word}, 2;",
        "lop3.b32 other, other, 0x33333333, four, 0xea;",
    ]


def _selectors_q3(word: str, raw: str, run: int = 0) -> list[str]:
    """By nibbles: codes 0 and 1 of every four, and codes 2 and 3. `above` has the second part `raw` a bit lower, and
    `second` the codes 2 of the first run."""
    of_second = f"shl.b32 shifted, {raw}, 3;", lop3("other", "shifted", "second", "0x10101010")
    if run:
        of_second = "shr.u32 shifted, second, 4;", lop3("other", "above", "shifted", "0x10101010")
    return [
        *of_second,
        f"shr.u32 shifted, {word}, 1;",
        lop3("some", "shifted", word, "0x40404040"),
        "and.b32 some, some, 0x77777777;",
        lop3("other", "shifted", "other", "0x20202020"),
        f"shl.b32 shifted, {word}, 3;",
        lop3("other", "shifted", "other", "0x40404040"),
        "and.b32 other, other, 0x77777777;",
    ]


DOT_Q3, DOT_Q2 = tl.constexpr(dot_in_ptx("q3")), tl.constexpr(dot_in_ptx("q2"))

# Sums of two runs, as int16, times their multipliers. A mask of each sign makes of a magnitude its negative less one; a
# second product takes that back.
TIMES = tl.constexpr(f"""
    {{
    .reg .b32 shifted, signs, magnitudes, sum, excess;
    shl.b32 shifted, $2, 4;
    prmt.b32 signs, $2, shifted, 0x008c;
    and.b32 magnitudes, $2, 0x77;
    prmt.b32 magnitudes, {halves(table(MULTIPLIERS[:8]))}, magnitudes;
    xor.b32 magnitudes, magnitudes, signs;
    dp2a.lo.s32.s32 sum, $1, magnitudes, 0;
    dp2a.lo.s32.s32 excess, $1, signs, 0;
    sub.s32 $0, sum, excess;
    }}
    """)


def values_in_ptx(form: str) -> str:
    """Half a run: levels times its multiplier, looked up in a table of its own. Out: two words of four. In, all but
    codes four times: the run's codes, of q3 the second part of its group, the table, and by how much the codes are
    shifted down, of q3 the second part as well."""
    q3 = form == "q3"
    table, places, orders = ("$4, $8", "$12", ("0x5410", "0x7632")) if q3 else ("$3, $3", "$7", ("0x5140", "0x7362"))
    lines = [".reg .b32 raw, above, second, shifted, some, other, one, two;"]
    if q3:
        lines += ["shr.u32 raw, $3, $16;", "shr.u32 above, raw, 1;", lop3("second", "above", "raw", "0x66666666")]
        lines += _selectors_q3("$2", "raw")
    else:
        lines += ["and.b32 some, $2, 0x33333333;", "shr.u32 other, $2, 2;", "and.b32 other, other, 0x33333333;"]
    for selectors, value in (("some", "one"), ("other", "two")):
        lines += [f"shr.u32 {selectors}, {selectors}, {places};", f"prmt.b32 {value}, {table}, {selectors};"]
    lines += [f"prmt.b32 ${i}, one, two, {order};" for i, order in enumerate(orders)]
    return "{\n" + "\n".join(lines) + "\n}"


VALUES_Q3, VALUES_Q2 = tl.constexpr(values_in_ptx("q3")), tl.constexpr(values_in_ptx("q2"))


@triton.constexpr_function
def half(number: int, i: int) -> int:
    """Of an int64, the lower int32 or the higher."""
    word = number >> (32 * i) & 0xFFFFFFFF
    return word - (word >> 31 << 32)


@triton.constexpr_function
def total(number: int, i: int) -> int:
    """Of the same four int8, byte k times 256^k."""
    word = half(number, i)
    return sum(((word >> (8 * k) & 0xFF ^ 0x80) - 0x80) << (8 * k) for k in range(4))


@triton.constexpr_function
def has_runs(FORMAT: str) -> bool:
    return FORMAT in ("q3", "q2")


@triton.constexpr_function
def form_of(ASM: str, ROWS: int) -> str:
    """In PTX a thread must hold a whole group, which it does where a program has enough of them."""
    return "plain" if ASM == "ptx" and ROWS < 16 else ASM


@triton.constexpr_function
def elements(ASM: str) -> int:
    """Of a group's codes."""
    return 4 if ASM == "ptx" else 1


@triton.jit
def lane_of(EACH: tl.constexpr):
    """Of every element, EACH a group: [1, 8 * EACH]."""
    return tl.arange(0, 8 * EACH)[None, :] // EACH


@triton.jit
def weights_at(w, wscale, row, K: tl.constexpr, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """What `step` reads of rows [ROWS, 1] of a matrix: pointers of the first step to codes, to their second parts
    (of q2 to nothing of its own) and to multipliers, and the scales of the rows."""
    GROUPS: tl.constexpr = K // 32
    BYTES: tl.constexpr = 12 if FORMAT == "q3" else 8
    if ASM == "ptx":
        place = tl.arange(0, 32)[None, :]
        codes = w.to(tl.pointer_type(tl.int16)) + row * (GROUPS * BYTES // 2) + place
        second = w.to(tl.pointer_type(tl.uint8)) + row * (GROUPS * BYTES) + GROUPS * 8 + place
    else:
        codes = w.to(tl.pointer_type(tl.int32)) + row * (GROUPS * BYTES // 4) + lane_of(1) * 2
        second = w.to(tl.pointer_type(tl.int32)) + row * (GROUPS * BYTES // 4) + GROUPS * 2 + lane_of(1)
    own = wscale.to(tl.pointer_type(tl.uint8)) + row * (GROUPS + 2) + lane_of(1) * 0
    return codes, second, own + 2 + lane_of(1), row_scale(own)


@triton.jit
def inputs_at(x, xscale, row, ASM: tl.constexpr):
    """The same of one token's inputs, a copy for every row: pointers to codes and scales."""
    if ASM == "ptx":
        codes = x.to(tl.pointer_type(tl.int64)) + row * 0 + tl.arange(0, 32)[None, :]
    else:
        codes = x.to(tl.pointer_type(tl.int32)) + row * 0 + lane_of(1) * 8
    return codes, xscale + row * 0 + lane_of(1)


@triton.jit
def step(lanes, w, x, group, of_codes, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """lanes [ROWS, 8] and one more group of each, so many behind those of the first step; `of_codes`: the same by
    elements of codes."""
    codes, second, runs, factor = w
    x, xscale = x
    numbers = tl.load(runs + group).to(tl.int32)
    if ASM == "ptx":
        codes = tl.load(codes + of_codes * 4)
        second = tl.load(second + of_codes * 4) if FORMAT == "q3" else codes
        dot = dots_in_ptx(codes, second, tl.load(x + of_codes * 4), numbers, FORMAT)
    else:
        dot = run_dot(codes + of_codes * 2, second + of_codes, x + of_codes * 8, 0, FORMAT, ASM) * multiplier(numbers)
        other = run_dot(codes + of_codes * 2, second + of_codes, x + of_codes * 8, 1, FORMAT, ASM)
        dot += other * multiplier(numbers >> 4)
    return tl.fma(dot.to(tl.float32), factor * tl.load(xscale + group), lanes)


@triton.jit
def last_step(lanes, w, x, K: tl.constexpr, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """The groups behind whole steps; lanes without one see the last one again."""
    LEFT: tl.constexpr = K // 32 % 8
    lane = lane_of(1)
    group = K // 256 * 8 - tl.maximum(lane - (LEFT - 1), 0)
    of_codes = K // 256 * 8 - tl.maximum(lane_of(elements(ASM)) - (LEFT - 1), 0)
    return tl.where(lane < LEFT, step(lanes, w, x, group, of_codes, FORMAT, ASM), lanes)


@triton.jit
def dots_in_ptx(codes, second, x, numbers, FORMAT: tl.constexpr):
    """Of groups [ROWS, 8], whose codes are [ROWS, 32]."""
    if FORMAT == "q3":
        sums = tl.inline_asm_elementwise(
            DOT_Q3, "=&r,=&r,=&r,=&r,r,r,r,l,l,l,l", [codes, second, x], dtype=tl.int32, is_pure=True, pack=4
        )
    else:
        sums = tl.inline_asm_elementwise(
            DOT_Q2, "=&r,=&r,=&r,=&r,r,r,l,l,l,l", [codes, x], dtype=tl.int32, is_pure=True, pack=4
        )
    sums = tl.sum(tl.reshape(sums, (codes.shape[0], 8, 4)), axis=2)
    return tl.inline_asm_elementwise(TIMES, "=r,r,r", [sums, numbers], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def entry(table: tl.constexpr, number):
    """Of eight int8, by the lowest three bits of int32: int32."""
    shift = (8 * (number & 7)).to(tl.int64)
    return (tl.full(shift.shape, table, tl.int64) >> shift).to(tl.int8).to(tl.int32)


@triton.jit
def multiplier(number):
    """By its number, the lowest four bits: int32."""
    magnitude = entry(MAGNITUDES, number)
    return tl.where((number & 8) != 0, -magnitude, magnitude)


@triton.jit
def nibbles(word, second, FORMAT: tl.constexpr):
    """Of a run the codes, by nibbles: 0 and 1 of every four, and 2 and 3, or, of q2, 0 and 2, and 1 and 3. Of nibbles
    of the second part the low ones count. Bits beyond those of the codes are of no meaning in q3, 0 in q2."""
    if FORMAT == "q3":
        some = (word & ~0x40404040) | ((word >> 1) & 0x40404040)
        other = (second & 0x01010101) | ((second >> 1) & 0x06060606) | ((second << 3) & 0x10101010)
        other = other | ((word >> 1) & 0x20202020) | ((word << 3) & 0x40404040)
    else:
        some, other = word & 0x33333333, (word >> 2) & 0x33333333
    return some, other


@triton.jit
def code_words(word, second, FORMAT: tl.constexpr):
    """Of a run the codes 0 of every four, in the lowest three bits of a byte each, then 1, 2 and 3."""
    some, other = nibbles(word, second, FORMAT)
    if FORMAT == "q3":
        found = some, some >> 4, other, other >> 4
    else:
        found = some, other, some >> 4, other >> 4
    return found


@triton.jit
def run_dot(codes, second, x, RUN: tl.constexpr, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Of the levels of a run, from pointers to its group's words."""
    second = tl.load(second) >> (4 * RUN) if FORMAT == "q3" else 0
    words = code_words(tl.load(codes + RUN), second, FORMAT)
    x += 4 * RUN
    LEVELS: tl.constexpr = Q3 if FORMAT == "q3" else Q2
    if ASM == "plain":
        dot = tl.zeros(words[0].shape, tl.int32)
        for i in tl.static_range(4):
            inputs = tl.load(x + i)
            for v in tl.static_range(4):
                dot += entry(LEVELS, words[v] >> (8 * i)) * signed_byte(inputs, v)
    else:
        one, two, three, four = tl.load(x), tl.load(x + 1), tl.load(x + 2), tl.load(x + 3)
        dot = words[0] * 0
        for v in tl.static_range(4):  # inputs v of every four
            inputs = perm(
                perm(four, three, 0x0C0C0400 + 0x0101 * v), perm(two, one, 0x0C0C0400 + 0x0101 * v), 0x05040100
            )
            dot = dot4(perm(half(LEVELS, 1), half(LEVELS, 0), words[v] & 0x07070707), inputs, dot, ASM)
    return dot


@triton.jit
def groups_at(w, wscale, row, K: tl.constexpr, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """What `unpacked` reads of rows [ROWS] of a matrix: pointers of group 0 to codes, to their second parts and to
    multipliers, and the scales of the rows [ROWS]. In PTX a run's codes are there twice, once for each half."""
    GROUPS: tl.constexpr = K // 32
    BYTES: tl.constexpr = 12 if FORMAT == "q3" else 8
    own = wscale.to(tl.pointer_type(tl.uint8)) + row * (GROUPS + 2)
    if ASM == "ptx":
        i = tl.arange(0, 16)[None, :]
        codes = w.to(tl.pointer_type(tl.uint8)) + row[:, None] * (GROUPS * BYTES) + i % 4
        found = codes + i // 8 * 4, codes + GROUPS * 8, own[:, None] + 2 + tl.arange(0, 4)[None, :] * 0, row_scale(own)
    else:
        run = tl.arange(0, 2)[None, :]
        codes = w.to(tl.pointer_type(tl.int32)) + row[:, None] * (GROUPS * BYTES // 4)
        found = codes + run, codes + GROUPS * 2 + run * 0, own[:, None] + 2 + run * 0, row_scale(own)
    return found


@triton.jit
def row_scale(own):
    """Its two bytes lie anywhere."""
    return from_bf16(tl.load(own).to(tl.uint16) | tl.load(own + 1).to(tl.uint16) << 8)


@triton.jit
def unpacked(w, g, ROWS: tl.constexpr, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """Group g of rows, by what `groups_at` found: [ROWS, 32] int8, levels times multipliers."""
    codes, second, runs, _ = w
    if ASM == "ptx":
        number = tl.load(runs + g).to(tl.int32) >> (tl.arange(0, 4)[None, :] // 2 * 4)
        second = tl.load(second + g * 4) if FORMAT == "q3" else codes
        low, high = values_of(tl.load(codes + g * 8), second, multiplier(number), ROWS, FORMAT)
        fours = tl.join(tl.reshape(low, (ROWS, 4, 4)), tl.reshape(high, (ROWS, 4, 4)))
        values = tl.permute(fours, (0, 1, 3, 2))
    else:
        run = tl.arange(0, 2)[None, :] * 4
        word, times = tl.load(codes + g * 2), multiplier(tl.load(runs + g).to(tl.int32) >> run)
        second = tl.load(second + g) >> run if FORMAT == "q3" else word
        LEVELS: tl.constexpr = Q3 if FORMAT == "q3" else Q2
        words = code_words(word, second, FORMAT)
        byte = 8 * tl.arange(0, 4)[None, None, :]
        some = tl.join(entry(LEVELS, words[0][:, :, None] >> byte), entry(LEVELS, words[2][:, :, None] >> byte))
        other = tl.join(entry(LEVELS, words[1][:, :, None] >> byte), entry(LEVELS, words[3][:, :, None] >> byte))
        values = (tl.reshape(tl.join(some, other), (ROWS, 2, 16)) * times[:, :, None]).to(tl.int8)
    return tl.reshape(values, (ROWS, 32))


@triton.jit
def values_of(codes, second, times, ROWS: tl.constexpr, FORMAT: tl.constexpr):
    """Of halves of runs [ROWS, 4], whose codes are [ROWS, 16] uint8: the first and the second four of each, int8."""
    i = tl.arange(0, 16)[None, :]
    places = i // 4 % 2 * 16
    if FORMAT == "q3":
        low, high = multiple(total(Q3, 0), times, ROWS), multiple(total(Q3, 1), times, ROWS)
        first, other = tl.inline_asm_elementwise(
            VALUES_Q3, "=&r,=r" + ",r" * 18, [codes, second, low, high, places, i // 8 * 4],
            dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        first, other = tl.inline_asm_elementwise(
            VALUES_Q2, "=&r,=r" + ",r" * 9, [codes, multiple(total(Q2, 0), times, ROWS), places],
            dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
        )  # fmt: skip
    return first, other


@triton.jit
def multiple(levels: tl.constexpr, times, ROWS: tl.constexpr):
    """Four levels, as `total` has them, times int32 [ROWS, 4]: four int8, for each of four codes [ROWS, 16]. With 128
    more, no byte borrows from the next."""
    word = (levels * times + -0x7F7F7F80) ^ -0x7F7F7F80
    return tl.reshape(tl.broadcast_to(word[:, :, None], (ROWS, 4, 4)), (ROWS, 16))
