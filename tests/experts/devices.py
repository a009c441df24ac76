"""A device in numpy, and the cpu op table playing one: experts in slots are computed from the slots' bytes."""

import mmap

import numpy as np
from v4kernels.cpu import Buffer, ExpertTable
from v4kernels.cpu.serve import Ring

from v4cli.experts.device import ALIGN, DeviceSlots, slot_bytes
from v4cli.experts.split import Split


class NumpyDevice:
    """Copies take effect when `run` is called, at once by default; until then the bytes there are rubbish."""

    def __init__(self, room: int = 1 << 30, late: bool = False):
        self.room, self.late, self.allocated = room, late, 0
        self.pending: list[tuple[object, list]] = []
        self.failed: set[object] = set()

    def alloc(self, n_bytes):
        if self.allocated + n_bytes > self.room:
            raise MemoryError
        self.allocated += n_bytes
        self.memory = np.frombuffer(mmap.mmap(-1, n_bytes), np.uint8)
        self.at = self.memory.ctypes.data
        assert self.at % ALIGN == 0
        return self.at

    def place(self, at, n_bytes):
        """The bytes at an address, which must lie in what was allocated."""
        start = at - self.at
        assert 0 <= start and start + n_bytes <= len(self.memory)
        return self.memory[start : start + n_bytes]

    def copy(self, parts):
        ticket = object()
        taken = [(at, array.copy()) for at, array in parts]
        for at, array in taken:
            self.place(at, len(array))[:] = 0xAA
        self.pending.append((ticket, taken))
        if not self.late:
            self.run()
        return ticket

    def run(self, count=None, which=0):
        """Complete copies, by default the oldest."""
        for _ in range(len(self.pending) if count is None else min(count, len(self.pending))):
            for at, array in self.pending.pop(which % len(self.pending))[1]:
                self.place(at, len(array))[:] = array

    def fail(self):
        """The oldest copy fails."""
        self.failed.add(self.pending.pop(0)[0])

    def completed(self, ticket):
        if ticket in self.failed:
            raise OSError("a copy failed")
        return all(ticket is not other for other, _ in self.pending)


class CpuDevice:
    """DeviceExperts by the kernels of the cpu op table."""

    def __init__(self, ops):
        self.ops = ops
        self.slots: DeviceSlots | None = None
        self.pairs = 0  # computed in slots

    def values(self, array):
        return array.array()

    def start(self, layer, x, row, slot, weight):
        y = np.zeros((len(row), x.width), np.float32)
        if len(row):
            used, chosen = np.unique(slot, return_inverse=True)
            table = ExpertTable([self.slots.held[i] for i in used])
            some = Buffer.of(np.ascontiguousarray(x.array()[row]))
            self.ops.add_experts(layer, table, some, chosen.astype(np.int64)[:, None], weight, y.ctypes.data)
            self.pairs += len(row)
        return y

    def add(self, out, hits, misses, order):
        rows = np.concatenate([hits, misses])
        for column in order.T:
            out.array()[:] += rows[column]
        return out


def split(ops, tier, n_slots, n_experts, *, device=None, n_jobs=2, pairs=16, timeout_s=60.0):
    """A Split over a numpy device, whose CpuDevice is `split.device`."""
    cpu, layers = CpuDevice(ops), ops.tree.layers
    shape = len(layers), n_experts
    slots = DeviceSlots(device or NumpyDevice(), shape, n_slots, slot_bytes(tier.largest), tier.expert)
    cpu.slots = slots
    hashed = [layer.ffn.tid2eid is not None for layer in layers]
    return Split(cpu, slots, tier, Ring(n_jobs, pairs, ops.hc_head.dim), hashed, timeout_s)
