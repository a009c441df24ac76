"""fp32 arithmetic as the PTX manual defines it: IEEE 754, nearest or even, denormals kept, one NaN."""

import numpy as np

NAN = np.array([0x7FFFFFFF], np.uint32).view(np.float32)


def one_nan(x: np.ndarray) -> np.ndarray:
    """Results that are NaN have the same bits whatever the operands' were."""
    flat = x.reshape(-1)
    largest = flat[flat.argmax()]  # the first NaN, if there is one
    return np.where(np.isnan(x), NAN, x) if largest != largest else x


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return one_nan(a + b)


def subtract(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return one_nan(a - b)


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return one_nan(a * b)


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return one_nan(a / b)


def square_root(a: np.ndarray) -> np.ndarray:
    return one_nan(np.sqrt(a))


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c, rounded once. In fp64 the product is exact and the sum is not: its error (TwoSum) says to which side.
    A sum rounded to odd, of at least two more bits than the result, rounds to the result as the exact one would."""
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)  # NaN where anything is infinite; total is exact then
    odd = total.view(np.int64) & 1 == 1
    lost = (error != 0) & ~np.isnan(error) & ~odd
    if lost.any():
        total = np.where(lost, np.nextafter(total, np.copysign(np.inf, error)), total)
    return one_nan(total.astype(np.float32))


def smallest(*values: np.ndarray) -> np.ndarray:
    """A NaN is left out, -0 is below +0."""
    return _chosen(values, np.fmin, np.bitwise_or)


def largest(*values: np.ndarray) -> np.ndarray:
    return _chosen(values, np.fmax, np.bitwise_and)


def _chosen(values, choose, sign):
    result = values[0]
    for value in values[1:]:
        both_zero = (result == 0) & (value == 0)
        zero = sign(result.view(np.uint32), value.view(np.uint32)).view(np.float32)
        result = np.where(both_zero, zero, choose(result, value))
    return one_nan(result)


def to_integer(x: np.ndarray, rounded, dtype: np.dtype) -> np.ndarray:
    """Rounded by a numpy function, then clamped to the type's range; NaN gives 0, in 64 bits the highest bit alone."""
    info = np.iinfo(dtype)
    whole = rounded(x.astype(np.float64))
    below, above = whole <= float(info.min), whole >= float(info.max)
    inside = np.where(below | above | np.isnan(whole), 0, whole).astype(dtype)
    none = 0 if info.bits < 64 else 1 << 63 if info.min == 0 else info.min
    result = np.where(below, dtype.type(info.min), np.where(above, dtype.type(info.max), inside))
    return np.where(np.isnan(whole), dtype.type(none), result)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Bits of the nearest bf16, ties to even; NaN gives 0x7fff."""
    bits = x.view(np.uint32)
    nearest = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(x), 0x7FFF, nearest).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_f16(x: np.ndarray) -> np.ndarray:
    """Bits of the nearest fp16, ties to even; NaN gives 0x7fff."""
    return np.where(np.isnan(x), 0x7FFF, x.astype(np.float16).view(np.uint16)).astype(np.uint16)
