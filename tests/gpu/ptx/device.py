"""Device memory as one launch sees it."""

import bisect
from collections.abc import Callable

import numpy as np

from ptx.buffers import Buffer, DeviceMemory
from ptx.faults import NotRepeatable, OutOfBounds
from ptx.host import WEAK, Hosted, Order
from ptx.memory import Access, Bytes, Counters, count_sectors
from ptx.races import Clock, Shadow, Sharing
from ptx.values import UNSIGNED, everyone


class GlobalMemory:
    def __init__(self, memory: DeviceMemory, counters: Counters | None, sharing: Sharing):
        self.memory, self.counters, self.sharing = memory, counters, sharing
        self.seen: dict[Buffer, Bytes] = {}
        self.hosted: list[Hosted] | None = None  # all of it, once something was ordered with the host
        self.observers: np.ndarray | None = None  # the threads that saw last what the host has now

    def load(self, access: Access, clock: Clock, order: Order = WEAK) -> np.ndarray:
        """-> unsigned [n, count], or [1, count] where all threads have the same address."""
        if self.counters:
            count_sectors(access, self.counters.global_loads)
        if order.system:
            self.watch()
        parts = self._parts(access)
        if len(parts) == 1:
            value = self._read(parts[0][0], access, clock, order)
        else:
            value = np.empty((len(access.thread), access.count), UNSIGNED[8 * access.item])
            for buffer, some in parts:
                value[some] = self._read(buffer, access.only(some), clock, order)
        if order.acquires and order.system:
            self.acquire(access.thread, clock)
        return value

    def store(self, access: Access, value: np.ndarray, clock: Clock, order: Order = WEAK) -> None:
        """value unsigned [n, count]."""
        if self.counters:
            count_sectors(access, self.counters.global_stores)
        access.address = everyone(access.address, len(access.thread))
        if order.system:
            self.watch()
        parts = self._parts(access)
        if order.releases and order.system:
            self.release(access.thread, clock)
        for buffer, some in parts:
            self._write(buffer, access.only(some) if len(parts) > 1 else access, value[some], clock, order)

    def change(
        self, access: Access, compute: Callable[[np.ndarray], np.ndarray], clock: Clock, order: Order
    ) -> np.ndarray:
        """What is there becomes compute(it). -> what was there; both unsigned [n, 1]."""
        access.address = everyone(access.address, len(access.thread))
        if len(np.unique(access.address)) < len(access.address):
            raise NotRepeatable("what each thread finds there depends on their order", int(access.thread[0]))
        old = self.load(access, clock, order)
        self.store(access, compute(old), clock, order)
        return old

    # -- order with the host ------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """From now on what the host has may differ from what is seen of it."""
        if self.hosted is None:
            self.hosted = [self._seen(b) for b in self.memory.buffers if b.hosted]

    def acquire(self, threads: np.ndarray, clock: Clock) -> None:
        for hosted in self.hosted or ():
            hosted.acquire(threads, clock)

    def release(self, threads: np.ndarray, clock: Clock) -> None:
        self.watch()
        for hosted in self.hosted:
            hosted.release(threads, clock)

    def fence(self, threads: np.ndarray, clock: Clock) -> None:
        """Of the system's scope."""
        self.release(threads, clock)
        if self.observers is not None:
            self.acquire(self.observers, clock)

    def end(self) -> None:
        """Of the launch."""
        for seen in self.seen.values():
            if isinstance(seen, Hosted):
                seen.end()

    # -- buffers ------------------------------------------------------------------------------------------------------

    def _read(self, buffer: Buffer, access: Access, clock: Clock, order: Order) -> np.ndarray:
        seen, offset = self._seen(buffer), access.address - buffer.address
        if buffer.hosted and order.system:
            self.observers = access.thread
            return seen.read_now(access, offset)
        return seen.read(access, offset, clock)

    def _write(self, buffer: Buffer, access: Access, value: np.ndarray, clock: Clock, order: Order) -> None:
        if buffer.frozen:
            raise OutOfBounds(f"{buffer.name} is read-only", int(access.thread[0]))
        seen, offset = self._seen(buffer), access.address - buffer.address
        if buffer.hosted and order.system:
            seen.write_now(access, offset, value, clock)
        else:
            seen.write(access, offset, value, clock)

    def _seen(self, buffer: Buffer) -> Bytes:
        found = self.seen.get(buffer)
        if found is None:
            if buffer.hosted:
                found = Hosted(buffer, self.sharing)
            else:
                found = Bytes(buffer.data, None if buffer.frozen else Shadow(len(buffer.data), self.sharing, True))
            self.seen[buffer] = found
        return found

    def _parts(self, access: Access) -> list[tuple[Buffer, np.ndarray | slice]]:
        """The buffers that an access is within, nearly always one, and which threads are in each."""
        access.check_alignment()
        memory, lowest, highest = self.memory, int(access.address.min()), int(access.address.max())
        low = bisect.bisect_right(memory.starts, lowest)
        if low and highest + access.bytes <= memory.ends[low]:
            return [(memory.buffers[low - 1], slice(None))]
        address = everyone(access.address, len(access.thread))
        which = np.searchsorted(memory.starts, address, "right")
        outside = address + access.bytes > np.array(memory.ends)[which]
        if outside.any():
            raise OutOfBounds(memory.where(int(address[outside][0])), int(access.thread[outside][0]))
        return [(memory.buffers[i - 1], which == i) for i in np.unique(which)]
