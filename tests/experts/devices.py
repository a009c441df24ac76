"""A device in numpy, and the cpu op table playing one: experts in slots are computed from the slots' bytes."""

import mmap
from dataclasses import dataclass

import numpy as np
from v4kernels.cpu import Buffer, ExpertTable
from v4kernels.cpu.serve import Ring

from v4cli.experts.device import ALIGN, DeviceSlots, pools_of
from v4cli.experts.split import Split


class NumpyDevice:
    """Copies take effect when `complete` is called, at once by default; until then the bytes there are rubbish."""

    def __init__(self, room: int = 1 << 30, late: bool = False):
        self.room, self.late, self.allocated = room, late, 0
        self.pending: list[tuple[object, list]] = []
        self.failed: set[object] = set()
        self.launched: list = []
        self.copied = 0  # bytes

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
        self.copied += sum(len(array) for _, array in taken)
        for at, array in taken:
            self.place(at, len(array))[:] = 0xAA
        self.pending.append((ticket, taken))
        if not self.late:
            self.complete()
        return ticket

    def complete(self, count=None, which=0):
        """Complete copies, by default the oldest."""
        for _ in range(len(self.pending) if count is None else min(count, len(self.pending))):
            for at, array in self.pending.pop(which % len(self.pending))[1]:
                self.place(at, len(array))[:] = array

    def synchronize(self):
        launched, self.launched = self.launched, []
        for each in launched:
            each()

    def fail(self):
        """The oldest copy fails."""
        self.failed.add(self.pending.pop(0)[0])

    def completed(self, ticket):
        if ticket in self.failed:
            raise OSError("a copy failed")
        return all(ticket is not other for other, _ in self.pending)


@dataclass
class Results:
    layer: int
    x: Buffer
    ids: np.ndarray
    weights: np.ndarray
    y: np.ndarray


class CpuDevice:
    """DeviceExperts by the kernels of the cpu op table. What is launched is computed as late as may be."""

    def __init__(self, ops, device):
        self.ops, self.device = ops, device
        self.slots: DeviceSlots | None = None
        self.pairs = 0  # computed in slots

    def values(self, array):
        return array.array()

    def begin(self, layer, x, routing):
        ids = routing.chosen.array()
        return Results(layer, x, ids, routing.weights.array(), np.zeros((ids.size, x.width), np.float32))

    def compute(self, results, slot, kind, passing):
        (there,) = np.nonzero(slot >= 0)
        assert (self.slots.kind[results.layer][results.ids.ravel()[there]] == kind).all()
        used, chosen = np.unique(slot[there], return_inverse=True)
        table = ExpertTable([self.slots.held[i + passing * self.slots.n_slots] for i in used])

        def launched():
            some = Buffer.of(np.ascontiguousarray(results.x.array()[there // results.ids.shape[1]]))
            y, weights = np.zeros((len(there), some.width), np.float32), results.weights.ravel()[there]
            self.ops.add_experts(results.layer, table, some, chosen.astype(np.int64)[:, None], weights, y.ctypes.data)
            results.y[there] = y

        self.device.launched.append(launched)
        self.pairs += len(there)

    def add(self, out, results, misses, place):
        self.device.synchronize()
        rows, (n, k) = results.y, results.ids.shape
        rows[place >= 0] = misses[place[place >= 0]]
        for column in (np.argsort(results.ids, axis=1, kind="stable") + k * np.arange(n)[:, None]).T:
            out.array()[:] += rows[column]
        return out


def split(ops, tier, n_slots, n_experts, *, device=None, n_jobs=2, pairs=16, spare=0, rates=None, timeout_s=60.0):
    """A Split over a numpy device, whose CpuDevice is `split.device`."""
    device, layers = device or NumpyDevice(), ops.tree.layers
    cpu, kind = CpuDevice(ops, device), tier.kind.reshape(len(layers), n_experts)
    slots = DeviceSlots(device, kind, pools_of(tier.examples, tier.kind, n_slots), tier.expert, spare)
    cpu.slots = slots
    hashed = [layer.ffn.tid2eid is not None for layer in layers]
    return Split(cpu, slots, tier, Ring(n_jobs, pairs, ops.hc_head.dim), hashed, timeout_s, rates=rates)
