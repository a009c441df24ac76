"""What a register holds: bits, as one unsigned integer per thread. A value that all threads share may be kept once, as
an array of one element; numpy then repeats it. Arrays are never changed in place, so registers can share them."""

import numpy as np

DTYPES = {
    "pred": np.dtype(bool),
    **{f"u{8 * n}": np.dtype(f"u{n}") for n in (1, 2, 4, 8)},
    **{f"b{8 * n}": np.dtype(f"u{n}") for n in (1, 2, 4, 8)},
    **{f"s{8 * n}": np.dtype(f"i{n}") for n in (1, 2, 4, 8)},
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
}
UNSIGNED = {1: np.dtype(bool), **{8 * n: np.dtype(f"u{n}") for n in (1, 2, 4, 8)}}  # by bits
JUNK = 0xA5C3A5C3A5C3A5C3  # for threads that a guard left out when a register was first written


def width(kind: str) -> int:
    """Bits of a type."""
    return 64 if kind == "f32x2" else 1 if kind == "pred" else 8 * DTYPES[kind].itemsize


def typed(bits: np.ndarray, kind: str) -> np.ndarray:
    """Bits as values of a type, which may be narrower; f32x2 gives [threads, 2]."""
    if kind == "f32x2":
        return bits.view(np.float32).reshape(-1, 2)
    dtype = DTYPES[kind]
    if dtype.itemsize < bits.itemsize:
        bits = bits.astype(UNSIGNED[8 * dtype.itemsize])
    return bits.view(dtype)


def bits_of(value: np.ndarray, kind: str, register_bits: int) -> np.ndarray:
    """The reverse; integers narrower than the register are extended, by their sign if they have one."""
    if kind == "f32x2":
        return np.ascontiguousarray(value).view(np.uint64).reshape(-1)
    value = np.ascontiguousarray(value, DTYPES[kind])
    if width(kind) < register_bits:
        return value.astype(UNSIGNED[register_bits])
    return value.view(UNSIGNED[register_bits])


def constant(value: int, kind: str) -> np.ndarray:
    """An immediate: an integer, or the bits of a float."""
    if kind == "pred":
        return np.array([bool(value)])
    size = width(kind)
    return typed(np.array([value & ((1 << size) - 1)], UNSIGNED[size]), kind)


def everyone(value: np.ndarray, threads: int) -> np.ndarray:
    """One element per thread."""
    return value if len(value) == threads else np.repeat(value, threads)
