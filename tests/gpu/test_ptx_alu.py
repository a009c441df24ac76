"""Each family of PTX instructions against what the manual says of it, restated plainly."""

import math
import struct
from fractions import Fraction

import numpy as np
import ptx
import pytest
from assembly import execute
from ptx.values import DTYPES

RNG = np.random.default_rng(16)
INTERESTING = np.array(
    [0, 1, 2, 5, 31, 32, 33, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
)
FLOATS = np.array(
    [
        0.0,
        -0.0,
        1.0,
        -1.0,
        1.5,
        2.5,
        -2.5,
        0.1,
        3e38,
        -3e38,
        1e-38,
        1e-45,
        -1e-45,
        math.inf,
        -math.inf,
        math.nan,
        16777217.0,
    ],
    np.float32,
)


def words(n: int, dtype=np.uint32) -> np.ndarray:
    """Random ones and the interesting ones."""
    low = np.resize(INTERESTING, n // 4)
    return np.concatenate([low, RNG.integers(0, 2**32, n - len(low), np.uint32)]).astype(np.uint32).view(dtype)


def random_floats(n: int) -> np.ndarray:
    """Any bits: denormals, infinities and NaN among them."""
    return np.concatenate([np.resize(FLOATS, n // 4), words(n - n // 4, np.float32)])


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))


def to_f32(value: Fraction) -> float:
    """The nearest fp32, ties to even, in exact arithmetic."""
    if value == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(value))) if abs(value) > 2**-1000 else -149, -126)
    while abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while exponent > -126 and abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - 23)
    count = round(value / unit)  # of a Fraction: ties to even
    return math.copysign(math.inf, count) if abs(count) * unit >= 2**128 else float(count * unit)


def hard_sums(n: int) -> np.ndarray:
    """a, b, c [4 n] whose a * b + c is hard to round: c cancels all of the product but its last bits, or dwarfs it, or
    all is denormal, or the sum is beside the middle of two floats by less than fp64 can tell."""
    a, b = (1 + RNG.random((2, n))) * 2.0 ** RNG.integers(-40, 40, (2, n))
    a, b = a.astype(np.float32), b.astype(np.float32)
    product = a.astype(np.float64) * b
    small, smaller = (1 + RNG.random((2, n))) * 2.0 ** RNG.integers(-80, -70, (2, n))
    off = RNG.integers(1, 99, n) * 2.0**-23
    half = 2.0**-12
    cases = [
        (a, b, -product),
        (a, b, product * 2.0 ** RNG.integers(22, 28, n)),
        (small, smaller, RNG.integers(-50, 50, n) * 2.0**-149),
        (half * (1 + off), half * (1 - off), 1 + RNG.random(n)),
    ]
    return np.concatenate([np.stack(case) for case in cases], axis=1).astype(np.float32)


def test_fma_rounds_once():
    a, b, c = hard_sums(2000)
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c)]
    want = np.array([to_f32(value) for value in exact], np.float32)
    assert np.array_equal(execute("fma.rn.f32", "f32 f32 f32 f32", a, b, c), want)
    twice = (a.astype(np.float64) * b + c).astype(np.float32)
    assert (twice != want).sum() > 3, "these sums are none that rounding twice gets wrong"


def test_fma_of_infinities_zeros_and_nan():
    inf, nan = np.float32(np.inf), np.float32(np.nan)
    a = np.array([inf, inf, inf, 0, -0.0, 1, 3e38, 1], np.float32)
    b = np.array([1, 0, 1, 1, 1, 1, 3e38, inf], np.float32)
    c = np.array([1, 1, -inf, -0.0, -0.0, nan, 0, 0], np.float32)
    got = execute("fma.rn.f32", "f32 f32 f32 f32", a, b, c)
    assert same_bits(
        got,
        np.array([0x7F800000, 0x7FFFFFFF, 0x7FFFFFFF, 0, 0x80000000, 0x7FFFFFFF, 0x7F800000, 0x7F800000], np.uint32),
    )


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_integers_are_divided_towards_zero(kind):
    a = words(2016).astype(np.uint32).view("i4" if kind[0] == "s" else "u4").astype(DTYPES[kind])
    b = np.roll(a, 7) >> RNG.integers(0, 31, 2016).astype(DTYPES[kind])
    b[b == 0] = 3
    b[b == -1] = 5
    whole = [int(abs(Fraction(int(x), int(y)))) * (1 if (x < 0) == (y < 0) else -1) for x, y in zip(a, b)]
    rest = [int(x) - n * int(y) for x, y, n in zip(a, b, whole)]
    assert execute(f"div.{kind}", f"{kind} {kind} {kind}", a, b).tolist() == whole
    assert execute(f"rem.{kind}", f"{kind} {kind} {kind}", a, b).tolist() == rest


