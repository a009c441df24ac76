"""Routed experts in slots that a bank gives and takes (v4cli/experts/split.py says what it asks of both classes)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from v4kernels.api import Routing
from v4kernels.cpu.serve import TIMEOUT_S, Told
from v4kernels.triton import experts
from v4kernels.triton.dense import FEW, Dense, Quantized, blocks
from v4kernels.triton.memory import Buffer, Memory
from v4kernels.triton.mixture import DeviceMixture
from v4kernels.triton.served import Handoff
from v4kernels.triton.weights import SlotKind, Slots

BLOCK = 512  # values that a program adds


@dataclass(frozen=True, slots=True)
class Pairs:
    """Results of a layer's pairs of rows and experts, y (N * top_k, D), as far as they are computed."""

    layer: DeviceMixture
    q: Quantized
    routing: Routing[Buffer]
    y: Buffer


class SlotExperts:
    """Asked for by the host, layer by layer, in steps of any number of rows. Experts are of one kind."""

    def __init__(self, layers: Sequence[DeviceMixture], dense: Dense, kind: SlotKind, memory_at: int):
        self.layers, self.dense, self.kind, self.memory_at = layers, dense, kind, memory_at

    def values(self, array: Buffer) -> np.ndarray:
        return self.dense.values(array)

    def begin(self, layer: int, x: Buffer, routing: Routing[Buffer]) -> Pairs:
        n, k = x.rows, self.layers[layer].top_k
        y = self.dense.many.take("slot pairs", n * k, x.width)
        return Pairs(self.layers[layer], self.dense.quantize("expert input", x), routing, y)

    def compute(self, results: Pairs, slot: np.ndarray) -> None:
        weights, k = results.routing.weights.at, results.layer.top_k
        results.layer.sorted_pairs(self.kind, self.memory_at, slot, weights, results.q, k, results.y)

    def add(self, out: Buffer, results: Pairs, misses: np.ndarray, place: np.ndarray) -> Buffer:
        order, y = self.dense.said("places", place.astype(np.int32)), results.y
        rows = self.dense.said("misses", misses) if len(misses) else y.at
        arguments = order, results.routing.chosen.at, y.at, rows, out.at
        sizes = {"N": out.width, "TOP_K": results.layer.top_k, "BLOCK": BLOCK}
        self.dense.launch(experts.add_placed, (blocks(out.width, BLOCK), out.rows), *arguments, **sizes)
        return out


class StepExperts:
    """In steps of few rows that ask the host for nothing: what has no slot goes to the thread that serves `ring`."""

    rows = FEW

    def __init__(
        self,
        layers: Sequence[DeviceMixture],
        dense: Dense,
        memory: Memory,
        kind: SlotKind,
        memory_at: int,
        timeout_s: float = TIMEOUT_S,
    ):
        """MemoryError."""
        self.layers, self.dense, self.memory, self.kind, self.memory_at = layers, dense, memory, kind, memory_at
        shape = len(layers), layers[0].n_experts
        self.handoff = Handoff(memory.device, shape, kind.dim, layers[0].top_k, FEW, timeout_s)
        self.ring = self.handoff.ring
        self._table = np.full(shape, -1, np.int16)

    @property
    def nbytes(self) -> int:
        """Bytes of device memory."""
        return self.handoff.nbytes

    def begin_step(self, table: np.ndarray, rows: int) -> None:
        with self.memory.lock:
            self.handoff.begin(table, rows)
        self._table = table

    def begin(self, layer: int, x: Buffer, routing: Routing[Buffer]) -> "Posted":
        ffn, dense = self.layers[layer], self.dense
        said = routing.chosen.at, routing.weights.at
        self.handoff.post(layer, x.at, *said, routing.scores.at)
        slots = Slots(self.kind, self.memory_at, self.handoff.slots_at(layer), self._table[layer])
        y = dense.take("pairs", x.rows, ffn.top_k * x.width)
        ffn.pairs(slots, said, dense.quantize("expert input", x), y, ffn.top_k)
        return Posted(self.handoff, routing.chosen, y)

    def end_step(self) -> Told:
        with self.memory.lock:
            return self.handoff.end()


@dataclass(frozen=True, slots=True)
class Posted:
    """Routed experts of one layer: some computed, the others posted."""

    handoff: Handoff
    ids: Buffer
    y: Buffer

    def add_to(self, out: Buffer) -> Buffer:
        self.handoff.wait()
        self.handoff.add(self.ids.at, self.y.at, out.at)
        return out
