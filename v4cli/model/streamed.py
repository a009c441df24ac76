"""The CPU op table over experts that are not all in memory (weights/streaming.py).

Every (token, expert) pair is computed for itself, in whatever order experts become available, and a token's are added
in ascending order at the end, as v4k_experts does: results are those of CpuOps to the bit, whatever was in memory.
"""

import ctypes

import numpy as np
from v4kernels import native
from v4kernels.cpu import Buffer, CpuOps, PackedWeight

from v4cli.model.sources import PackedSource
from v4cli.weights.residency import nearness
from v4cli.weights.streaming import ExpertStream

GUESSES = 1.5  # as many as a token uses: most likely all of them, and what is wrong is soon given up


class StreamedSource(PackedSource):
    """Of experts only the shapes."""

    def __init__(self, store):
        super().__init__(store, check=True)
        self._shapes: dict[str, PackedWeight] = {}

    def weight(self, name: str) -> PackedWeight:
        if ".ffn.experts." not in name:
            return super().weight(name)
        kind = name.split(".")[-2]
        if kind not in self._shapes:
            rows, width = self.checkpoint.spec(name).shape
            self._shapes[kind] = PackedWeight(0, 0, rows, 2 * width, "fp4")
        return self._shapes[kind]


class StreamedOps(CpuOps):
    """CpuOps whose experts come from a stream. A step is one forward pass, from `embed` to `final_hidden`."""

    def __init__(self, stream: ExpertStream):
        super().__init__()
        self.stream = stream
        self._in_step = False
        self.scores: Buffer | None = None  # of the router that was asked last
        self._ids: Buffer | None = None
        self._streams: Buffer | None = None

    def prepare(self, weights) -> None:
        super().prepare(weights)
        self._layers = weights.layers
        for i, layer in enumerate(self._layers):
            layer.ffn.number = i
        self._begins = {id(layer.hc_attn): layer for layer in self._layers}  # by the input of its first sublayer
        some = self._layers[0].ffn.experts[0]
        parts, reader = self.stream.reader.files.parts, self.stream.reader

        def matrix(slot: int, name: str) -> native.Matrix:
            at, shape = reader.address(slot), getattr(some, name).matrix
            codes, scale = at + parts[name + ".weight"], at + parts[name + ".scale"]
            return native.Matrix(codes, scale, shape.rows, shape.cols, shape.format)

        every = [native.Expert(*(matrix(slot, w) for w in ("w1", "w3", "w2"))) for slot in range(reader.n_slots)]
        self._table = (native.Expert * len(every))(*every)

    # -- a step -----------------------------------------------------------------------------------------------------

    def embed(self, ids: Buffer, table: PackedWeight, n_streams: int) -> Buffer:
        if self._in_step:
            self.stream.abandon()
        self._in_step, self._ids = True, ids
        streams = super().embed(ids, table, n_streams)  # first: its rows may come from the SSD, too
        for layer in self._layers:
            if layer.ffn.tid2eid is not None:  # known by token
                known = np.unique(layer.ffn.tid2eid[ids.array()[:, 0]])
                self.stream.expect((known + self._first(layer.ffn)).tolist())
        return streams

    def sublayer_input(self, streams: Buffer, hyper):
        self._streams = streams
        if streams.rows == 1 and id(hyper) in self._begins:
            self._guess(self._begins[id(hyper)], GUESSES)
        return super().sublayer_input(streams, hyper)

    def final_hidden(self, streams: Buffer, hyper) -> Buffer:
        self.stream.end_step(streams.rows)
        self._in_step = False
        return super().final_hidden(streams, hyper)

    # -- experts ----------------------------------------------------------------------------------------------------

    def route(self, ffn, x: Buffer, ids: Buffer):
        chosen, weights, self.scores = self.routed(ffn, x, ids)
        if ffn.tid2eid is None:
            self.stream.policy.scored(self._first(ffn), nearness(self.scores.array(), ffn.top_k))
        return chosen, weights

    def experts(self, ffn, x: Buffer, chosen: Buffer, weights: Buffer) -> Buffer:
        n, k, first = x.rows, ffn.top_k, self._first(ffn)
        ids, weights = chosen.array(), weights.array().ravel()  # (n, k), (n * k)
        pairs = np.argsort(ids, axis=None, kind="stable")  # by expert
        asked, starts, uses = np.unique(ids.ravel()[pairs], return_index=True, return_counts=True)
        if asked[0] < 0 or asked[-1] >= len(ffn.experts):
            raise ValueError("an expert that is not there (v4k.h)")
        self.stream.forget(set(range(first, first + len(ffn.experts))).difference((asked + first).tolist()))
        served = self.stream.serve(asked + first, uses, n)
        if ffn.number + 1 < len(self._layers):
            self._guess(self._layers[ffn.number + 1], 1.0)
        out, y = self._take("out", n, x.width), self._take("pairs", n * k, x.width)
        ctypes.memset(out.at, 0, n * x.width * 4)
        ctypes.memset(y.at, 0, n * k * x.width * 4)
        shared = self._call.v4k_experts(None, 0, ffn.shared_at, x.at, n, None, None, 0, ffn.limit, out.at)
        native.checked(shared)
        where = dict(zip((asked + first).tolist(), zip(starts.tolist(), uses.tolist())))
        row, done = np.empty(n * k, np.int64), 0  # of y, by pair
        for experts in served:
            mine = np.concatenate([pairs[start : start + count] for start, count in (where[e] for e in experts)])
            slots = np.repeat(np.array(self.stream.slots(experts), np.int64), [where[e][1] for e in experts])
            self._compute(ffn, x, mine // k, slots, weights[mine], y.at + done * x.width * 4)
            row[mine] = np.arange(done, done + len(mine))
            done += len(mine)
        for column in (np.argsort(ids, axis=1, kind="stable") + k * np.arange(n)[:, None]).T:  # ascending experts
            out.array()[:] += y.array()[row[column]]
        return out

    def _compute(self, ffn, x: Buffer, tokens: np.ndarray, slots: np.ndarray, weights: np.ndarray, to: int) -> None:
        """Pairs of tokens and experts in slots: results (pairs, D) added to memory at `to`."""
        rows = self._take("pair inputs", len(tokens), x.width)
        np.take(x.array(), tokens, axis=0, out=rows.array())
        code = self._call.v4k_experts(
            ctypes.addressof(self._table), len(self._table), None, rows.at, len(tokens), slots.ctypes.data,
            weights.ctypes.data, 1, ffn.limit, to,
        )  # fmt: skip
        native.checked(code)

    def _first(self, ffn) -> int:
        """Number of a layer's first expert, over all layers."""
        return ffn.number * len(ffn.experts)

    def _guess(self, layer, share: float) -> None:
        """Keep the SSD busy when there is nothing else to read: what a layer's router makes of the streams as they are.
        For one token its first choices, `share` times as many as it uses; for many what several of them choose."""
        if layer.ffn.tid2eid is not None:
            return
        n, k = self._streams.rows, layer.ffn.top_k
        x, mix = self._take("guess x", n, layer.hc_ffn.dim), self._take("guess mix", n, layer.hc_ffn.n_mix)
        native.checked(self._call.v4k_hyper_pre(layer.hc_ffn.at, self._streams.at, n, x.at, mix.at))
        chosen, _, scores = (buffer.array() for buffer in self.routed(layer.ffn, x, self._ids, "guess "))
        if n == 1:
            likely = np.argsort(-scores[0], kind="stable")[: round(share * k)]
        else:
            votes = np.bincount(chosen.ravel(), minlength=len(layer.ffn.experts))
            likely = np.argsort(-votes, kind="stable")
            likely = likely[votes[likely] > 1]
        self.stream.guess(layer.ffn.number, (likely + self._first(layer.ffn)).tolist())
