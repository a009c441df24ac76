"""The bank (v4kernels/api.py) of experts in tiers: slots of a device, RAM, and, where that is not all, the SSD.

A row's experts that lie in slots are computed by the device, the others by the server's thread meanwhile. Either way a
(row, expert) pair gives one row of results, which v4k_experts would add; they are added by ascending expert. So results
are those of experts in memory to the bit, wherever each of them lies.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from v4kernels.api import A, B, Pending, Routing
from v4kernels.cpu import PackedWeight
from v4kernels.cpu.serve import TIMEOUT_S, Ring, Server, Stopped, Told
from v4kernels.tree import Expert

from v4cli.errors import ResourceError
from v4cli.experts.device import DeviceSlots, parts_of
from v4cli.experts.passing import Passing, Rates
from v4cli.experts.policy import nearness
from v4cli.experts.slots import Counts
from v4cli.experts.tiers import Tier
from v4cli.experts.uses import Uses

H = TypeVar("H")  # results of a device on their way


class DeviceExperts(Protocol[A, H]):
    """Experts of an op table's device, in its slots; a pair is a row of x and one of its top_k experts."""

    def values(self, array: A) -> np.ndarray:
        """Activations or routing as an array of the host, not to be changed."""

    def begin(self, layer: int, x: A, routing: Routing[A]) -> H:
        """Room for the results of all pairs of x (N, D); both stay untouched until they are added."""

    def compute(self, results: H, slot: np.ndarray, kind: int, passing: bool) -> None:
        """Of pairs (N * top_k,), those that have a slot, others are -1: the row that a ring's y would hold (v4k.h).
        Their experts are of one kind (device.py); `passing`: slots are spare ones."""

    def add(self, out: A, results: H, misses: np.ndarray, place: np.ndarray) -> A:
        """out (N, D) with a row of every pair added, a row's by ascending expert: of misses (m, D) number `place`
        (N * top_k,), or what was computed where that is -1. `out` may be changed."""


class StepExperts(Protocol[A]):
    """Steps of up to `rows` rows for which a device posts and waits by itself: nothing of them is done on the host."""

    rows: int

    def begin_step(self, table: np.ndarray, rows: int) -> None:
        """A step begins, the one before is over on the device; `table` (layers, E) int16: slots of experts."""

    def begin(self, layer: int, x: A, routing: Routing[A]) -> Pending[A]:
        """See Bank."""

    def end_step(self) -> Told:
        """All is launched: wait until it is done."""


