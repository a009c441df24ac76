"""Asynchronous copies to shared memory, cp.async: under way from the instruction until their thread waits for the group
that they were committed with. Meanwhile nobody may use where they go to, the thread itself included; afterwards other
threads need a barrier, as behind any store. What they copy is read at once."""

from dataclasses import dataclass, field

import numpy as np

from ptx.memory import Access, SharedMemory
from ptx.races import Clock


@dataclass
class Copies:
    """Of blocks that go in step, so that all their threads have as many groups."""

    begun: list[Access] = field(default_factory=list)  # of shared memory
    committed: list[list[Access]] = field(default_factory=list)  # the oldest first

    def begin(self, shared: SharedMemory, access: Access, value: np.ndarray, clock: Clock) -> None:
        """value unsigned [n, count]."""
        shared.begin_copy(access, value, clock)
        self.begun.append(access)

    def commit(self) -> None:
        self.committed.append(self.begun)
        self.begun = []

    def wait(self, shared: SharedMemory, left: int, clock: Clock) -> None:
        """Until no more than so many groups are under way."""
        while len(self.committed) > left:
            for access in self.committed.pop(0):
                shared.end_copy(access, clock)

    def only(self, threads: np.ndarray) -> "Copies":
        """Those of some threads."""
        kept = [[a.only(np.isin(a.thread, threads)) for a in accesses] for accesses in (self.begun, *self.committed)]
        return Copies(kept[0], kept[1:])
