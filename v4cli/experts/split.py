"""The bank (v4kernels/api.py) of experts in tiers: slots of a device, RAM, and, where that is not all, the SSD.

A row's experts that lie in slots are computed by the device, the others by the server's thread meanwhile. Either way a
(row, expert) pair gives one row of results, which v4k_experts would add; they are added by ascending expert. So results
are those of experts in memory to the bit, wherever each of them lies.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from v4kernels.api import A, B, Routing
from v4kernels.cpu.serve import TIMEOUT_S, Ring, Server, Stopped

from v4cli.errors import ResourceError
from v4cli.experts.device import DeviceSlots
from v4cli.experts.policy import nearness
from v4cli.experts.tiers import Tier

H = TypeVar("H")  # results of a device on their way


class DeviceExperts(Protocol[A, H]):
    """Experts of an op table's device, in its slots."""

    def values(self, array: A) -> np.ndarray:
        """Activations or routing as an array of the host, not to be changed."""

    def start(self, layer: int, x: A, row: np.ndarray, slot: np.ndarray, weight: np.ndarray) -> H:
        """Compute pairs (n,) of rows of x and experts in slots: for each the row that a ring's y would hold (v4k.h)."""

    def add(self, out: A, hits: H, misses: np.ndarray, order: np.ndarray) -> A:
        """out (N, D) with results added: of row i those of order[i], one after the other. They number those of `start`
        and, behind them, `misses` (m, D). `out` may be changed."""


class Split(Generic[A, B, H]):
    """Experts in tiers, for one forward pass at a time. To be closed."""

    repeatable = False

    def __init__(
        self,
        device: DeviceExperts[A, H],
        slots: DeviceSlots,
        tier: Tier[A, B],
        ring: Ring,
        hashed: list[bool],
        timeout_s: float = TIMEOUT_S,
    ):
        """`hashed`: layers that route by token. ResourceError if there can be no thread."""
        self.device, self.slots, self.tier, self.ring, self.hashed = device, slots, tier, ring, hashed
        self.timeout_s = timeout_s
        self._in_step, self._rows = False, 0
        with self._told():
            self.server = Server(ring, tier.layers, lambda number: tier.fetch(ring.job(number)), timeout_s)

    def close(self) -> None:
        """Stop the thread."""
        self.server.stop()

    # -- a step -----------------------------------------------------------------------------------------------------

    def begin_step(self, batch: B) -> None:
        if self._in_step:
            self._abandon()
        self._in_step, self._rows = True, batch.rows
        arrived = self.slots.begin_step()
        self.tier.begin_step(batch, self.slots.table >= 0, arrived)
        with self._told():
            self.server.begin()

    def _abandon(self) -> None:
        """The step before failed: once the thread is at rest, nothing is kept of it."""
        with self._told():
            self.server.rest()
        self.tier.abandon()
        self.slots.abandon()
        self._in_step = False

    def foresee(self, layer: int, streams: A) -> None:
        self.tier.foresee(layer, streams)

    def begin(self, layer: int, x: A, routing: Routing[A], streams: A) -> "Sharing[A, B, H]":
        ids, weights = self.device.values(routing.chosen), self.device.values(routing.weights)  # (n, k)
        n, k = ids.shape
        n_experts = self.slots.table.shape[1]
        if ids.min() < 0 or ids.max() >= n_experts:
            raise ValueError("an expert that is not there (v4k.h)")
        uses = np.bincount(ids.ravel(), minlength=n_experts)
        near = None if self.hashed[layer] else nearness(self.device.values(routing.scores), k)
        slot = self.slots.table[layer][ids].ravel()  # by pair: row and choice
        self.slots.used(layer, uses, near, n)
        self.tier.ask(layer, uses, near, streams)
        hits, misses = np.flatnonzero(slot >= 0), np.flatnonzero(slot < 0)
        misses = misses[np.argsort(ids.ravel()[misses], kind="stable")]  # by expert
        of_ram = Jobs(self, layer, self.device.values(x), misses // k, ids.ravel()[misses], weights.ravel()[misses])
        of_device = self.device.start(layer, x, hits // k, slot[hits].astype(np.int64), weights.ravel()[hits])
        place = np.empty(n * k, np.int64)
        place[np.concatenate([hits, misses])] = np.arange(n * k)
        order = np.take_along_axis(place.reshape(n, k), np.argsort(ids, axis=1, kind="stable"), axis=1)
        return Sharing(self, of_device, of_ram, order)

    def end_step(self, rows: int) -> None:
        with self._told():
            self.server.rest()
        self.tier.end_step(rows)
        self.slots.end_step(rows)
        self._in_step = False

    @contextmanager
    def _told(self) -> Iterator[None]:
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

    def results(self) -> np.ndarray:
        """(m, D) fp32, once all are there. ResourceError, ModelError."""
        y = np.empty((len(self.row), self.bank.ring.dim), np.float32)
        while self._on_their_way:
            number, start, end = self._on_their_way.pop(0)
            with self.bank._told():
                self.bank.server.wait(number)
            y[start:end] = self.bank.ring.job(number).y[: end - start]
            self._post()
        return y


@dataclass(slots=True)
class Sharing(Generic[A, B, H]):
    """Routed experts of one layer, computed on both sides; `order` (n, k) of their results."""

    bank: Split[A, B, H]
    of_device: H
    of_ram: Jobs
    order: np.ndarray

    def add_to(self, out: A) -> A:
        misses = self.of_ram.results()
        self.bank.tier.served()
        return self.bank.device.add(out, self.of_device, misses, self.order)
