"""Bytes that threads access, shared memory, and what an access costs."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from ptx.faults import Misaligned, OutOfBounds, Race
from ptx.races import Clock, Shadow, Sharing
from ptx.values import UNSIGNED, everyone

FIRST_SHARED = 1024
SECTOR = 32  # bytes
BANKS = 32  # of 4 bytes
WHOLE = {n: np.dtype(f"u{n}") for n in (1, 2, 4, 8)} | {16: np.dtype(complex), 32: np.dtype("V32")}  # to be copied


@dataclass
class Requests:
    """Memory instructions of whole warps, and what they take: sectors of 32 bytes of device memory; wavefronts of
    shared memory, where two words of one bank take two."""

    count: int = 0
    transfers: int = 0


@dataclass
class Counters:
    """Of a launch, by warp instruction: 32 threads count once, whether or not a guard leaves some of them out."""

    instructions: Counter[str] = field(default_factory=Counter)  # by opcode
    global_loads: Requests = field(default_factory=Requests)
    global_stores: Requests = field(default_factory=Requests)
    shared_loads: Requests = field(default_factory=Requests)
    shared_stores: Requests = field(default_factory=Requests)


@dataclass
class Access:
    """One memory instruction: of each thread that takes part, its number in the grid and its address."""

    thread: np.ndarray  # [n] int64
    address: np.ndarray  # [n] int64; [1] where all have the same
    item: int  # bytes
    count: int  # items a thread

    def __post_init__(self) -> None:
        self.bytes = self.item * self.count

    def only(self, some: np.ndarray) -> "Access":
        return Access(self.thread[some], everyone(self.address, len(self.thread))[some], self.item, self.count)

    def check_alignment(self) -> None:
        low = self.address & (self.bytes - 1)
        if np.count_nonzero(low):
            address, thread = int(self.address[low != 0][0]), self.thread[: len(low)][low != 0]
            raise Misaligned(f"address {address:#x} is no multiple of {self.bytes}", int(thread[0]))


class Bytes:
    """A range of memory that accesses are known to be within."""

    def __init__(self, data: np.ndarray, shadow: Shadow | None):
        self.data = data  # uint8, as many as whole 16-byte words
        self.shadow = shadow  # None: nothing writes there

    def read(self, access: Access, offset: np.ndarray, clock: Clock) -> np.ndarray:
        """offset like access.address -> unsigned [n, count], or [1, count] where all have the same."""
        if self.shadow:
            self.shadow.on_read(offset, access.bytes, access.thread, clock)
        return self._at(access, offset)

    def write(self, access: Access, offset: np.ndarray, value: np.ndarray, clock: Clock) -> None:
        """offset [n], value unsigned [n, count]."""
        changed = lambda: self._at(access, offset) != value  # noqa: E731
        self.shadow.on_write(offset, access.bytes, access.thread, changed, clock)
        whole = WHOLE[access.bytes]
        self.data.view(whole)[offset // access.bytes] = value.view(whole)[:, 0]
        lost = self._at(access, offset) != value
        if np.count_nonzero(lost):
            raise Race("two threads write different values there at once", int(access.thread[lost.any(1)][0]))

    def _at(self, access: Access, offset: np.ndarray) -> np.ndarray:
        """-> unsigned [n, count]"""
        found = self.data.view(WHOLE[access.bytes])[offset // access.bytes]
        return found.view(UNSIGNED[8 * access.item]).reshape(-1, access.count)


class SharedMemory(Bytes):
    """Of `blocks` blocks beside each other, the first one being number `first` of the grid."""

    def __init__(self, counters: Counters | None, size: int, first: int, blocks: int, sharing: Sharing):
        self.stride = -(-size // 16) * 16
        self.counters, self.size, self.first, self.sharing = counters, size, first, sharing
        total = self.stride * blocks
        super().__init__(np.zeros(total, np.uint8), Shadow(total, sharing, False))

    def load(self, access: Access, clock: Clock, together: np.ndarray | None = None) -> np.ndarray:
        """`together`: see count_wavefronts."""
        offset = self._offset(access)
        if self.counters:
            count_wavefronts(access, together, self.counters.shared_loads)
        return self.read(access, offset, clock)

    def store(self, access: Access, value: np.ndarray, clock: Clock, together: np.ndarray | None = None) -> None:
        offset = self._offset(access)
        if self.counters:
            count_wavefronts(access, together, self.counters.shared_stores)
        self.write(access, offset, value, clock)

    def begin_copy(self, access: Access, value: np.ndarray, clock: Clock) -> None:
        """A store that happens any time until `end_copy`."""
        self.store(access, value, clock)
        self.shadow.begin_copy(self._offset(access), access.bytes)

    def end_copy(self, access: Access, clock: Clock) -> None:
        self.shadow.end_copy(self._offset(access), access.bytes, access.thread, clock)

    def _offset(self, access: Access) -> np.ndarray:
        access.check_alignment()
        offset = access.address - FIRST_SHARED
        outside = offset.view(np.uint64) > self.size - access.bytes if self.size else offset == offset
        if np.count_nonzero(outside):
            byte = int(offset[outside][0])
            thread = int(access.thread[: len(outside)][outside][0])
            raise OutOfBounds(f"byte {byte} of shared memory, which has {self.size}", thread)
        if self.stride == len(self.data):
            return offset
        return offset + (access.thread // self.sharing.block_threads - self.first) * self.stride


def count_sectors(access: Access, requests: Requests) -> None:
    """Threads come in order, and an aligned access lies within one sector."""
    warp = access.thread // 32
    requests.count += 1 + int(np.count_nonzero(np.diff(warp)))
    requests.transfers += len(np.unique(warp << 44 | access.address // SECTOR))


def count_wavefronts(access: Access, together: np.ndarray | None, requests: Requests) -> None:
    """`together` numbers the threads that are served at once, as many as ask for 32 words; by default neighbours."""
    warp = access.thread // 32
    if together is None:
        together = access.thread // (32 * 4 // max(4, access.bytes))
    word = (access.address[:, None] + np.arange(0, access.bytes, 4)) // 4
    keys = np.unique(together[:, None] << 32 | word)
    _, rank = np.unique(keys >> 32, return_inverse=True)
    banks = np.bincount(rank * BANKS + keys % BANKS, minlength=(rank[-1] + 1) * BANKS)
    requests.count += 1 + int(np.count_nonzero(np.diff(warp)))
    requests.transfers += int(banks.reshape(-1, BANKS).max(1).sum())
