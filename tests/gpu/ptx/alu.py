"""Instructions of one thread by itself: a table from the exact opcode, every modifier included, and the number of
operands to types and a function of numpy arrays. What is not in the table is unknown."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ptx import floats
from ptx.faults import NotRepeatable, Unknown
from ptx.values import DTYPES, width


@dataclass(frozen=True)
class Operation:
    result: str  # types
    operands: tuple[str, ...]
    compute: Callable[..., np.ndarray]


OPERATIONS: dict[tuple[str, int], Operation] = {}
APPROXIMATE = {"ex2", "lg2", "sin", "cos", "tanh"}  # there is no other form of these


def operation(opcode: str, operands: int) -> Operation:
    """Of an opcode with so many operands, the result included."""
    if found := OPERATIONS.get((opcode, operands)):
        return found
    base, *modifiers = opcode.split(".")
    if base in APPROXIMATE or {"approx", "full"} & set(modifiers):
        raise NotRepeatable(f"the manual bounds the error of {opcode}, not its bits")
    counts = sorted(n for name, n in OPERATIONS if name == opcode)
    if counts:
        raise Unknown(f"{opcode} with {operands} operands, known with {', '.join(map(str, counts))}")
    raise Unknown(f"opcode {opcode}")


def define(opcode: str, types: str, compute: Callable[..., np.ndarray]) -> None:
    """`types`: of the result and the operands."""
    result, *operands = types.split()
    OPERATIONS[opcode, 1 + len(operands)] = Operation(result, tuple(operands), compute)


def multiply_wide(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return a.astype(dtype) * b.astype(dtype)


def multiply_high(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> np.ndarray:
    product = multiply_wide(a, b, dtype)
    return (product >> (4 * dtype.itemsize)).astype(a.dtype)


def multiply_high_64(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same where no dtype holds the product."""
    return (a.astype(object) * b.astype(object) >> 64).astype(a.dtype)


def shift_left(a: np.ndarray, count: np.ndarray) -> np.ndarray:
    size = 8 * a.dtype.itemsize
    if len(count) == 1 and count[0] < size:
        return a << count.astype(a.dtype)
    return np.where(count < size, a << np.minimum(count, size - 1).astype(a.dtype), a.dtype.type(0))


