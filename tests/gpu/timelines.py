"""Rows of several timelines for kernels: lines and tables (lines.py). Import behind `pytest.importorskip("triton")`."""

from collections.abc import Iterator, Sequence

import numpy as np
from gpu_kernels import Launch
from v4kernels.triton import lines

PART = 2 * lines.PARTS.value  # of the layer that `table` describes; those before keep nothing


def table(launch: Launch, **kept: np.ndarray) -> int:
    """The address of one that says where these are: RING=.., ENTRIES=.., all placed."""
    numbers = np.zeros((4, lines.PARTS.value), np.int64)
    for name, array in kept.items():
        numbers[2, getattr(lines, name).value] = launch.address(array)
    return launch.address(launch.place(numbers))


def spans(counts: Sequence[int]) -> list[slice]:
    """So many rows each, one behind the other."""
    ends = np.cumsum(counts).tolist()
    return [slice(end - count, end) for end, count in zip(ends, counts)]


def lines_of(starts: Sequence[int], counts: Sequence[int], tables: Sequence[int]) -> np.ndarray:
    """int64 [rows, 4] of timelines that are at `starts`, so many rows each."""
    made = np.zeros((sum(counts), lines.LINE.value), np.int64)
    for rows, start, count, at in zip(spans(counts), starts, counts, tables):
        i = np.arange(count)
        made[rows] = np.stack((np.full(count, at), start + i, i, count - 1 - i), 1)
    return made


def parts(rows: int, each: int) -> Iterator[slice]:
    """Of so many rows; 0: all at once."""
    for first in range(0, rows, each or rows):
        yield slice(first, min(first + (each or rows), rows))
