"""Memory of the host that a kernel sees while the host uses it, as the memory model of the PTX manual has it at its
least: loads see what was there when the kernel began, stores reach the host when it ends. Sooner only what is ordered:

  a load that is volatile, relaxed or acquire at the scope of the system sees what is there now
  what the host wrote before that is seen once a load acquires, by that thread and those behind a barrier after it
  a store likewise is there at once; if it releases, so is what its thread wrote before it, and what others wrote in
  front of a barrier before it
  a fence makes stores before it release and loads before it acquire

Accesses of a narrower scope order nothing with the host.
"""

import time
from dataclasses import dataclass

import numpy as np

from ptx.buffers import Buffer
from ptx.faults import NotRepeatable
from ptx.memory import Access, Bytes
from ptx.races import Clock, Shadow, Sharing
from ptx.values import UNSIGNED


@dataclass(frozen=True)
class Order:
    """What an access orders with the host: nothing, unless it is of the `system`'s scope."""

    acquires: bool = False
    releases: bool = False
    system: bool = False


WEAK = Order()


class Hosted(Bytes):
    """A buffer of host memory in one launch. `data` is what plain loads and stores of the kernel work on."""

    def __init__(self, buffer: Buffer, sharing: Sharing):
        super().__init__(buffer.data.copy(), Shadow(len(buffer.data), sharing._replace(cell=1), True))
        self.host, self.block_threads = buffer.data, sharing.block_threads
        self.kept = np.zeros(len(self.data), bool)  # bytes stored that the host does not see yet

    def write(self, access: Access, offset: np.ndarray, value: np.ndarray, clock: Clock) -> None:
        super().write(access, offset, value, clock)
        self.kept[offset[:, None] + np.arange(access.bytes)] = True

    def read_now(self, access: Access, offset: np.ndarray) -> np.ndarray:
        """-> unsigned [n, count]. The host gets a turn before: a loop of these waits for it."""
        if len(np.unique(access.thread // 32)) > len(np.unique(access.thread // self.block_threads)):
            raise NotRepeatable("each warp may see something else there, and go another way", int(access.thread[0]))
        turn()
        dtype = UNSIGNED[8 * access.item]
        at = (offset // access.item)[:, None] + np.arange(access.count)
        own = self.kept.view(dtype)[at] != 0  # stored by this kernel itself
        return np.where(own, self.data.view(dtype)[at], self.host.view(dtype)[at])

    def write_now(self, access: Access, offset: np.ndarray, value: np.ndarray, clock: Clock) -> None:
        super().write(access, offset, value, clock)
        self.kept[offset[:, None] + np.arange(access.bytes)] = False
        at = (offset // access.item)[:, None] + np.arange(access.count)
        self.host.view(UNSIGNED[8 * access.item])[at] = value

    def acquire(self, threads: np.ndarray, clock: Clock) -> None:
        """What is there now becomes seen; as far as threads of the block that do not acquire are concerned, one of
        those that do wrote it."""
        now = self.host.copy()
        new = np.flatnonzero((now != self.data) & ~self.kept)
        if len(new):
            self.data[new] = now[new]
            blocks = np.unique(threads // self.block_threads)
            if len(threads) < len(blocks) * self.block_threads:
                self.shadow.written(new, int(threads[0]), clock)

    def release(self, threads: np.ndarray, clock: Clock) -> None:
        """What these threads wrote, or others in front of a barrier with them, reaches the host."""
        at = np.flatnonzero(self.kept)
        if len(at):
            seen = np.isin(self.shadow.writer[at], threads)
            for thread in threads:
                if seen.all():
                    break
                seen |= self.shadow.ordered(at, int(thread), clock)
            self.reach(at[seen])

    def reach(self, at: np.ndarray) -> None:
        self.host[at] = self.data[at]
        self.kept[at] = False

    def end(self) -> None:
        """Of the launch."""
        self.reach(np.flatnonzero(self.kept))


def turn() -> None:
    """For another thread."""
    time.sleep(0)