def shift_right(a: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Counts are clamped to the size, so what is left is nothing, or the sign."""
    size = 8 * a.dtype.itemsize
    if len(count) == 1 and count[0] < size:
        return a >> count.astype(a.dtype)
    shifted = a >> np.minimum(count, size - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(count < size, shifted, a.dtype.type(0))


def quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rounded towards zero."""
    if (b == 0).any():
        raise NotRepeatable("what an integer divided by zero gives is up to the machine")
    if a.dtype.kind == "i" and ((b == -1) & (a == np.iinfo(a.dtype).min)).any():
        raise NotRepeatable("a quotient beyond the largest integer")
    rest = np.fmod(a, b)
    return (a - rest) // b


def remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """With the sign of a."""
    return a - quotient(a, b) * b


def field(a: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """bfe: `length` bits from `position` on, both of 8 bits; of a signed type extended by the highest of them, by the
    sign where they reach beyond it."""
    size = 8 * a.dtype.itemsize
    position, length = position & 255, length & 255
    if len(position) == len(length) == 1 and 0 < length[0] and position[0] + length[0] <= size:
        above = size - (position + length).astype(a.dtype)
        return (a << above) >> (above + position.astype(a.dtype))
    bits = shift_right(a, position)
    spare = (size - np.minimum(length, size)).astype(np.uint32)
    if a.dtype.kind == "i":
        sign = np.minimum(position + length, size) - 1  # where the highest bit is; the field may end beyond it
        top = shift_right(a, sign) & 1
        within = (length > 0) & (position < size)
        kept = shift_right(shift_left(bits, spare), spare)
        return np.where(within, kept, np.where(length > 0, -top, 0)).astype(a.dtype)
    return np.where(length > 0, shift_right(shift_left(bits, spare), spare), 0).astype(a.dtype)


def count_ones(a: np.ndarray) -> np.ndarray:
    return np.unpackbits(a.view(np.uint8).reshape(len(a), -1), axis=1).sum(1, dtype=np.uint32)


def permute(a: np.ndarray, b: np.ndarray, selectors: np.ndarray) -> np.ndarray:
    """prmt: each of four selectors names one of the 8 bytes of b:a, or, with its highest bit, that byte's sign eight
    times."""
    both = np.stack(np.broadcast_arrays(a, b, selectors)[:2], axis=1).view(np.uint8)
    selector = (selectors[:, None] >> (4 * np.arange(4, dtype=np.uint32))) & 15
    if len(selectors) == 1:
        chosen = both[:, selector[0] & 7]
    else:
        chosen = np.take_along_axis(both, selector & 7, axis=1)
    if (selector > 7).any():
        chosen = np.where(selector > 7, chosen.view(np.int8) >> 7, chosen.view(np.int8))
    return np.ascontiguousarray(chosen).view(np.uint32)[:, 0]


def logic(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    """lop3: bit i of the table is the result where a, b, c are the bits of i, a the highest."""
    result = np.zeros(1, np.uint32)
    for i in range(8):
        if int(table[0]) >> i & 1:
            result = result | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return result


def dot(a: np.ndarray, b: np.ndarray, c: np.ndarray, kinds: tuple[str, str]) -> np.ndarray:
    """dp4a: four products of bytes, added to c."""
    bytes_of = [np.ascontiguousarray(x).view(DTYPES[kind]).reshape(-1, 4) for x, kind in zip((a, b), kinds)]
    products = bytes_of[0].astype(c.dtype) * bytes_of[1]
    return c + products[:, 0] + products[:, 1] + products[:, 2] + products[:, 3]


def half_dot(a: np.ndarray, b: np.ndarray, c: np.ndarray, first: int, kinds: tuple[str, str]) -> np.ndarray:
    """dp2a: two products of halves of a and bytes of b, from `first` on, added to c."""
    halves, bytes_of = (np.ascontiguousarray(x).view(DTYPES[kind]) for x, kind in zip((a, b), kinds))
    products = halves.reshape(-1, 2).astype(c.dtype) * bytes_of.reshape(-1, 4)[:, first : first + 2]
    return c + products[:, 0] + products[:, 1]


def define_integers() -> None:
    for kind in ("u16", "s16", "u32", "s32", "u64", "s64"):
        three = f"{kind} {kind} {kind}"
        define(f"add.{kind}", three, np.add)
        define(f"sub.{kind}", three, np.subtract)
        define(f"min.{kind}", three, np.minimum)
        define(f"max.{kind}", three, np.maximum)
        define(f"mul.lo.{kind}", three, np.multiply)
        define(f"mad.lo.{kind}", f"{three} {kind}", lambda a, b, c: a * b + c)
        define(f"shr.{kind}", f"{kind} {kind} u32", shift_right)
        define(f"div.{kind}", three, quotient)
        define(f"rem.{kind}", three, remainder)
        if width(kind) < 64:
            wide = f"{kind[0]}{2 * width(kind)}"
            times = partial(multiply_wide, dtype=DTYPES[wide])
            define(f"mul.wide.{kind}", f"{wide} {kind} {kind}", times)
            define(f"mad.wide.{kind}", f"{wide} {kind} {kind} {wide}", lambda a, b, c, t=times: t(a, b) + c)
            define(f"mul.hi.{kind}", three, partial(multiply_high, dtype=DTYPES[wide]))
        else:
            define(f"mul.hi.{kind}", three, multiply_high_64)
        if width(kind) > 16:
            define(f"bfe.{kind}", f"{kind} {kind} u32 u32", field)
        if kind[0] == "s":
            define(f"neg.{kind}", f"{kind} {kind}", np.negative)
            define(f"abs.{kind}", f"{kind} {kind}", np.abs)
    for kind in ("pred", "b16", "b32", "b64"):
        define(f"and.{kind}", f"{kind} {kind} {kind}", np.bitwise_and)
        define(f"or.{kind}", f"{kind} {kind} {kind}", np.bitwise_or)
        define(f"xor.{kind}", f"{kind} {kind} {kind}", np.bitwise_xor)
        define(f"not.{kind}", f"{kind} {kind}", np.invert)
    for kind in ("b16", "b32", "b64"):
        define(f"shl.{kind}", f"{kind} {kind} u32", shift_left)
        define(f"shr.{kind}", f"{kind} {kind} u32", shift_right)
    for kind in ("b32", "b64"):
        define(f"popc.{kind}", f"u32 {kind}", count_ones)
    define("prmt.b32", "b32 b32 b32 b32", permute)
    define("lop3.b32", "b32 b32 b32 b32 u32", logic)
    for a in ("s32", "u32"):
        for b in ("s32", "u32"):
            total = "u32" if (a, b) == ("u32", "u32") else "s32"
            define(f"dp4a.{a}.{b}", f"{total} b32 b32 {total}", partial(dot, kinds=(f"{a[0]}8", f"{b[0]}8")))
            for half, first in (("lo", 0), ("hi", 2)):
                compute = partial(half_dot, first=first, kinds=(f"{a[0]}16", f"{b[0]}8"))
                define(f"dp2a.{half}.{a}.{b}", f"{total} b32 b32 {total}", compute)


def define_floats() -> None:
    for rounded in ("", ".rn"):  # the nearest is what the manual takes where nothing is said
        define(f"add{rounded}.f32", "f32 f32 f32", floats.add)
        define(f"sub{rounded}.f32", "f32 f32 f32", floats.subtract)
        define(f"mul{rounded}.f32", "f32 f32 f32", floats.multiply)
    define("fma.rn.f32", "f32 f32 f32 f32", floats.fma)
    define("div.rn.f32", "f32 f32 f32", floats.divide)
    define("sqrt.rn.f32", "f32 f32", floats.square_root)
    for pair, compute in (("add", floats.add), ("sub", floats.subtract), ("mul", floats.multiply)):
        define(f"{pair}.rn.f32x2", "f32x2 f32x2 f32x2", compute)
    define("fma.rn.f32x2", "f32x2 f32x2 f32x2 f32x2", floats.fma)
    define("neg.f32", "b32 b32", lambda a: a ^ np.uint32(1 << 31))
    define("abs.f32", "b32 b32", lambda a: a & np.uint32((1 << 31) - 1))
    for name, compute in (("min", floats.smallest), ("max", floats.largest)):
        define(f"{name}.f32", "f32 f32 f32", compute)
        define(f"{name}.f32", "f32 f32 f32 f32", compute)


def define_comparisons() -> None:
    tests = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
    same = {"eq": np.equal, "ne": np.not_equal}
    for size in (16, 32, 64):
        for name, compute in (tests | same).items():
            for kind in (f"s{size}", f"u{size}", f"b{size}") if name in same else (f"s{size}", f"u{size}"):
                define(f"setp.{name}.{kind}", f"pred {kind} {kind}", compute)
        for kind in (f"b{size}", f"s{size}", f"u{size}", *(["f32"] if size == 32 else [])):
            moved = f"b{size}"
            define(f"selp.{kind}", f"{moved} {moved} {moved} pred", lambda a, b, p: np.where(p, a, b))
            define(f"mov.{kind}", f"{moved} {moved}", lambda a: a)
    define("mov.pred", "pred pred", lambda a: a)
    for name, compute in (tests | same).items():  # false where one is NaN; with u, true
        define(f"setp.{name}.f32", "pred f32 f32", lambda a, b, c=compute: c(a, b) & ~np.isnan(a) & ~np.isnan(b))
        define(f"setp.{name}u.f32", "pred f32 f32", lambda a, b, c=compute: c(a, b) | np.isnan(a) | np.isnan(b))
    define("setp.nan.f32", "pred f32 f32", lambda a, b: np.isnan(a) | np.isnan(b))
    define("setp.num.f32", "pred f32 f32", lambda a, b: ~np.isnan(a) & ~np.isnan(b))


def define_conversions() -> None:
    integers = [f"{sign}{size}" for sign in "su" for size in (8, 16, 32, 64)]
    roundings = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
    for kind in integers:
        for other in integers:
            if other != kind:
                define(f"cvt.{kind}.{other}", f"{kind} {other}", lambda a, d=DTYPES[kind]: a.astype(d))
        define(f"cvt.rn.f32.{kind}", f"f32 {kind}", lambda a: a.astype(np.float32))
        for name, rounded in roundings.items():
            compute = partial(floats.to_integer, rounded=rounded, dtype=DTYPES[kind])
            define(f"cvt.{name}.{kind}.f32", f"{kind} f32", compute)
    define("cvt.rn.bf16.f32", "b16 f32", floats.to_bf16)
    define("cvt.rn.f16.f32", "b16 f32", floats.to_f16)
    define("cvt.f32.bf16", "f32 b16", floats.from_bf16)
    define("cvt.f32.f16", "f32 f16", lambda a: a.astype(np.float32))
    for name, half in (("bf16", floats.to_bf16), ("f16", floats.to_f16)):  # the first operand becomes the high half
        both = lambda a, b, h=half: h(a).astype(np.uint32) << 16 | h(b)  # noqa: E731
        define(f"cvt.rn.{name}x2.f32", "b32 f32 f32", both)


define_integers()
define_floats()
define_comparisons()
define_conversions()
