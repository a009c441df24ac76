"""Slots in the memory of a device whose kernels read them as a step does: by a table that is there too."""

import numpy as np
import pytest

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import small_kernels
from emulated import Emulated
from hypothesis import settings
from slot_machine import ALL, Slots

from v4cli.experts.device import parts_of


class Late(Emulated):
    """As slot_machine.py asks."""

    def __init__(self, late: bool):
        super().__init__(late=late)
        self.failed: set[object] = set()

    @property
    def pending(self):
        return self.coming

    @property
    def allocated(self):
        return self.nbytes

    def complete(self, count=None, which=0):
        for _ in range(len(self.coming) if count is None else min(count, len(self.coming))):
            self.coming.insert(0, self.coming.pop(which % len(self.coming)))
            self.arrive(1)

    def fail(self):
        self.failed.add(self.coming.pop(0)[0])

    def completed(self, ticket):
        if ticket in self.failed:
            raise OSError("a copy failed")
        return super().completed(ticket)

    def place(self, at, n_bytes):
        return self.memory.at(at, n_bytes)


class OnDevice(Slots):
    def new_device(self, late):
        return Late(late)

    def read(self):
        """By a kernel, in memory of its own that is given back."""
        super().read()
        slots, device = self.slots, self.device
        if not slots.n_slots:
            return
        table, out = device.alloc(2 * ALL), device.alloc(2 * ALL)
        device.write(out, np.zeros(2 * ALL, np.uint8))
        for kind, (pool, at, of) in enumerate(zip(slots.pools, slots.memory_at, self.scratch)):
            device.write(table, np.where(slots.kind == kind, slots.table, np.int16(-1)))
            last = pool.n_bytes - 256 + parts_of(of)[-1][1] - 1
            sizes = {"SLOT": pool.n_bytes, "LAST": last}
            device.launch(small_kernels.first_and_last, (ALL,), (at, table, out), sizes, warps=1)
        seen = device.read(out, 2 * ALL).reshape(ALL, 2)
        want = np.where(slots.table.ravel() >= 0, np.arange(ALL) + 1, 0)
        device.free(table)
        device.free(out)
        assert (seen == want[:, None]).all()


OnDevice.TestCase.settings = settings(max_examples=10, stateful_step_count=15, deadline=None)
TestSlots = OnDevice.TestCase