@pytest.mark.parametrize("opcode", ["div.s32", "rem.s32"])
@pytest.mark.parametrize("a, b", [(5, 0), (-(2**31), -1)])
def test_a_division_without_a_defined_result_is_refused(opcode, a, b):
    with pytest.raises(ptx.NotRepeatable):
        execute(opcode, "s32 s32 s32", *np.full((2, 32), [[a], [b]], np.int32))


@pytest.mark.parametrize(
    "opcode, compute", [("add.rn", np.add), ("sub", np.subtract), ("mul.rn", np.multiply), ("div.rn", np.divide)]
)
def test_fp32_arithmetic_rounds_to_nearest_keeps_denormals_and_has_one_nan(opcode, compute):
    a, b = random_floats(1024), RNG.permutation(random_floats(1024))
    with np.errstate(all="ignore"):
        want = compute(a.astype(np.float64), b.astype(np.float64)).astype(np.float32)  # 53 bits: rounds as once
    want.view(np.uint32)[np.isnan(want)] = 0x7FFFFFFF
    got = execute(f"{opcode}.f32", "f32 f32 f32", a, b)
    assert same_bits(got, want)
    assert ((want != 0) & (np.abs(want) < 2.0**-126)).any()


def test_square_roots():
    a = random_floats(1024)
    with np.errstate(all="ignore"):
        want = np.sqrt(a.astype(np.float64)).astype(np.float32)
    want.view(np.uint32)[np.isnan(want)] = 0x7FFFFFFF
    assert same_bits(execute("sqrt.rn.f32", "f32 f32", a), want)


def test_pairs_are_two_operations():
    a, b, c = (random_floats(256).reshape(-1, 2) for _ in range(3))
    one = "f32 f32 f32"
    for opcode in ("add.rn", "mul.rn"):
        got = execute(f"{opcode}.f32x2", "f32x2 f32x2 f32x2", a, b)
        assert same_bits(got, np.stack([execute(f"{opcode}.f32", one, a[:, i], b[:, i]) for i in (0, 1)], 1))
    got = execute("fma.rn.f32x2", "f32x2 f32x2 f32x2 f32x2", a, b, c)
    each = [execute("fma.rn.f32", f"f32 {one}", a[:, i], b[:, i], c[:, i]) for i in (0, 1)]
    assert same_bits(got, np.stack(each, 1))


def test_min_and_max_of_two_and_three_leave_nan_out_and_order_zeros():
    def plain(values, best):
        values = [v for v in values if not math.isnan(v)]
        return best(values, key=lambda v: (v, math.copysign(1, v))) if values else None

    for name, best in (("min", min), ("max", max)):
        for count in (2, 3):
            operands = [RNG.permutation(np.resize(FLOATS, 512)) for _ in range(count)]
            got = execute(f"{name}.f32", " ".join(["f32"] * (count + 1)), *operands)
            for value, *given in zip(got, *operands):
                want = plain([float(g) for g in given], best)
                bits = 0x7FFFFFFF if want is None else struct.unpack("<I", struct.pack("<f", want))[0]
                assert value.view(np.uint32) == bits, (name, given)


def test_signs_of_floats():
    a = random_floats(256)
    a[np.isnan(a)] = 1
    assert same_bits(execute("neg.f32", "f32 f32", a), -a)
    assert same_bits(execute("abs.f32", "f32 f32", a), np.abs(a))


