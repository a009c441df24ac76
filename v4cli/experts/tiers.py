"""The experts that a device does not hold: all of them in RAM, or some there and the others on the SSD.

Both describe to the server (v4kernels/cpu/serve.py) which experts lie in RAM, and where. In a step they belong to the
caller's thread while no job is posted, and to the server's while one is.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from v4kernels.api import B_contra
from v4kernels.cpu import Buffer, ExpertTable, PackedWeight
from v4kernels.cpu.serve import Job, ServedLayer
from v4kernels.tree import Expert, Layer

from v4cli.experts.bank import Rows, Streamed, in_slot
from v4cli.experts.policy import Residency
from v4cli.experts.uses import Uses

A_contra = TypeVar("A_contra", contravariant=True)


class Tier(Protocol[A_contra, B_contra]):
    """What Split asks of those below the device. `experts` are numbers within a layer, ascending."""

    complete: bool  # all experts are in RAM and stay where they are
    layers: Sequence[ServedLayer]
    policies: Sequence[Residency]  # that learn of uses
    examples: Sequence[Expert[PackedWeight]]  # one of each kind of formats; their addresses mean nothing
    kind: np.ndarray  # int8, of experts numbered over all layers: the number of the example

    def expert(self, expert: int) -> Expert[PackedWeight] | None:
        """An expert, numbered over all layers, if it is in RAM: valid until the next call of anything."""

    def begin_step(self, batch: B_contra, on_device: np.ndarray, arrived: list[int]) -> None:
        """A step begins; the device holds what is true in (layers, experts), of these `arrived` since the last one."""

    def foresee(self, layer: int, streams: A_contra) -> None:
        """See Bank."""

    def ask(self, layer: int, uses: np.ndarray, near: np.ndarray | None, streams: A_contra) -> None:
        """A layer uses each of its experts (E,) so many times; jobs will ask for those that the device does not hold.
        `near`: see policy.nearness."""

    def fetch(self, job: Job) -> None:
        """Do a job some of whose experts are not in RAM. ModelError."""

    def served(self) -> None:
        """The jobs of the layer that was asked for last are done."""

    def end_step(self, rows: int, uses: Uses | None) -> None:
        """All layers are served. `uses`: of a step with guesses."""

    def abandon(self) -> None:
        """The step failed."""


class InRam:
    """All experts of a tree."""

    complete = True
    policies: Sequence[Residency] = ()

    def __init__(self, tree_layers: Sequence[Layer[PackedWeight, np.ndarray]]):
        self.layers: Sequence[ServedLayer] = [
            ServedLayer(ExpertTable(layer.ffn.experts), layer.ffn.limit) for layer in tree_layers
        ]
        self.experts = [expert for layer in tree_layers for expert in layer.ffn.experts]
        forms = [(expert.w1.form, expert.w3.form, expert.w2.form) for expert in self.experts]
        numbers = {form: number for number, form in enumerate(dict.fromkeys(forms))}
        self.examples: Sequence[Expert[PackedWeight]] = [self.experts[forms.index(form)] for form in numbers]
        self.kind = np.array([numbers[form] for form in forms], np.int8)

    def expert(self, expert: int) -> Expert[PackedWeight]:
        return self.experts[expert]

    def begin_step(self, batch: object, on_device: np.ndarray, arrived: list[int]) -> None: ...

    def foresee(self, layer: int, streams: object) -> None: ...

    def ask(self, layer: int, uses: np.ndarray, near: np.ndarray | None, streams: object) -> None: ...

    def fetch(self, job: Job) -> None:
        raise AssertionError("all experts are in RAM")

    def served(self) -> None: ...

    def end_step(self, rows: int, uses: Uses | None) -> None: ...

    def abandon(self) -> None: ...


class OnDemand:
    """Experts of a stream: those in its slots are served from there, jobs that ask for others go through it. What the
    device holds leaves the slots."""

    complete = False

    def __init__(self, bank: Streamed, values: Callable[[Any], np.ndarray] = Buffer.array):
        """`values`: streams of the op table that asks, as rows of the host."""
        self.bank, self.stream, self.values = bank, bank.stream, values
        self.policies: Sequence[Residency] = (bank.stream.policy,)
        self._per_layer = bank.stream.reader.files.per_layer
        shapes = range(len(bank.stream.reader.files.shapes))
        self.examples: Sequence[Expert[PackedWeight]] = [in_slot(bank.stream, 0, shape) for shape in shapes]
        self.kind = np.array(bank.stream.reader.files.shape_of, np.int8)
        nothing = [None] * self._per_layer
        self.layers: Sequence[ServedLayer] = [
            ServedLayer(ExpertTable(nothing), layer.ffn.limit) for layer in bank.ops.tree.layers
        ]
        self._asked: set[int] = set()  # experts of this layer that the device does not hold
        self._fetched: set[int] = set()  # of these, handed out by the stream to jobs
        self._results, self._rows = Buffer(), 0
        self.stream.moved = self._moved
        for expert in range(len(self.stream.reader.files)):
            self._moved(expert)

    def _moved(self, expert: int) -> None:
        layer, number = divmod(expert, self._per_layer)
        self.layers[layer].experts.put(number, self.expert(expert))

    def expert(self, expert: int) -> Expert[PackedWeight] | None:
        slot = self.stream.there(expert)
        return None if slot is None else in_slot(self.stream, slot, self.stream.reader.files.shape_of[expert])

    def begin_step(self, batch: Rows, on_device: np.ndarray, arrived: list[int]) -> None:
        self._rows = batch.rows
        self.stream.elsewhere = on_device.ravel()
        self.stream.release(arrived)
        self.bank.begin_step(batch)

    def foresee(self, layer: int, streams: Any) -> None:
        if self._rows == 1 and self.bank.guesses(layer):
            self.bank.foresee(layer, Buffer.of(self.values(streams)))

    def ask(self, layer: int, uses: np.ndarray, near: np.ndarray | None, streams: Any) -> None:
        first = layer * self._per_layer
        if near is not None:
            self.stream.policy.scored(first, near)
        used = np.flatnonzero(uses)
        self.stream.policy.used(used + first, uses[used], self._rows)
        self._asked = {expert for expert in (used + first).tolist() if not self.stream.elsewhere[expert]}
        self.stream.forget(set(range(first, first + self._per_layer)) - self._asked)
        self._fetched.clear()
        if layer + 1 < len(self.layers) and self.bank.guesses(layer + 1):
            self.bank.guess(layer + 1, Buffer.of(self.values(streams)), 1.0)

    def fetch(self, job: Job) -> None:
        n, first = job.pairs, job.layer * self._per_layer
        pairs = np.argsort(job.expert[:n], kind="stable")
        asked, starts, uses = np.unique(job.expert[:n][pairs], return_index=True, return_counts=True)
        asked = asked.astype(np.int64) + first
        places = dict(zip(asked.tolist(), zip(starts.tolist(), uses.tolist())))
        x = Buffer.of(job.x)
        for experts in self.stream.hand_out(asked):
            ranges = [places[expert] for expert in experts]
            mine = np.concatenate([pairs[start : start + count] for start, count in ranges])
            slots = np.repeat(np.array(self.bank.slots(experts), np.int64), [count for _, count in ranges])
            y = self._results.take(n, x.width)
            y.array()[: len(mine)] = 0
            self.bank.compute(job.layer, x, job.row[mine], slots, job.weight[mine], y.at)
            job.y[mine] = y.array()[: len(mine)]
        self._fetched.update(asked.tolist())

    def served(self) -> None:
        self.stream.settle(sorted(self._asked - self._fetched))

    def end_step(self, rows: int, uses: Uses | None) -> None:
        self.bank.end_step(rows, uses)

    def abandon(self) -> None:
        self.stream.abandon()
