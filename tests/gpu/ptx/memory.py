"""Device memory, shared memory, and what an access to them costs."""

import bisect
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from ptx.buffers import Buffer, DeviceMemory
from ptx.faults import Misaligned, OutOfBounds, Race
from ptx.races import Clock, LateShadow, Shadow
from ptx.values import UNSIGNED

FIRST_SHARED = 1024
SECTOR = 32  # bytes
BANKS = 32  # of 4 bytes


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
    address: np.ndarray  # [n] int64
    item: int  # bytes
    count: int  # items a thread

    @property
    def bytes(self) -> int:
        return self.item * self.count

    def only(self, some: np.ndarray) -> "Access":
        return Access(self.thread[some], self.address[some], self.item, self.count)

    def check_alignment(self) -> None:
        wrong = self.address % self.bytes != 0
        if wrong.any():
            address = int(self.address[wrong][0])
            raise Misaligned(f"address {address:#x} is no multiple of {self.bytes}", int(self.thread[wrong][0]))


class Bytes:
    """A range of memory that accesses are known to be within."""

    def __init__(self, data: np.ndarray, shadow: Shadow | LateShadow | None):
        self.data = data  # uint8, as many as whole 16-byte words
        self.shadow = shadow  # None: nothing writes there

    def read(self, access: Access, offset: np.ndarray, clock: Clock) -> np.ndarray:
        """offset [n] -> unsigned [n, count]."""
        if self.shadow:
            self.shadow.on_read(offset, access.bytes, access.thread, clock)
        words = self.data.view(UNSIGNED[8 * access.item])
        return words[(offset // access.item)[:, None] + np.arange(access.count)]

    def write(self, access: Access, offset: np.ndarray, value: np.ndarray, clock: Clock) -> None:
        """value unsigned [n, count]."""
        at = offset[:, None] + np.arange(access.bytes)
        value = np.ascontiguousarray(value).view(np.uint8)
        self.shadow.on_write(at, access.thread, self.data[at] != value, clock)
        self.data[at] = value
        lost = self.data[at] != value
        if lost.any():
            raise Race("two threads write different values there at once", int(access.thread[lost.any(1)][0]))


class GlobalMemory:
    """Device memory as one launch sees it."""

    def __init__(self, memory: DeviceMemory, counters: Counters, block_threads: int):
        self.memory, self.counters, self.block_threads = memory, counters, block_threads
        self.seen: dict[Buffer, Bytes] = {}

    def load(self, access: Access, clock: Clock) -> np.ndarray:
        """-> unsigned [n, count]."""
        count_sectors(access, self.counters.global_loads)
        parts = self._parts(access)
        if len(parts) == 1:
            buffer, part, _ = parts[0]
            return self._seen(buffer).read(part, part.address - buffer.address, clock)
        value = np.empty((len(access.thread), access.count), UNSIGNED[8 * access.item])
        for buffer, part, some in parts:
            value[some] = self._seen(buffer).read(part, part.address - buffer.address, clock)
        return value

    def store(self, access: Access, value: np.ndarray, clock: Clock) -> None:
        count_sectors(access, self.counters.global_stores)
        for buffer, part, some in self._parts(access):
            if buffer.frozen:
                raise OutOfBounds(f"{buffer.name} is read-only", int(part.thread[0]))
            self._seen(buffer).write(part, part.address - buffer.address, value[some], clock)

    def _seen(self, buffer: Buffer) -> Bytes:
        found = self.seen.get(buffer)
        if found is None:
            shadow = None if buffer.frozen else LateShadow(len(buffer.data), self.block_threads)
            found = self.seen[buffer] = Bytes(buffer.data, shadow)
        return found

    def _parts(self, access: Access) -> list[tuple[Buffer, Access, np.ndarray | slice]]:
        """An access, by the buffers that it is within: nearly always one."""
        access.check_alignment()
        memory, lowest, highest = self.memory, int(access.address.min()), int(access.address.max())
        low = bisect.bisect_right(memory.starts, lowest)
        if low and highest + access.bytes <= memory.ends[low]:
            return [(memory.buffers[low - 1], access, slice(None))]
        which = np.searchsorted(memory.starts, access.address, "right")
        outside = access.address + access.bytes > memory.ends[which]
        if outside.any():
            raise OutOfBounds(memory.where(int(access.address[outside][0])), int(access.thread[outside][0]))
        parts = []
        for i in np.unique(which):
            some = which == i
            parts.append((memory.buffers[i - 1], access.only(some), some))
        return parts


class SharedMemory(Bytes):
    """Of `blocks` blocks beside each other, the first one being number `first` of the grid."""

    def __init__(self, counters: Counters, size: int, first: int, blocks: int, block_threads: int):
        self.stride = -(-size // 16) * 16
        self.counters, self.size, self.first, self.block_threads = counters, size, first, block_threads
        total = self.stride * blocks
        super().__init__(np.zeros(total, np.uint8), Shadow(total, block_threads, False))

    def load(self, access: Access, clock: Clock, together: np.ndarray | None = None) -> np.ndarray:
        """`together`: see count_wavefronts."""
        offset = self._offset(access)
        count_wavefronts(access, together, self.counters.shared_loads)
        return self.read(access, offset, clock)

    def store(self, access: Access, value: np.ndarray, clock: Clock, together: np.ndarray | None = None) -> None:
        offset = self._offset(access)
        count_wavefronts(access, together, self.counters.shared_stores)
        self.write(access, offset, value, clock)

    def begin_copy(self, access: Access, value: np.ndarray, clock: Clock) -> None:
        """A store that happens any time until `end_copy`."""
        self.store(access, value, clock)
        self.shadow.under_way[self._bytes(access)] = True

    def end_copy(self, access: Access, clock: Clock) -> None:
        at = self._bytes(access)
        self.shadow.under_way[at] = False
        self.shadow.on_write(at, access.thread, np.ones(at.shape, bool), clock)

    def _bytes(self, access: Access) -> np.ndarray:
        return self._offset(access)[:, None] + np.arange(access.bytes)

    def _offset(self, access: Access) -> np.ndarray:
        access.check_alignment()
        offset = access.address - FIRST_SHARED
        outside = (offset < 0) | (offset + access.bytes > self.size)
        if outside.any():
            byte = int(offset[outside][0])
            raise OutOfBounds(f"byte {byte} of shared memory, which has {self.size}", int(access.thread[outside][0]))
        return offset + (access.thread // self.block_threads - self.first) * self.stride


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
