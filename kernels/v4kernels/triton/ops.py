"""Triton backend: the op table (api.py) over kernels for GPUs, to the bits of the cpu backend.

Weights lie in device memory, embeddings in the host's. What a step needs of the host is in its record (record.py); the
results of its ops are buffers that are used again. Steps of few rows launch the same whatever their positions and
timelines: such a step is recorded once for its number of rows, and played from then on.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np

from v4kernels.api import Routing, Span
from v4kernels.cpu import Buffer as HostBuffer
from v4kernels.cpu.bound import MOST_DIMS, PackedTree
from v4kernels.cpu.serve import TIMEOUT_S
from v4kernels.formats import GROUP
from v4kernels.tree import Hyper
from v4kernels.triton import embed, hyper
from v4kernels.triton.attention import DeviceAttention
from v4kernels.triton.batch import TritonBatch
from v4kernels.triton.dense import FEW, Dense, blocks
from v4kernels.triton.device import Device, Graph
from v4kernels.triton.memory import Back, Buffer, Later, Memory
from v4kernels.triton.mixture import DeviceMixture, Resident
from v4kernels.triton.record import StepRecord
from v4kernels.triton.slots import Room, SlotExperts, StepExperts
from v4kernels.triton.state import DeviceTimeline
from v4kernels.triton.weights import Uploads

BUDGET = 256 << 20  # bytes of working memory, about, that tiles of many rows may take
CHUNK = 2048  # rows of a prefill


class DeviceHyper:
    """A hyper-connection and the norm behind it."""

    def __init__(self, h: Hyper[np.ndarray], dense: Dense, uploads: Uploads):
        self.dense, (self.rows, self.cols) = dense, h.fn.shape
        self.fn, self.base, self.scale, self.norm = (uploads.array(v) for v in (h.fn, h.base, h.scale, h.norm))
        self.streams, self.dim, self.n_mix = h.streams, self.cols // h.streams, h.streams + h.streams**2
        self.sizes = {"S": h.streams, "D": self.dim, "ITERS": h.iters, "NORM_EPS": h.norm_eps, "EPS": h.eps}

    def collapse(self, name: str, streams: Buffer, final: bool = False) -> tuple[Buffer, Buffer]:
        """Streams (n, S * D) -> x (n, D) and the mix (n, S + S*S), which the final collapse has none of."""
        dense, n = self.dense, streams.rows
        products, x = dense.take("hyper products", n, self.rows + 1), dense.take(name, n, self.dim)
        mix = x if final else dense.take(name + " mix", n, self.n_mix)
        tokens = 1 if n <= FEW else 4
        grid, arguments = (self.rows + 1, blocks(n, tokens)), (self.fn, streams.at, products.at, self.rows, n)
        dense.launch(hyper.hyper_products, grid, *arguments, K=self.cols, N=tokens, warps=1)
        weights = self.base, self.scale, self.norm
        q = None if final or self.dim % GROUP else dense.room_for(name, n, self.dim)
        made = (q.codes.at, q.scale.at) if q else (x.at, x.at)
        arguments = streams.at, products.at, *weights, x.at, mix.at, *made, self.rows
        sizes = self.sizes | {"QUANTIZED": q is not None, "BLOCK": 512}
        dense.launch(hyper.hyper_pre, (n, 1 if final else 2), *arguments, **sizes)
        return replace(x, quantized=q), mix


class TritonOps:
    """The op table over a tree of packed weights."""

    name = "triton"
    numerics = "int8"

    def __init__(
        self,
        tree: PackedTree,
        device: Device,
        most_tokens: int,
        chunk: int = CHUNK,
        kv_host: bool = False,
        budget: int = BUDGET,
        nf4: bool = False,
    ):
        """`most_tokens`: the longest that a timeline may get; `chunk`: rows of a prefill; `kv_host`: entries that an
        indexer chooses from lie in memory of the host; `budget`: bytes of working memory, about, for tiles of many
        rows; `nf4`: projections of attention and the head in that format, numerics of its own (nf4.py). MemoryError
        without room, ValueError for sizes that the kernels do not take and, of nf4, without bitsandbytes."""
        for attn in (layer.attn for layer in tree.layers):
            if attn.head_dim > MOST_DIMS or attn.rope_dims % 16:
                raise ValueError(f"the kernels take heads of up to {MOST_DIMS} dims and RoPE dims in sixteens")
        self.tree, self.device, self.most_tokens = tree, device, most_tokens
        self.chunk, self.kv_host, self.budget = chunk, kv_host, budget
        self.memory = Memory(device)
        self.numerics = "nf4" if nf4 else TritonOps.numerics
        self.uploads, self.dense = Uploads(self.memory, nf4), Dense(self.memory)
        up = self.dense, self.uploads
        self.hyper = [(DeviceHyper(layer.hc_attn, *up), DeviceHyper(layer.hc_ffn, *up)) for layer in tree.layers]
        self.attention = [
            DeviceAttention(layer.attn, number, *up, most_tokens, budget) for number, layer in enumerate(tree.layers)
        ]
        self.mixture = [DeviceMixture(layer.ffn, *up) for layer in tree.layers]
        self.hc_head, self.head = DeviceHyper(tree.hc_head, *up), self.uploads.weight(tree.head)
        self._few_record = StepRecord(self.memory, tree, FEW)
        self._many_record: StepRecord | None = None
        self._ran: set[int] = set()  # numbers of rows whose kernels are compiled and whose results have memory
        self._graphs: dict[int, tuple[Graph, Buffer]] = {}

    @property
    def most_drafts(self) -> int:
        """As many as are recorded; bitsandbytes' sums depend on the number of rows."""
        return 0 if self.numerics == "nf4" else FEW - 1

    def inference(self) -> AbstractContextManager:
        return contextlib.nullcontext()

    @property
    def record_nbytes(self) -> int:
        """Bytes of records, on the device and again in memory that both see."""
        return self._few_record.nbytes + (self._many_record.nbytes if self._many_record else 0)

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that weights, results and records take."""
        return self.uploads.nbytes + self.dense.nbytes + self.record_nbytes

    def new_state(self, most_tokens: int, folder: Path | None = None) -> DeviceTimeline:
        if folder is not None:
            raise ValueError("a KV cache in a folder needs the cpu backend")
        attentions = [layer.attn for layer in self.tree.layers]
        return DeviceTimeline(attentions, min(most_tokens, self.most_tokens), self.memory, self.kv_host)

    # -- a step -----------------------------------------------------------------------------------------------------

    def batch(self, spans: Sequence[Span[DeviceTimeline]]) -> TritonBatch:
        ids = np.concatenate([np.asarray(span.ids, np.int64) for span in spans])
        if ids.min(initial=0) < 0 or ids.max(initial=0) >= self.tree.embed.matrix.rows:
            raise ValueError("a token that is not there")
        with self.memory.lock:
            self.device.synchronize()  # nothing reads the record any more
            record = self._record(len(ids))
            record.fill(spans, ids)
        last = max(span.start + len(span.ids) for span in spans)
        return TritonBatch(record, last, HostBuffer.of(ids[:, None]))

    def _record(self, rows: int) -> StepRecord:
        if rows <= FEW:
            return self._few_record
        if self._many_record is None or self._many_record.most < rows:
            self._many_record = None  # the memory of one, not of two
            self._many_record = StepRecord(self.memory, self.tree, rows)
        return self._many_record

    def step(self, batch: TritonBatch, walk: Callable[[], Buffer], repeatable: bool) -> Buffer:
        """One model's steps are walked by a table, so a number of rows has one recording."""
        rows = batch.rows
        with self.memory.lock:
            if not (repeatable and batch.few):
                batch.record.start()
                return walk()
            if rows not in self._ran:  # compiles, loads and takes memory, which a recording may not
                batch.record.start()
                hidden = walk()
                self._ran.add(rows)
                return hidden
            if rows not in self._graphs:
                with self.device.record() as graph:
                    batch.record.start()
                    hidden = walk()
                self._graphs[rows] = graph, hidden
            graph, hidden = self._graphs[rows]
            graph.replay()
            return hidden

    def embed(self, batch: TritonBatch) -> Buffer:
        record, streams, dim = batch.record, self.hc_head.streams, self.hc_head.dim
        rows, numbers = record.at("embedded").at, record.at("numbers").at
        out, grid = self.dense.take("streams", batch.rows, streams * dim), (blocks(dim, 512), batch.rows)
        sizes = {"D": dim, "FORMAT": "f32", "BLOCK": 512}
        self.dense.launch(embed.embed, grid, rows, rows, numbers, out.at, streams, **sizes)
        return out

    def attention_input(self, layer: int, streams: Buffer) -> tuple[Buffer, Buffer]:
        return self.hyper[layer][0].collapse("attention", streams)

    def ffn_input(self, layer: int, streams: Buffer) -> tuple[Buffer, Buffer]:
        return self.hyper[layer][1].collapse("ffn", streams)

    def sublayer_output(self, out: Buffer, streams: Buffer, mix: Buffer) -> Buffer:
        if isinstance(out, Later):
            out.compute(Back(mix.at, streams.at, self.hc_head.streams))
            return streams
        grid, arguments = (blocks(out.width, 256), out.rows), (out.at, mix.at, streams.at)
        self.dense.launch(hyper.hyper_post, grid, *arguments, S=self.hc_head.streams, D=out.width, BLOCK=256)
        return streams

    def window_attention(self, layer: int, x: Buffer, batch: TritonBatch) -> Buffer:
        return self.attention[layer].attend(x, batch)

    csa_attention = hca_attention = window_attention  # the layer's parts say which it is

    def route_by_token(self, layer: int, x: Buffer, batch: TritonBatch) -> Routing[Buffer]:
        return self.mixture[layer].routed(layer, x, batch)

    def route_by_score(self, layer: int, x: Buffer) -> Routing[Buffer]:
        return self.mixture[layer].routed(layer, x, None)

    def shared_expert(self, layer: int, x: Buffer) -> Buffer:
        return self.mixture[layer].shared_expert(x)

    def resident(self) -> Resident:
        return Resident(self.mixture, self.dense, self.budget)

    def slot_experts(self, rooms: Sequence[Room], passing: Sequence[Room] = ()) -> SlotExperts:
        """Experts in slots, by kind, for a bank that gives and takes them."""
        return SlotExperts(self.mixture, self.dense, rooms, passing)

    def step_experts(self, rooms: Sequence[Room], kind: np.ndarray, timeout_s: float = TIMEOUT_S) -> StepExperts:
        """The same, and a ring for those without a slot, for steps of few rows; `kind` (layers, E): of each expert."""
        return StepExperts(self.mixture, self.dense, self.memory, rooms, kind, timeout_s)

    # -- head -------------------------------------------------------------------------------------------------------

    def final_hidden(self, streams: Buffer) -> Buffer:
        return self.hc_head.collapse("hidden", streams, final=True)[0]

    def finite(self, x: Buffer) -> bool:
        return bool(np.isfinite(self.dense.values(x)).all())

    def rows(self, hidden: Buffer, rows: Sequence[int]) -> Buffer:
        some = self.dense.take("some rows", len(rows), hidden.width)
        with self.memory.lock:
            for to, row in enumerate(rows):
                self.device.move(some.part(to, 1).at, hidden.part(row, 1).at, hidden.row_bytes)
        return some

    def logits(self, hidden: Buffer) -> np.ndarray:
        out = np.empty((hidden.rows, self.head.rows), np.float32)
        tile = max(FEW, self.budget // (4 * self.head.rows))
        with self.memory.lock:
            for first in range(0, hidden.rows, tile):
                some = hidden.part(first, min(tile, hidden.rows - first))
                out[first : first + tile] = self.dense.values(self.dense.linear("logits", self.head, some))
        return out
