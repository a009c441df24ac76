"""Who touched each byte last, and when: what tells a race from an exchange.

Threads that go in step here run in any order on a GPU. A byte that one of them changed may be used by another only with
a barrier in between: of the block or, within a warp, of the warp; between blocks there is none. Likewise a byte that a
thread read may be changed by another only behind a barrier. Several threads may store the same value: layouts that keep
copies of a tensor do.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ptx.faults import Race, Uninitialised

WARP, BLOCK = 1, 2  # how far apart two threads are at most, if not in the grid
NEVER = np.zeros((1, 1), bool)


class Clock(NamedTuple):
    """Of threads in step: goes on at each barrier."""

    now: int = 1
    block: int = 1  # the last barrier of the block
    warp: int = 1  # the last one of the warp or the block

    def block_barrier(self) -> "Clock":
        return Clock(self.now + 1, self.now + 1, self.now + 1)

    def warp_barrier(self) -> "Clock":
        return Clock(self.now + 1, self.block, self.now + 1)


class Sharing(NamedTuple):
    """Of memory: by whom, and how finely."""

    block_threads: int
    one_block: bool  # no byte is touched by two blocks
    cell: int = 1  # bytes that are always touched together

    def cells(self, offset: np.ndarray, n_bytes: int) -> np.ndarray:
        """Of n_bytes at each of offset [n]: [n, cells]."""
        if n_bytes == self.cell:
            return (offset // self.cell)[:, None]
        return (offset // self.cell)[:, None] + np.arange(n_bytes // self.cell)


class Shadow:
    """Of `size` bytes. Times of 0 mean never; threads are counted over the whole grid. Reads are only listed until a
    store makes them matter: most memory is never written to in a launch, and what was read before a barrier of the only
    block that has it never matters."""

    MOST = 1 << 23  # reads that are listed

    def __init__(self, size: int, sharing: Sharing, initial: bool):
        """`initial`: every byte has a value before the first store."""
        self.size, self.sharing, self.initial = size, sharing, initial
        self.made = False
        self.listed: list[tuple[np.ndarray, int, np.ndarray, Clock]] = []  # offsets, bytes at each, threads
        self.n_listed = 0
        self.last_write = self.last_read = 0
        self.copied: np.ndarray | None = None  # where asynchronous copies to it are under way

    def make(self) -> None:
        if not self.made:
            cells = -(-self.size // self.sharing.cell)
            self.wrote, self.writer, self.read, self.reader = np.zeros((4, cells), np.int32)
            self.spread = np.zeros(cells, np.uint8)  # among how many read it since a barrier: 0, WARP, ...
            self.made = True

    def on_read(self, offset: np.ndarray, n_bytes: int, thread: np.ndarray, clock: Clock) -> None:
        """Of n_bytes at each of offset [n], or [1] where all have the same, by thread [n]."""
        if self.copied is not None or not self.initial or not self._before(self.last_write, clock):
            self._check_read(self.sharing.cells(offset, n_bytes), thread[:, None], clock)
        self.listed.append((offset, n_bytes, thread, clock))
        self.n_listed += len(thread)
        if self.n_listed > self.MOST:
            self.settle(clock)

    def _check_read(self, at: np.ndarray, thread: np.ndarray, clock: Clock) -> None:
        """Of cells [n, cells] by thread [n, 1]."""
        if self.copied is not None:
            self._check_copies(at, thread)
        if not self.initial:
            self.make()
            nothing = self.wrote[at] == 0
            if np.count_nonzero(nothing):
                raise Uninitialised("nothing was written there", _first(thread, nothing))
        if not self._before(self.last_write, clock):
            wrote = self.wrote[at]
            race = (
                NEVER
                if self._all_before(wrote, clock)
                else self._unordered(wrote, self.apart(self.writer[at], thread), clock)
            )
            if np.count_nonzero(race):
                raise Race("another thread wrote it, with no barrier since", _first(thread, race))

    def settle(self, clock: Clock | None = None) -> None:
        """What was read is known by cell; without what is ordered with all that comes, if it is known what comes."""
        self.make()
        for offset, n_bytes, thread, when in self.listed:
            if clock is None or not self._before(when.now, clock):
                at = self.sharing.cells(offset, n_bytes)
                self._remember(np.broadcast_to(at, (len(thread), at.shape[1])), thread[:, None], when)
        self.listed, self.n_listed = [], 0

    def _remember(self, at: np.ndarray, thread: np.ndarray, clock: Clock) -> None:
        when = self.read[at]
        if self._before(self.last_read, clock):
            self.reader[at], self.spread[at] = thread, 0
        else:  # what was read before a barrier of the same block counts no more
            apart = np.maximum(self.apart(self.reader[at], thread), self.spread[at])
            over = (when == 0) | ((when < clock.block) & (apart <= BLOCK))
            self.reader[at[over]] = np.broadcast_to(thread, at.shape)[over]
            self.spread[at[over]] = 0
        apart = self.apart(self.reader[at], thread)
        if np.count_nonzero(apart):
            np.maximum.at(self.spread, at, apart)
        self.read[at] = clock.now
        self.last_read = max(self.last_read, clock.now)

    def on_write(
        self,
        offset: np.ndarray,
        n_bytes: int,
        thread: np.ndarray,
        changed: Callable[[], np.ndarray],
        clock: Clock,
    ) -> None:
        """offset [n]; changed() [n, items]: where the new value is not the old one."""
        self.settle(clock)
        at, thread = self.sharing.cells(offset, n_bytes), thread[:, None]
        if self.copied is not None:
            self._check_copies(at, thread)
        race = NEVER
        if not self._before(self.last_write, clock) and not self._all_before(self.wrote[at], clock):
            race = race | self._unordered(self.wrote[at], self.apart(self.writer[at], thread), clock)
        if not self._before(self.last_read, clock) and not self._all_before(self.read[at], clock):
            readers = np.maximum(self.apart(self.reader[at], thread), self.spread[at])
            race = race | self._unordered(self.read[at], readers, clock)
        if np.count_nonzero(race):
            new = changed()
            race = race & np.repeat(new, at.shape[1] // new.shape[1], axis=1)
            if np.count_nonzero(race):
                raise Race("another thread used it, with no barrier since", _first(thread, race))
        self.writer[at], self.wrote[at] = thread, clock.now
        self.last_write = max(self.last_write, clock.now)

    def written(self, at: np.ndarray, thread: int, clock: Clock) -> None:
        """Cells [n], by another way than a store."""
        self.make()
        self.writer[at], self.wrote[at] = thread, clock.now
        self.last_write = max(self.last_write, clock.now)

    def begin_copy(self, offset: np.ndarray, n_bytes: int) -> None:
        """To n_bytes at each offset, of which nothing is known until its end."""
        if self.copied is None:
            self.copied = np.zeros(self.wrote.shape, bool)
        self.copied[self.sharing.cells(offset, n_bytes)] = True

    def end_copy(self, offset: np.ndarray, n_bytes: int, thread: np.ndarray, clock: Clock) -> None:
        self.copied[self.sharing.cells(offset, n_bytes)] = False
        self.on_write(offset, n_bytes, thread, lambda: np.ones((len(offset), 1), bool), clock)

    def ordered(self, at: np.ndarray, thread: int, clock: Clock) -> np.ndarray:
        """Which cells [n] were last written by that thread, or in front of a barrier between their writer and it."""
        return ~self._unordered(self.wrote[at], self.apart(self.writer[at], np.int32(thread)), clock)

    def apart(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Threads: 0 if they are the same, WARP if of one warp, BLOCK if of one block, else GRID."""
        apart = (one != other).view(np.uint8)
        if np.count_nonzero(apart):
            apart = apart + (one // 32 != other // 32)
            apart += one // self.sharing.block_threads != other // self.sharing.block_threads
        return apart

    def _before(self, when: int, clock: Clock) -> bool:
        """Whether what happened then is ordered with what is done now, whoever did it."""
        return when < (clock.block if self.sharing.one_block else 1)

    def _all_before(self, when: np.ndarray, clock: Clock) -> bool:
        return not np.count_nonzero(when >= (clock.block if self.sharing.one_block else 1))

    def _unordered(self, when: np.ndarray, apart: np.ndarray, clock: Clock) -> np.ndarray:
        """Whether what threads so far `apart` did may as well come after what is done now."""
        ordered = (apart == 0) | ((apart == WARP) & (when < clock.warp)) | ((apart <= BLOCK) & (when < clock.block))
        return (when > 0) & ~ordered

    def _check_copies(self, at: np.ndarray, thread: np.ndarray) -> None:
        if self.copied[at].any():
            raise Race("an asynchronous copy to it is under way", _first(thread, self.copied[at]))


def _first(thread: np.ndarray, where: np.ndarray) -> int:
    return int(np.broadcast_to(thread, where.shape)[where][0])
