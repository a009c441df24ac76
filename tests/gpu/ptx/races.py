"""Who touched each byte last, and when: what tells a race from an exchange.

Threads that go in step here run in any order on a GPU. A byte that one of them changed may be used by another only with
a barrier in between: of the block or, within a warp, of the warp; between blocks there is none. Likewise a byte that a
thread read may be changed by another only behind a barrier. Several threads may store the same value: layouts that keep
copies of a tensor do.
"""

from typing import NamedTuple

import numpy as np

from ptx.faults import Race, Uninitialised

SEVERAL = -1


class Clock(NamedTuple):
    """Of threads in step: goes on at each barrier."""

    now: int = 1
    block: int = 1  # the last barrier of the block
    warp: int = 1  # the last one of the warp or the block

    def block_barrier(self) -> "Clock":
        return Clock(self.now + 1, self.now + 1, self.now + 1)

    def warp_barrier(self) -> "Clock":
        return Clock(self.now + 1, self.block, self.now + 1)


class Shadow:
    """Of `size` bytes. Times of 0 mean never; `threads` are counted over the whole grid."""

    def __init__(self, size: int, block_threads: int, initial: bool):
        """`initial`: every byte has a value before the first store."""
        self.levels = (1, 32, block_threads)  # threads, warps and blocks, which barriers are between
        self.initial = initial
        self.wrote, self.read, self.writer = np.zeros((3, size), np.int32)
        self.readers = np.zeros((3, size), np.int32)  # the last one, or SEVERAL, at each level
        self.under_way = np.zeros(size, bool)  # asynchronous copies to it

    def on_read(self, offset: np.ndarray, n_bytes: int, thread: np.ndarray, clock: Clock) -> None:
        """Of n_bytes at each of offset [n], by thread [n]."""
        at = offset[:, None] + np.arange(n_bytes)
        thread = np.broadcast_to(thread[:, None], at.shape)
        self._check_copies(at, thread)
        wrote, writer = self.wrote[at], self.writer[at]
        if not self.initial and not wrote.all():
            raise Uninitialised("nothing was written there", _first(thread, wrote == 0))
        race = self._unordered(wrote, [writer // level for level in self.levels], thread, clock)
        if race.any():
            raise Race("another thread wrote it, with no barrier since", _first(thread, race))
        when = self.read[at]
        counts = (when >= clock.block) | (self.readers[2][at] != thread // self.levels[2])
        counts &= when > 0
        for readers, level in zip(self.readers, self.levels):
            who = thread // level
            readers[at] = np.where(counts & (readers[at] != who), SEVERAL, who)
            clash = readers[at] != who  # another thread of the same instruction
            readers[at[clash]] = SEVERAL
        self.read[at] = clock.now

    def on_write(self, at: np.ndarray, thread: np.ndarray, changed: np.ndarray, clock: Clock) -> None:
        """changed [n, bytes]: where the new value is not the old one."""
        thread = np.broadcast_to(thread[:, None], at.shape)
        self._check_copies(at, thread)
        writer = self.writer[at]
        race = self._unordered(self.wrote[at], [writer // level for level in self.levels], thread, clock)
        race |= self._unordered(self.read[at], [readers[at] for readers in self.readers], thread, clock)
        race &= changed
        if race.any():
            raise Race("another thread used it, with no barrier since", _first(thread, race))
        self.writer[at] = thread
        self.wrote[at] = clock.now

    def ordered(self, at: np.ndarray, thread: int, clock: Clock) -> np.ndarray:
        """Which bytes [n] were last written by that thread or in front of a barrier between their writer and it."""
        writer = self.writer[at]
        who = [writer // level for level in self.levels]
        return ~self._unordered(self.wrote[at], who, np.int64(thread), clock)

    def _check_copies(self, at: np.ndarray, thread: np.ndarray) -> None:
        if self.under_way[at].any():
            raise Race("an asynchronous copy to it is under way", _first(thread, self.under_way[at]))

    def _unordered(self, when, who: list[np.ndarray], thread, clock: Clock) -> np.ndarray:
        """Whether what `who`, by level, did `when` may as well come after what `thread` does now."""
        same_thread, same_warp, same_block = (w == thread // level for w, level in zip(who, self.levels))
        ordered = same_thread | (same_warp & (when < clock.warp)) | (same_block & (when < clock.block))
        return (when > 0) & ~ordered


def _first(thread: np.ndarray, where: np.ndarray) -> int:
    return int(thread[where][0])


class LateShadow:
    """A shadow that is made at the first store. Until then reads are only listed: most buffers are never written to in
    a launch."""

    MOST = 1 << 20  # reads that are listed

    def __init__(self, size: int, block_threads: int):
        self.size, self.block_threads = size, block_threads
        self.shadow: Shadow | None = None
        self.reads: list[tuple[np.ndarray, int, np.ndarray, Clock]] = []
        self.listed = 0

    def made(self) -> Shadow:
        if self.shadow is None:
            self.shadow = Shadow(self.size, self.block_threads, True)
            for read in self.reads:
                self.shadow.on_read(*read)
            self.reads = []
        return self.shadow

    def on_read(self, offset: np.ndarray, n_bytes: int, thread: np.ndarray, clock: Clock) -> None:
        if self.shadow is not None or self.listed > self.MOST:
            self.made().on_read(offset, n_bytes, thread, clock)
        else:
            self.reads.append((offset, n_bytes, thread, clock))
            self.listed += len(offset)

    def on_write(self, at: np.ndarray, thread: np.ndarray, changed: np.ndarray, clock: Clock) -> None:
        self.made().on_write(at, thread, changed, clock)
