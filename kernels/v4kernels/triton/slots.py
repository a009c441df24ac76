"""Routed experts in slots that a bank gives and takes (v4cli/experts/split.py says what it asks of both classes)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from v4kernels.api import Routing
from v4kernels.cpu.serve import TIMEOUT_S, Told
from v4kernels.triton import experts
from v4kernels.triton.dense import FEW, Dense, Quantized, blocks
from v4kernels.triton.memory import Buffer, Later, Memory, made
from v4kernels.triton.mixture import DeviceMixture
from v4kernels.triton.served import Handoff
from v4kernels.triton.weights import SlotKind, Slots

BLOCK = 512  # values that a program adds


@dataclass(frozen=True, slots=True)
class Room:
    """Slots for experts of one kind: number s lies at `at` + s * `kind.n_bytes`."""

    kind: SlotKind
    at: int


@dataclass(frozen=True, slots=True)
class Pairs:
    """Results of a layer's pairs of rows and experts, y (N * top_k, D), as far as they are computed."""

    layer: DeviceMixture
    q: Quantized
    routing: Routing[Buffer]
    y: Buffer


class SlotExperts:
    """Asked for by the host, layer by layer, in steps of any number of rows."""

    def __init__(
        self, layers: Sequence[DeviceMixture], dense: Dense, rooms: Sequence[Room], passing: Sequence[Room] = ()
    ):
        """By number of a kind: where its slots are, and the spare ones, as many bytes as the largest kind takes."""
        self.layers, self.dense, self.rooms, self.passing = layers, dense, rooms, passing

    def values(self, array: Buffer) -> np.ndarray:
        return self.dense.values(array)

    def begin(self, layer: int, x: Buffer, routing: Routing[Buffer]) -> Pairs:
        n, k = x.rows, self.layers[layer].top_k
        y = self.dense.many.take("slot pairs", n * k, x.width)
        return Pairs(self.layers[layer], self.dense.quantize("expert input", x), routing, y)

    def compute(self, results: Pairs, slot: np.ndarray, kind: int, passing: bool) -> None:
        weights, k = results.routing.weights.at, results.layer.top_k
        room = (self.passing if passing else self.rooms)[kind]
        results.layer.sorted_pairs(room.kind, room.at, slot, weights, results.q, k, results.y)

    def add(self, out: Buffer, results: Pairs, misses: np.ndarray, place: np.ndarray) -> Buffer:
        out, order, y = made(out), self.dense.said("places", place.astype(np.int32)), results.y
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
        rooms: Sequence[Room],
        kind: np.ndarray,
        timeout_s: float = TIMEOUT_S,
    ):
        """`kind` (layers, E): of each expert, the number of its room. MemoryError."""
        self.layers, self.dense, self.memory, self.rooms = layers, dense, memory, rooms
        self.handoff = Handoff(memory.device, kind, rooms[0].kind.dim, layers[0].top_k, FEW, timeout_s)
        self.ring = self.handoff.ring
        self._kinds = [np.unique(numbers).tolist() for numbers in kind]  # of each layer
        self._table = np.full(kind.shape, -1, np.int16)

    @property
    def nbytes(self) -> int:
        """Bytes of device memory."""
        return self.handoff.nbytes

    def begin_step(self, table: np.ndarray, rows: int) -> None:
        with self.memory.lock:
            self.handoff.begin(table, rows)
        self._table = table

    def begin(self, layer: int, x: Buffer, routing: Routing[Buffer]) -> "Posted":
        ffn = self.layers[layer]
        said = routing.chosen.at, routing.weights.at
        self.handoff.post(layer, x.at, *said, routing.scores.at)
        slots = [
            Slots(self.rooms[n].kind, self.rooms[n].at, self.handoff.slots_at(layer, n), self._table[layer])
            for n in self._kinds[layer]
        ]
        return Posted(self.handoff, ffn, slots, x, routing)

    def end_step(self) -> Told:
        with self.memory.lock:
            return self.handoff.end()


@dataclass(frozen=True, slots=True)
class Posted:
    """Routed experts of one layer: those without a slot are posted, the others computed meanwhile."""

    handoff: Handoff
    layer: DeviceMixture
    slots: list[Slots]
    x: Buffer
    routing: Routing[Buffer]

    def add_to(self, out: Buffer) -> Buffer:
        hits, ids = self.layer.pairs(self.slots, self.x, self.routing, out).at, self.routing.chosen.at
        self.handoff.wait()
        return Later(out.at, out.rows, out.width, compute=lambda back: self.handoff.add(ids, hits, out.at, back))
