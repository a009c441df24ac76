"""The CPU op table over experts that are not all in memory (weights/streaming.py).

Every (token, expert) pair is computed for itself, in whatever order experts become available, and a token's are added
in ascending order at the end, as v4k_experts does: results are those of CpuOps to the bit, whatever was in memory.
"""

import ctypes

import numpy as np
from v4kernels import native
from v4kernels.cpu import Buffer, CpuOps, PackedWeight

from v4cli.model.sources import PackedSource
from v4cli.weights.streaming import ExpertStream

GUESSES = 2 / 3  # of a token's experts in the next layer are read on suspicion


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
        self._streams: Buffer | None = None

    def prepare(self, weights) -> None:
        super().prepare(weights)
        self._layers = weights.layers
        for i, layer in enumerate(self._layers):
            layer.ffn.number = i
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
        self._in_step = True
        streams = super().embed(ids, table, n_streams)  # first: its rows may come from the SSD, too
        for layer in self._layers:
            if layer.ffn.tid2eid is not None:  # known by token
                self._expect(layer.ffn, np.unique(layer.ffn.tid2eid[ids.array()[:, 0]]))
        return streams

    def sublayer_input(self, streams: Buffer, hyper):
        self._streams = streams
        return super().sublayer_input(streams, hyper)

    def final_hidden(self, streams: Buffer, hyper) -> Buffer:
        self.stream.end_step(streams.rows)
        self._in_step = False
        return super().final_hidden(streams, hyper)

    # -- experts ----------------------------------------------------------------------------------------------------

    def experts(self, ffn, x: Buffer, chosen: Buffer, weights: Buffer) -> Buffer:
        n, k, first = x.rows, ffn.top_k, self._first(ffn)
        ids, weights = chosen.array(), weights.array().ravel()  # (n, k), (n * k)
        pairs = np.argsort(ids, axis=None, kind="stable")  # by expert
        asked, starts, uses = np.unique(ids.ravel()[pairs], return_index=True, return_counts=True)
        if asked[0] < 0 or asked[-1] >= len(ffn.experts):
            raise ValueError("an expert that is not there (v4k.h)")
        self.stream.forget(set(range(first, first + len(ffn.experts))).difference((asked + first).tolist()))
        served = self.stream.serve(asked + first, uses, n)
        self._guess(ffn, n)
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

    def _expect(self, ffn, experts: np.ndarray) -> None:
        self.stream.expect((experts + self._first(ffn)).tolist())

    def _guess(self, ffn, n: int) -> None:
        """Keep the SSD busy when this layer's reads are done: what the next layer's router makes of the streams as they
        are, for one token its first choices, for many the experts that several of them choose."""
        if ffn.number + 1 == len(self._layers):
            return
        layer, k = self._layers[ffn.number + 1], ffn.top_k
        if layer.ffn.tid2eid is not None:
            return
        x, mix = self._take("guess x", n, layer.hc_ffn.dim), self._take("guess mix", n, layer.hc_ffn.n_mix)
        native.checked(self._call.v4k_hyper_pre(layer.hc_ffn.at, self._streams.at, n, x.at, mix.at))
        chosen, weights = self._take("guess", n, k, np.int64), self._take("guess weights", n, k)
        native.checked(self._call.v4k_route(layer.ffn.at, x.at, None, n, chosen.at, weights.at))
        if n == 1:
            return self._expect(layer.ffn, chosen.array()[0, : round(GUESSES * k)])
        votes = np.bincount(chosen.array().ravel(), minlength=len(ffn.experts))
        likely = np.argsort(-votes, kind="stable")
        self._expect(layer.ffn, likely[votes[likely] > 1])
