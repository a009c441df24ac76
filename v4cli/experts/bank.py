"""The bank (v4kernels/api.py) of experts that are not all in memory: they come from slots (slots.py) as they are there.

Every (row, expert) pair is computed for itself, in whatever order experts become available, and a row's are added in
ascending order at the end, as v4k_experts does: results are those of experts in memory to the bit.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from v4kernels.api import Routing
from v4kernels.cpu import Buffer, CpuOps, ExpertTable, PackedWeight
from v4kernels.tree import Expert

from v4cli.experts.policy import nearness
from v4cli.experts.slots import ExpertStream
from v4cli.experts.uses import Uses

GUESSES = 1.5  # as many as a token uses: most likely all of them, and what is wrong is soon given up


class Rows(Protocol):
    """What is asked of a step's batch, whatever the op table."""

    @property
    def rows(self) -> int: ...

    @property
    def ids(self) -> Buffer:
        """Token ids (N, 1) int64, on the host."""


class Streamed:
    """Experts of a stream, computed by the cpu ops."""

    repeatable = False

    def __init__(self, ops: CpuOps, stream: ExpertStream):
        self.ops, self.stream = ops, stream
        self._hashed = [layer.ffn.tid2eid for layer in ops.tree.layers]
        self._n_experts = stream.reader.files.per_layer
        self._table = ExpertTable([in_slot(stream, *of) for of in enumerate(stream.reader.shape_of)])
        self._in_step = False
        self._uses: Uses | None = None  # of the step, if it has guesses
        self._pairs, self._inputs = Buffer(), Buffer()

    @property
    def nbytes(self) -> int:
        """Bytes of inputs and results of pairs of rows and experts."""
        return self._pairs.nbytes + self._inputs.nbytes

    # -- a step -----------------------------------------------------------------------------------------------------

    def doubt(self, rows: Sequence[int]) -> Callable[[int], None]:
        self._uses = uses = Uses(rows) if rows else None
        return partial(uses.confirm, self.stream.policy) if uses else lambda row: None

    def begin_step(self, batch: Rows) -> None:
        if self._in_step:
            self.stream.abandon()
        self._in_step = True
        for layer, table in enumerate(self._hashed):
            if table is not None:  # known by token
                known = np.unique(table[batch.ids.array()[:, 0]])
                self.stream.expect((known + layer * self._n_experts).tolist())

    def foresee(self, layer: int, streams: Buffer) -> None:
        if streams.rows == 1:
            self.guess(layer, streams, GUESSES)

    def end_step(self, rows: int, uses: Uses | None = None) -> None:
        """`uses`: noted by who computes with the stream's experts in another way than `begin`."""
        self.stream.end_step(rows, uses or self._uses)
        self._in_step = False

    def begin(self, layer: int, x: Buffer, routing: Routing[Buffer], streams: Buffer) -> "Arriving":
        ids, first = routing.chosen.array(), layer * self._n_experts  # (n, k)
        scores = routing.scores.array() if self._hashed[layer] is None else None
        if scores is not None:
            self.stream.policy.scored(first, nearness(scores, ids.shape[1]))
        if self._uses:
            self._uses.note(first, ids, scores)
        pairs = np.argsort(ids, axis=None, kind="stable")  # by expert
        asked, starts, uses = np.unique(ids.ravel()[pairs], return_index=True, return_counts=True)
        if asked[0] < 0 or asked[-1] >= self._n_experts:
            raise ValueError("an expert that is not there (v4k.h)")
        self.stream.forget(set(range(first, first + self._n_experts)).difference((asked + first).tolist()))
        served = self.stream.serve(asked + first, uses, x.rows)
        if layer + 1 < len(self._hashed):
            self.guess(layer + 1, streams, 1.0)
        where = dict(zip((asked + first).tolist(), zip(starts.tolist(), uses.tolist())))
        return Arriving(self, layer, x, routing, pairs, where, served)

    def slots(self, experts: list[int]) -> list[int]:
        """Where experts that were just handed out lie."""
        return self.stream.slots(experts)

    def compute(self, layer: int, x: Buffer, rows: np.ndarray, slots: np.ndarray, weights: np.ndarray, at: int) -> None:
        """Pairs of rows of x and experts in slots: results (pairs, D) added to memory at `at`."""
        some = self._inputs.take(len(rows), x.width)
        np.take(x.array(), rows, axis=0, out=some.array())
        self.ops.add_experts(layer, self._table, some, slots[:, None], weights, at)

    def guesses(self, layer: int) -> bool:
        """Whether a layer's experts are guessed; those of others are known by token."""
        return self._hashed[layer] is None

    def guess(self, layer: int, streams: Buffer, share: float) -> None:
        """Keep the SSD busy when there is nothing else to read: what a layer's router makes of the streams as they are.
        For one token its first choices, `share` times as many as it uses; for many what several of them choose."""
        if not self.guesses(layer):
            return
        routing = self.ops.foreseen(layer, streams)
        chosen = routing.chosen.array()
        if streams.rows == 1:
            likely = np.argsort(-routing.scores.array()[0], kind="stable")[: round(share * chosen.shape[1])]
        else:
            votes = np.bincount(chosen.ravel(), minlength=self._n_experts)
            likely = np.argsort(-votes, kind="stable")
            likely = likely[votes[likely] > 1]
        self.stream.guess(layer, (likely + layer * self._n_experts).tolist())


class Arriving:
    """Routed experts of one layer's rows, computed as they are read."""

    def __init__(
        self,
        bank: Streamed,
        layer: int,
        x: Buffer,
        routing: Routing[Buffer],
        pairs: np.ndarray,
        where: dict[int, tuple[int, int]],
        served: Iterator[list[int]],
    ):
        """`pairs` (n * k) of rows and choices by expert, those of expert e at where[e] = start, count; `served` gives
        experts as they are there."""
        self.bank, self.layer, self.x, self.routing = bank, layer, x, routing
        self.pairs, self.where, self.served = pairs, where, served

    def add_to(self, out: Buffer) -> Buffer:
        bank, x, ids = self.bank, self.x, self.routing.chosen.array()
        n, k = ids.shape
        weights = self.routing.weights.array().ravel()
        y = bank._pairs.take(n * k, x.width)
        y.array()[:] = 0
        row, done = np.empty(n * k, np.int64), 0  # of y, by pair
        for experts in self.served:
            places = [self.where[expert] for expert in experts]
            mine = np.concatenate([self.pairs[start : start + count] for start, count in places])
            slots = np.repeat(np.array(bank.slots(experts), np.int64), [count for _, count in places])
            bank.compute(self.layer, x, mine // k, slots, weights[mine], y.at + done * x.width * 4)
            row[mine] = np.arange(done, done + len(mine))
            done += len(mine)
        for column in (np.argsort(ids, axis=1, kind="stable") + k * np.arange(n)[:, None]).T:  # ascending experts
            out.array()[:] += y.array()[row[column]]
        return out


def in_slot(stream: ExpertStream, slot: int, shape: int) -> Expert[PackedWeight]:
    """An expert of one of the shapes of its files, as it lies in a slot once it is read."""
    about, at = stream.reader.files.shapes[shape], stream.reader.address(slot)

    def matrix(name: str) -> PackedWeight:
        codes, form = about.halves[name + ".weight"], about.formats[name]
        rows, width = codes.spec.shape
        scale = at + about.halves[name + ".scale"].at
        return PackedWeight(at + codes.at, scale, rows, form.cols(width), form.name)

    return Expert(w1=matrix("w1"), w3=matrix("w3"), w2=matrix("w2"))
