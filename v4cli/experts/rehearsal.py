"""A step that computes nothing: the bank of experts in tiers (split.py) as it launches whatever it may, without asking
anybody for an expert. So a device's kernels are compiled and loaded before they are needed, however long that takes:
in a real step who serves the others would not wait for it.

Slots are read as they are, and what is made of them is thrown away.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
from v4kernels.api import A, B, Pending, Routing

from v4cli.experts.split import H, Split


class Rehearsal(Generic[A, B, H]):
    """Of a bank between two steps. Every pair of a row and an expert is taken to lie in the first slot of its kind."""

    def __init__(self, bank: Split[A, B, H]):
        self.bank, self.device, self.alone = bank, bank.device, bank.alone
        self.repeatable = False
        self._kind, firsts = bank.slots.kind, bank.slots.first_of
        self._table = np.array(firsts, np.int16)[self._kind]

    def doubt(self, rows: Sequence[int]) -> Callable[[int], None]:
        return lambda row: None

    def begin_step(self, batch: B) -> None:
        self.repeatable = self.alone is not None and self.bank.tier.complete and batch.rows <= self.alone.rows
        if self.alone is not None and self.repeatable:
            self.alone.begin_step(self._table, batch.rows)

    def foresee(self, layer: int, streams: A) -> None: ...

    def begin(self, layer: int, x: A, routing: Routing[A], streams: A) -> Pending[A]:
        if self.alone is not None and self.repeatable:
            return self.alone.begin(layer, x, routing)
        pairs, results = self.device.values(routing.chosen).size, self.device.begin(layer, x, routing)
        for kind in np.unique(self._kind[layer]).tolist():
            first = self.bank.slots.first_of[kind]
            self.device.compute(results, np.full(pairs, first), kind, passing=False)
            if self.bank.slots.spare:
                self.device.compute(results, np.zeros(pairs, np.int64), kind, passing=True)
        return Rehearsed(self, results, pairs)

    def end_step(self, rows: int) -> None:
        if self.alone is not None and self.repeatable:
            self.alone.end_step()


@dataclass(slots=True)
class Rehearsed(Generic[A, B, H]):
    """Results of one layer that mean nothing."""

    rehearsal: Rehearsal[A, B, H]
    results: H
    pairs: int

    def add_to(self, out: A) -> A:
        bank = self.rehearsal.bank
        nothing = np.zeros((0, bank.ring.dim), np.float32)
        return bank.device.add(out, self.results, nothing, np.full(self.pairs, -1, np.int32))
