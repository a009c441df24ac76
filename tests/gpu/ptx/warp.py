"""What the 32 threads of a warp do together: shuffles, matrices in shared memory, matrix units. [warps, 32] arrays."""

import functools

import numpy as np

from ptx.faults import NotRepeatable

LANE = np.arange(32)


@functools.cache
def sources(mode: str, by: int, clamp: int) -> tuple[np.ndarray, np.ndarray]:
    """Of shfl.sync where all threads name the same: which lane each takes from, and whether it is of its segment."""
    lanes, valid = shuffle(mode, LANE[None], *(np.full((1, 32), value) for value in (by, clamp)))
    return lanes[0], valid[0]


def shuffle(mode: str, value: np.ndarray, by: np.ndarray, clamp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """shfl.sync with all 32 threads: the value of another lane, or where that is none of its segment, the thread's own;
    and whether it was one. `clamp`: 31 (0 for up), and in bits 8 to 12 what lanes of a segment have in common."""
    segment = (clamp >> 8) & 31
    least = LANE & segment
    most = least | (clamp & 31 & ~segment)
    by = by & 31
    if mode == "up":
        source = LANE - by
        valid = source >= most
    else:
        source = {"down": LANE + by, "bfly": LANE ^ by, "idx": least | (by & ~segment)}[mode]
        valid = source <= most
    source = np.where(valid, source, LANE)
    return np.take_along_axis(value, np.broadcast_to(source, value.shape), 1), np.broadcast_to(valid, value.shape)


def matrix_addresses(rows: np.ndarray, transposed: bool) -> np.ndarray:
    """rows [warps, matrices, 8]: where the rows of 8 x 8 halves begin -> [warps, matrices, parts, 32]: where a lane has
    its two halves. Lane 4 i + j has columns 2 j and 2 j + 1 of row i, one word; transposed, it has rows 2 j and 2 j + 1
    of column i, two parts."""
    i, j = LANE // 4, LANE % 4
    if not transposed:
        return (rows[..., i] + 4 * j)[:, :, None]
    return np.stack([rows[..., 2 * j] + 2 * i, rows[..., 2 * j + 1] + 2 * i], axis=2)


def joined(parts: np.ndarray) -> np.ndarray:
    """[warps, matrices, parts, 32] -> words [warps, matrices, 32], the first half in the low bits."""
    if parts.shape[2] == 1:
        return parts[:, :, 0]
    return parts[:, :, 0].astype(np.uint32) | parts[:, :, 1].astype(np.uint32) << 16


def split(words: np.ndarray, parts: int) -> np.ndarray:
    """The reverse."""
    if parts == 1:
        return words[:, :, None]
    return np.stack([words & 0xFFFF, words >> 16], axis=2).astype(np.uint16)


def mma_s8(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """mma.m16n8k32: a [warps, 32, 4], b [warps, 32, 2] of four s8 a register, c [warps, 32, 4] of s32 -> like c.

    With lane = 4 g + t: register i of a has row g + 8 (i mod 2), columns 4 t + 16 (i div 2) and the 3 behind it;
    register i of b has rows 4 t + 16 i and the 3 behind it, column g; register i of c has row g + 8 (i div 2), column
    2 t + i mod 2.
    """
    warps = len(a)
    a8 = np.ascontiguousarray(a).view(np.int8).reshape(warps, 8, 4, 2, 2, 4)  # g, t, column half, row half, byte
    b8 = np.ascontiguousarray(b).view(np.int8).reshape(warps, 8, 4, 2, 4)  # g, t, row half, byte
    left = a8.transpose(0, 4, 1, 3, 2, 5).reshape(warps, 16, 32)
    right = b8.transpose(0, 3, 2, 4, 1).reshape(warps, 32, 8)
    product = left.astype(np.float32) @ right.astype(np.float32)  # below 2^20: exact
    tiles = product.astype(np.int64).reshape(warps, 2, 8, 4, 2)  # row half, g, t, i mod 2
    total = tiles.transpose(0, 2, 3, 1, 4).reshape(warps, 32, 4) + c
    if (total != total.astype(np.int32)).any():
        raise NotRepeatable("a sum leaves int32, and in which order products are added to it is not defined")
    return total.astype(np.int32)