def plain_integer(kind: str, value: int) -> int:
    """Modulo the type's size."""
    bits = int(kind[1:])
    value &= 2**bits - 1
    return value - 2**bits if kind[0] == "s" and value >> (bits - 1) else value


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
def test_integer_arithmetic_wraps(kind):
    dtype = DTYPES[kind]
    a = words(512).view(dtype)[:128]
    b, c = RNG.permutation(a), RNG.permutation(a)
    for name, compute in {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul.lo": lambda x, y: x * y,
        "min": min,
        "max": max,
    }.items():
        got = execute(f"{name}.{kind}", f"{kind} {kind} {kind}", a, b)
        assert got.tolist() == [plain_integer(kind, compute(x, y)) for x, y in zip(a.tolist(), b.tolist())], name
    got = execute(f"mad.lo.{kind}", f"{kind} {kind} {kind} {kind}", a, b, c)
    assert got.tolist() == [plain_integer(kind, x * y + z) for x, y, z in zip(a.tolist(), b.tolist(), c.tolist())]
    high = execute(f"mul.hi.{kind}", f"{kind} {kind} {kind}", a, b)
    assert high.tolist() == [x * y >> int(kind[1:]) for x, y in zip(a.tolist(), b.tolist())]
    if kind[1:] != "64":
        wide = f"{kind[0]}{2 * int(kind[1:])}"
        got = execute(f"mul.wide.{kind}", f"{wide} {kind} {kind}", a, b)
        assert got.tolist() == [x * y for x, y in zip(a.tolist(), b.tolist())]
        added = execute(f"mad.wide.{kind}", f"{wide} {kind} {kind} {wide}", a, b, got)
        assert added.tolist() == [plain_integer(wide, 2 * x * y) for x, y in zip(a.tolist(), b.tolist())]


@pytest.mark.parametrize("size", [16, 32, 64])
def test_shifts_clamp_their_count(size):
    a = words(512).view(f"u{size // 8}")[:64]
    counts = np.resize(np.array([0, 1, 7, 15, 16, 31, 32, 33, 63, 64, 65, 255, 2**32 - 1], np.uint32), 64)
    left = execute(f"shl.b{size}", f"u{size} u{size} u32", a, counts)
    assert left.tolist() == [(x << min(c, 99)) & (2**size - 1) for x, c in zip(a.tolist(), counts.tolist())]
    right = execute(f"shr.u{size}", f"u{size} u{size} u32", a, counts)
    assert right.tolist() == [x >> min(c, 99) for x, c in zip(a.tolist(), counts.tolist())]
    signed = a.view(f"i{size // 8}")
    right = execute(f"shr.s{size}", f"s{size} s{size} u32", signed, counts)
    assert right.tolist() == [x >> min(c, 99) for x, c in zip(signed.tolist(), counts.tolist())]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields_are_extended_by_their_highest_bit(kind):
    size = int(kind[1:])

    def plain(a, position, length):
        """As the manual has it, bit by bit."""
        top = min(position + length - 1, size - 1)
        sign = kind[0] == "s" and length > 0 and a >> top & 1
        bits = 0
        for i in range(size):
            bit = a >> (position + i) & 1 if i < length and position + i < size else sign
            bits |= int(bit) << i
        return plain_integer(kind, bits)

    a = words(1024).view(f"u{size // 8}")[:512]
    position = RNG.integers(0, size + 8, 512).astype(np.uint32)
    length = RNG.integers(0, size + 8, 512).astype(np.uint32)
    got = execute(f"bfe.{kind}", f"{kind} {kind} u32 u32", a, position, length)
    assert got.tolist() == [plain(*v) for v in zip(a.tolist(), position.tolist(), length.tolist())]


def test_logic_of_three_follows_its_table():
    a, b, c = words(64), words(64), words(64)
    for table, want in (
        (0x96, a ^ b ^ c),
        (0xE8, (a & b) | (c & (a | b))),
        (0xCA, (a & b) | (~a & c)),
        (0xF8, a | (b & c)),
        (0, a * 0),
    ):
        assert np.array_equal(execute("lop3.b32", "b32 b32 b32 b32 u32", a, b, c, table), want)


@pytest.mark.parametrize("kind", ["b32", "b64"])
def test_ones_are_counted(kind):
    a = words(512).view(DTYPES[kind])
    assert execute("popc." + kind, "u32 " + kind, a).tolist() == [int(x).bit_count() for x in a]