class Split(Generic[A, B, H]):
    """Experts in tiers, for one forward pass at a time. To be closed.

    `counts`: of each layer and step distinct experts that lay in slots (hits) or elsewhere (misses), and how long the
    device waited for others."""

    def __init__(
        self,
        device: DeviceExperts[A, H],
        slots: DeviceSlots,
        tier: Tier[A, B],
        ring: Ring,
        hashed: list[bool],
        timeout_s: float = TIMEOUT_S,
        alone: StepExperts[A] | None = None,
        rates: Rates | None = None,
    ):
        """`hashed`: layers that route by token. `alone`: for steps of few rows, where all experts are in RAM. `rates`:
        by which experts go through spare slots, if there are any. ResourceError if there can be no thread."""
        self.device, self.slots, self.tier, self.ring, self.hashed = device, slots, tier, ring, hashed
        self.timeout_s, self.alone, self.rates = timeout_s, alone, rates
        self.repeatable = False  # whether the step that began is left to the device
        self.counts = Counts()
        self._in_step, self._rows = False, 0
        self._uses: Uses | None = None  # of the step, if it has guesses
        with self.told():
            self.server = Server(ring, tier.layers, lambda number: tier.fetch(ring.job(number)), timeout_s)

    def close(self) -> None:
        """Stop the thread."""
        self.server.stop()

    # -- a step -----------------------------------------------------------------------------------------------------

    def doubt(self, rows: Sequence[int]) -> Callable[[int], None]:
        self._uses = uses = Uses(rows) if rows else None

        def confirm(row: int) -> None:
            for policy in (self.slots.policy, *self.tier.policies):
                if uses:
                    uses.confirm(policy, row)

        return confirm

    def begin_step(self, batch: B) -> None:
        self.rest()
        self._in_step, self._rows = True, batch.rows
        arrived = self.slots.begin_step()
        self.tier.begin_step(batch, self.slots.table >= 0, arrived)
        with self.told():
            self.server.begin()
        self.repeatable = self.alone is not None and self.tier.complete and batch.rows <= self.alone.rows
        if self.alone is not None and self.repeatable:
            self.alone.begin_step(self.slots.table, batch.rows)

    def rest(self) -> None:
        """Between steps: the thread is at rest. If the step before failed, nothing is kept of it."""
        if not self._in_step:
            return
        with self.told():
            self.server.rest()
        self.tier.abandon()
        self.slots.abandon()
        self._in_step = False

    def foresee(self, layer: int, streams: A) -> None:
        if not self.repeatable:
            self.tier.foresee(layer, streams)

    def begin(self, layer: int, x: A, routing: Routing[A], streams: A) -> Pending[A]:
        if self.alone is not None and self.repeatable:
            return self.alone.begin(layer, x, routing)
        ids, weights = self.device.values(routing.chosen), self.device.values(routing.weights)  # (n, k)
        if ids.min() < 0 or ids.max() >= self.slots.table.shape[1]:
            raise ValueError("an expert that is not there (v4k.h)")
        scores = None if self.hashed[layer] else self.device.values(routing.scores)
        uses, near = self._used(layer, ids, scores)
        self.tier.ask(layer, uses, near, streams)
        slot = self.slots.table[layer][ids].ravel().astype(np.int64)  # by pair
        passing = self._passing(layer, np.where(self.slots.table[layer] < 0, uses, 0))
        streamed = Passing(self.slots, layer, passing)
        missing = np.flatnonzero((slot < 0) & ~np.isin(ids.ravel(), list(passing)))
        missing = missing[np.argsort(ids.ravel()[missing], kind="stable")]  # by expert
        expert, row, k = ids.ravel()[missing], missing // ids.shape[1], ids.shape[1]
        of_ram = Jobs(self, layer, self.device.values(x), row, expert, weights.ravel()[missing])
        results = self.device.begin(layer, x, routing)
        self.compute(layer, results, ids.ravel(), slot, passing=False)
        place = np.full(len(ids) * k, -1, np.int32)
        place[missing] = np.arange(len(missing))
        return Sharing(self, layer, results, streamed, ids.ravel(), of_ram, place)

    def compute(self, layer: int, results: H, experts: np.ndarray, slot: np.ndarray, passing: bool) -> None:
        """Of pairs with these experts, those that have a slot, kind by kind."""
        kind = self.slots.kind[layer][experts]
        for number in np.unique(kind[slot >= 0]).tolist():
            self.device.compute(results, np.where(kind == number, slot, -1), number, passing)

    def _used(self, layer: int, ids: np.ndarray, scores: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """The policy hears of a layer's ids (n, k) and scores (n, E): uses of each expert, and see policy.nearness."""
        n, k = ids.shape
        table = self.slots.table[layer]
        if self._uses:
            self._uses.note(layer * len(table), ids, scores)
        uses = np.bincount(ids.ravel(), minlength=len(table))
        near = None if scores is None else nearness(scores, k)
        self.slots.used(layer, uses, near, n)
        hits = int(np.count_nonzero(table[uses > 0] >= 0))
        self.counts.hits += hits
        self.counts.misses += int(np.count_nonzero(uses)) - hits
        return uses, near

    def _passing(self, layer: int, uses: np.ndarray) -> dict[int, Expert[PackedWeight]]:
        """Those of a layer's experts, used so often (E,), that are worth a copy to the device for this step alone, and
        in RAM. While they pass, the thread computes the others."""
        if self.rates is None or not self.slots.spare or not uses.any():
            return {}
        first, asked = layer * len(uses), np.flatnonzero(uses)
        found = {e: expert for e in asked.tolist() if (expert := self.tier.expert(first + e)) is not None}
        known = np.array(list(found), np.int64)
        n_bytes = np.array([sum(size for _, size in parts_of(expert)) for expert in found.values()])
        return {e: found[e] for e in known[self.rates.worth_a_copy(uses[known], n_bytes)].tolist()}

    def end_step(self, rows: int) -> None:
        told = self.alone.end_step() if self.alone is not None and self.repeatable else None
        with self.told():
            if told is not None:
                self.counts.wait_s += told.waited_s
                self.server.check(told.code)
            self.server.rest()
        if told is not None:
            for layer, (ids, scores) in enumerate(zip(told.ids, told.scores)):
                self._used(layer, ids, None if self.hashed[layer] else scores)
        self.tier.end_step(rows, self._uses)
        self.slots.end_step(rows, self._uses)
        self._in_step = False

    @contextmanager
    def told(self) -> Iterator[None]:
        """What the server raises, as who asked for an answer should hear it."""
        try:
            yield
        except TimeoutError:
            raise ResourceError(
                f"the experts in RAM were not computed within {self.timeout_s:g} s", "v4 doctor tells what is slow"
            ) from None
        except Stopped:
            raise ResourceError(
                "the thread that computes the experts in RAM was stopped", "open the model again"
            ) from None
        except MemoryError:
            raise ResourceError("no memory for the thread that computes the experts in RAM") from None


class Jobs:
    """Pairs that the server computes, in as many jobs as the ring makes of them, several on their way."""

    def __init__(self, bank: Split, layer: int, x: np.ndarray, row: np.ndarray, expert: np.ndarray, weight: np.ndarray):
        """Pairs (m,) by expert, of rows of x (n, D)."""
        self.bank, self.layer, self.x = bank, layer, x
        self.row, self.expert, self.weight = row, expert, weight
        self._y = np.empty((len(row), bank.ring.dim), np.float32)
        self._parts = self._cut()
        self._on_their_way: list[tuple[int, int, int]] = []  # number, pairs from, to
        self._post()

    def _cut(self) -> Iterator[tuple[int, int]]:
        """Where jobs begin and end: all of an expert's pairs in one, if it can hold them."""
        most, start = self.bank.ring.pairs, 0
        while start < len(self.row):
            end = min(start + most, len(self.row))
            if end < len(self.row):
                first = int(np.searchsorted(self.expert, self.expert[end]))  # of the expert that would be cut
                end = first if first > start else end
            yield start, end
            start = end

    def _post(self) -> None:
        ring = self.bank.ring
        while len(self._on_their_way) < ring.n_jobs and (part := next(self._parts, None)):
            pairs, number = slice(*part), ring.posted + 1
            rows, row = np.unique(self.row[pairs], return_inverse=True)
            ring.job(number).fill(self.layer, self.x[rows], row, self.expert[pairs], self.weight[pairs])
            ring.post(number)
            self._on_their_way.append((number, *part))

    def advance(self) -> None:
        """Take what is there, and post what then has room."""
        while self._on_their_way and self._on_their_way[0][0] <= self.bank.ring.served:
            self._take()

    def results(self) -> np.ndarray:
        """(m, D) fp32, once all are there. ResourceError, ModelError."""
        while self._on_their_way:
            self._take()
        return self._y

    def _take(self) -> None:
        number, start, end = self._on_their_way.pop(0)
        began = time.perf_counter()
        with self.bank.told():
            self.bank.server.wait(number)
        self.bank.counts.wait_s += time.perf_counter() - began
        self._y[start:end] = self.bank.ring.job(number).y[: end - start]
        self._post()


@dataclass(slots=True)
class Sharing(Generic[A, B, H]):
    """Routed experts of one layer, computed on both sides: of pairs with these `experts` those in slots, those that
    pass through spare ones, and jobs of the others, whose results have a `place`."""

    bank: Split[A, B, H]
    layer: int
    results: H
    passing: Passing
    experts: np.ndarray
    jobs: Jobs
    place: np.ndarray

    def add_to(self, out: A) -> A:
        for slots in self.passing.arriving():
            self.bank.compute(self.layer, self.results, self.experts, slots[self.experts], passing=True)
            self.jobs.advance()
        misses = self.jobs.results()
        self.bank.tier.served()
        return self.bank.device.add(out, self.results, misses, self.place)