def test_permutation_picks_bytes_and_spreads_signs():
    a, b, selectors = words(512), words(512), words(512)

    def plain(a, b, selectors):
        data = struct.pack("<II", a, b)
        picked = [(data[s & 7], s >> 3) for s in (selectors >> 4 * i & 15 for i in range(4))]
        return struct.unpack("<I", bytes(255 * (byte >> 7) if sign else byte for byte, sign in picked))[0]

    got = execute("prmt.b32", "b32 b32 b32 b32", a, b, selectors)
    assert got.tolist() == [plain(*v) for v in zip(a.tolist(), b.tolist(), selectors.tolist())]


@pytest.mark.parametrize("a_kind", ["s32", "u32"])
@pytest.mark.parametrize("b_kind", ["s32", "u32"])
def test_dp4a_adds_four_products(a_kind, b_kind):
    a, b = words(256), RNG.permutation(words(256))
    total = "u32" if a_kind == b_kind == "u32" else "s32"
    c = RNG.permutation(words(256)).view(DTYPES[total])
    left, right = (
        x.view(f"{'i' if k == 's32' else 'u'}1").reshape(-1, 4).tolist() for x, k in ((a, a_kind), (b, b_kind))
    )
    want = [plain_integer(total, z + sum(map(int.__mul__, x, y))) for x, y, z in zip(left, right, c.tolist())]
    assert execute(f"dp4a.{a_kind}.{b_kind}", f"{total} b32 b32 {total}", a, b, c).tolist() == want


@pytest.mark.parametrize("a_kind", ["s32", "u32"])
@pytest.mark.parametrize("b_kind", ["s32", "u32"])
def test_dp2a_adds_two_products_of_halves_and_bytes(a_kind, b_kind):
    a, b = words(256), RNG.permutation(words(256))
    total = "u32" if a_kind == b_kind == "u32" else "s32"
    c = RNG.permutation(words(256)).view(DTYPES[total])
    halves = a.view(f"{'i' if a_kind == 's32' else 'u'}2").reshape(-1, 2).tolist()
    bytes_of = b.view(f"{'i' if b_kind == 's32' else 'u'}1").reshape(-1, 4).tolist()
    for half, first in (("lo", 0), ("hi", 2)):
        want = [
            plain_integer(total, z + x[0] * y[first] + x[1] * y[first + 1])
            for x, y, z in zip(halves, bytes_of, c.tolist())
        ]
        assert execute(f"dp2a.{half}.{a_kind}.{b_kind}", f"{total} b32 b32 {total}", a, b, c).tolist() == want


def test_comparisons_of_nan_are_false_and_true_in_their_unordered_forms():
    a, b = np.resize(FLOATS, 289), np.repeat(FLOATS, 17)
    for name, compute in {
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
        "eq": np.equal,
    }.items():
        unordered = np.isnan(a) | np.isnan(b)
        assert np.array_equal(execute(f"setp.{name}.f32", "pred f32 f32", a, b), compute(a, b) & ~unordered)
        assert np.array_equal(execute(f"setp.{name}u.f32", "pred f32 f32", a, b), compute(a, b) | unordered)
    assert np.array_equal(execute("setp.ne.f32", "pred f32 f32", a, b), (a != b) & ~unordered)
    assert np.array_equal(execute("setp.neu.f32", "pred f32 f32", a, b), (a != b) | unordered)


def test_comparisons_of_integers_heed_the_sign():
    a, b = words(64), RNG.permutation(words(64))
    assert np.array_equal(execute("setp.lt.u32", "pred u32 u32", a, b), a < b)
    assert np.array_equal(execute("setp.lt.s32", "pred s32 s32", a, b), a.view(np.int32) < b.view(np.int32))


@pytest.mark.parametrize(
    "rounding, plain", [("rni", round), ("rzi", math.trunc), ("rmi", math.floor), ("rpi", math.ceil)]
)
@pytest.mark.parametrize("kind", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
def test_floats_become_integers_clamped_to_their_range(rounding, plain, kind):
    a = np.concatenate(
        [random_floats(256), (RNG.normal(size=256) * 200).astype(np.float32), np.array([0.5, 1.5, -0.5], np.float32)]
    )
    bits = int(kind[1:])
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind[0] == "s" else (0, 2**bits - 1)
    none = 0 if bits < 64 else low if kind[0] == "s" else 2**63
    got = execute(f"cvt.{rounding}.{kind}.f32", f"{kind} f32", a)
    for x, value in zip(a.tolist(), got.tolist()):
        want = none if math.isnan(x) else (high if x > 0 else low) if math.isinf(x) else min(max(plain(x), low), high)
        assert value == want, x


def test_integers_become_the_nearest_float():
    a = words(512)
    for kind in ("u32", "s32"):
        got = execute(f"cvt.rn.f32.{kind}", f"f32 {kind}", a)
        given = a.view(DTYPES[kind]).tolist()
        assert got.tolist() == [to_f32(Fraction(x)) for x in given]


def test_integers_are_cut_off_and_extended():
    a = words(256)
    assert execute("cvt.s32.s8", "s32 u32", a).tolist() == a.astype(np.uint8).view(np.int8).tolist()
    assert execute("cvt.u32.u8", "u32 u32", a).tolist() == (a & 255).tolist()
    assert execute("cvt.s64.s32", "s64 u32", a).tolist() == a.view(np.int32).tolist()
    assert execute("cvt.u16.u32", "u16 u32", a).tolist() == (a & 0xFFFF).tolist()


def test_halves_round_to_the_nearest_even():
    a = random_floats(1024)
    a[:4] = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF], np.uint32).view(np.float32)
    got = execute("cvt.rn.bf16.f32", "b16 f32", a)
    for x, half in zip(a, got.tolist()):
        if np.isnan(x):
            assert half == 0x7FFF
            continue
        below = int(x.view(np.uint32)) >> 16
        rest = int(x.view(np.uint32)) & 0xFFFF
        assert half == below + (rest > 0x8000 or (rest == 0x8000 and below & 1))
    b = RNG.permutation(a)
    pairs = execute("cvt.rn.bf16x2.f32", "b32 f32 f32", a, b)
    assert np.array_equal(pairs >> 16, got)
    assert np.array_equal(pairs & 0xFFFF, execute("cvt.rn.bf16.f32", "b16 f32", b))
    known = np.array([1, 65504, 65520, 2**-24, 2**-25, 1 + 2**-11, 1 + 3 * 2**-11], np.float32)
    assert execute("cvt.rn.f16.f32", "b16 f32", known).tolist() == [0x3C00, 0x7BFF, 0x7C00, 1, 0, 0x3C00, 0x3C02]


@pytest.mark.parametrize(
    "opcode",
    [
        "ex2.approx.f32",
        "ex2.approx.ftz.f32",
        "lg2.approx.f32",
        "rcp.approx.f32",
        "sqrt.approx.f32",
        "sin.approx.f32",
        "tanh.approx.f32",
    ],
)
def test_approximations_are_refused(opcode):
    with pytest.raises(ptx.NotRepeatable, match="not its bits"):
        execute(opcode, "f32 f32", FLOATS)
    with pytest.raises(ptx.NotRepeatable):
        execute("div.full.f32", "f32 f32 f32", FLOATS, FLOATS)


@pytest.mark.parametrize(
    "opcode",
    ["add.ftz.f32", "fma.rz.f32", "add.sat.s32", "mul.f32.rn", "frobnicate.b32", "add", "add.f64", "dp4a.s8.s8"],
)
def test_what_is_not_known_to_the_letter_is_refused(opcode):
    with pytest.raises(ptx.Unknown, match="opcode"):
        execute(opcode, "f32 f32 f32", FLOATS, FLOATS)


@pytest.mark.parametrize(
    "opcode, count", [("add.rn.f32", 3), ("max.f32", 4), ("max.s32", 3), ("fma.rn.f32", 2), ("selp.b32", 2)]
)
def test_another_number_of_operands_is_refused(opcode, count):
    with pytest.raises(ptx.Unknown, match=f"with {count + 1} operands, known with"):
        execute(opcode, " ".join(["f32"] * (count + 1)), *[FLOATS] * count)
