"""CPU backend: the op table (api.py) over the kernel library (include/v4k.h). Plain memory, no torch.

One numerics, `int8`: inputs of quantized weights become int8 with one scale per 32, codes are multiplied exactly as
stored, KV entries and index keys are what the official cache holds, everything else is fp32 in a fixed order. Results
do not depend on ISA tier, threads or which rows are computed together: decoding equals any prefill bit for bit.
"""

import contextlib
import ctypes
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from v4kernels import native
from v4kernels.api import Routing, Span
from v4kernels.cpu.bound import BoundHyper, BoundLayer, ExpertTable, PackedAttention, PackedTree, pointer
from v4kernels.cpu.state import Timeline
from v4kernels.native import SPARE_ROWS

LEAST_STACK = 1 << 20


class Buffer:
    """`rows` rows of `width` elements in memory that an op uses again for each of its results."""

    __slots__ = ("at", "data", "rows", "width")

    def __init__(self, dtype: type = np.float32):
        self.data: np.ndarray = np.empty(0, dtype)
        self.at = self.rows = self.width = 0

    @classmethod
    def of(cls, array: np.ndarray) -> "Buffer":
        """The rows of an array (rows, width), contiguous, without a copy."""
        held = cls(array.dtype.type)
        held.data, held.at, (held.rows, held.width) = array.reshape(-1), array.ctypes.data, array.shape
        return held

    def take(self, rows: int, width: int) -> "Buffer":
        """Room for a result; what was held before is gone."""
        if rows != self.rows or width != self.width:
            if len(self.data) < rows * width:
                self.data = np.empty(rows * width, self.data.dtype)
                self.at = self.data.ctypes.data
            self.rows, self.width = rows, width
        return self

    def array(self) -> np.ndarray:
        """The values, as a view (rows, width)."""
        return self.data[: self.rows * self.width].reshape(self.rows, self.width)

    @property
    def nbytes(self) -> int:
        """Bytes held, for as many rows as there ever were."""
        return self.data.nbytes


@dataclass(frozen=True, slots=True)
class CpuBatch:
    """Rows of a step: ids (N, 1) int64, the native spans, and rotations (N, R) by compression ratio."""

    ids: Buffer
    spans: ctypes.Array
    spans_at: int
    rotations: dict[int, Buffer]

    @property
    def rows(self) -> int:
        return self.ids.rows


class Cpu:
    """Makes op tables over the kernel library. ValueError, with the reason, where it is not available."""

    name = "cpu"
    numerics = "int8"

    def __init__(self) -> None:
        if not native.available():
            raise ValueError(f"the cpu backend is not available: {native.reason()}")
        need_stack()
        native.set_threads(default_threads())

    def new_state(self, attentions: Sequence[PackedAttention], most_tokens: int) -> Timeline:
        return Timeline(attentions, most_tokens)

    def bind(self, tree: PackedTree) -> "CpuOps":
        """ValueError for sizes that the kernels do not take."""
        return CpuOps(tree)


class CpuOps:
    """The op table over a tree of packed weights. What an op gives has one width in all layers, so that a buffer is
    taken anew only when the number of rows changes: looking costs as much as calling a small kernel. Of buffers that an
    op takes together the last one is looked at, so that after a MemoryError all of them are taken again."""

    name = Cpu.name
    numerics = Cpu.numerics
    chunk = 512
    most_drafts = SPARE_ROWS - 1

    def __init__(self, tree: PackedTree):
        self.tree = tree
        self.library = native.library()
        self.layers = [BoundLayer(layer, number) for number, layer in enumerate(tree.layers)]
        self.hc_head = BoundHyper(tree.hc_head)
        self._freqs = {layer.attn.ratio: layer.attn.freqs for layer in tree.layers}
        self._rotations = {ratio: Buffer() for ratio in self._freqs}
        self._ids, self._streams, self._hidden, self._rows = Buffer(np.int64), Buffer(), Buffer(), Buffer()
        self._attention_input, self._ffn_input, self._foreseen_input = ((Buffer(), Buffer()) for _ in range(3))
        self._most_scratch = max(layer.attn.scratch for layer in self.layers)  # of a row
        self._attended, self._scratch, self._mlp = Buffer(), Buffer(np.uint8), Buffer()
        self._routes, self._foreseen = (Routing(Buffer(np.int64), Buffer(), Buffer()) for _ in range(2))

    def inference(self) -> AbstractContextManager:
        return contextlib.nullcontext()

    @property
    def nbytes(self) -> int:
        """Bytes of results and of what passes between the steps of an op."""
        buffers = [self._ids, self._streams, self._hidden, self._rows, *self._rotations.values()]
        buffers += [*self._attention_input, *self._ffn_input, *self._foreseen_input]
        buffers += [self._attended, self._scratch, self._mlp]
        for routing in (self._routes, self._foreseen):
            buffers += [routing.chosen, routing.weights, routing.scores]
        return sum(buffer.nbytes for buffer in buffers)

    def new_state(self, most_tokens: int, folder: Path | None = None) -> Timeline:
        return Timeline([layer.attn for layer in self.tree.layers], most_tokens, folder)

    def batch(self, spans: Sequence[Span[Timeline]]) -> CpuBatch:
        n = sum(len(span.ids) for span in spans)
        ids, row = self._ids.take(n, 1), 0
        held = (native.Span * len(spans))()
        rotations = {ratio: buffer.take(n, 2 * len(self._freqs[ratio])) for ratio, buffer in self._rotations.items()}
        for span, described in zip(spans, held):
            count = len(span.ids)
            ids.data[row : row + count] = span.ids
            described.memory, described.start, described.rows = span.state.at, span.start, count
            described.together = span.together
            for ratio, buffer in rotations.items():
                freqs, at = self._freqs[ratio], buffer.at + 4 * row * buffer.width
                code = self.library.v4k_rotations(freqs.ctypes.data, len(freqs), span.start, 1, count, at)
                native.checked(code)
            row += count
        return CpuBatch(ids, held, ctypes.addressof(held), rotations)

    def step(self, batch: CpuBatch, walk: Callable[[], Buffer], repeatable: bool) -> Buffer:
        return walk()

    def embed(self, batch: CpuBatch) -> Buffer:
        table, n_streams = self.tree.embed.matrix, self.hc_head.streams
        out = self._streams.take(batch.rows, n_streams * table.cols)
        code = self.library.v4k_embed(ctypes.addressof(table), batch.ids.at, batch.rows, n_streams, out.at)
        native.checked(code)
        return out

    # -- sublayers ----------------------------------------------------------------------------------------------

    def attention_input(self, layer: int, streams: Buffer) -> tuple[Buffer, Buffer]:
        return self._input(self.layers[layer].hc_attn, streams, self._attention_input)

    def ffn_input(self, layer: int, streams: Buffer) -> tuple[Buffer, Buffer]:
        return self._input(self.layers[layer].hc_ffn, streams, self._ffn_input)

    def _input(self, hyper: BoundHyper, streams: Buffer, to: tuple[Buffer, Buffer]) -> tuple[Buffer, Buffer]:
        x, mix = to
        if mix.rows != streams.rows:
            to[0].take(streams.rows, hyper.dim), to[1].take(streams.rows, hyper.n_mix)
        if code := self.library.v4k_hyper_pre(hyper.at, streams.at, streams.rows, x.at, mix.at):
            native.checked(code)
        return to

    def sublayer_output(self, out: Buffer, streams: Buffer, mix: Buffer) -> Buffer:
        head = self.hc_head
        if code := self.library.v4k_hyper_post(out.at, mix.at, streams.rows, head.streams, head.dim, streams.at):
            native.checked(code)
        return streams

    # -- attention ----------------------------------------------------------------------------------------------

    def window_attention(self, layer: int, x: Buffer, batch: CpuBatch) -> Buffer:
        attn, out, scratch = self.layers[layer].attn, self._attended, self._scratch
        if scratch.rows != x.rows:
            out.take(x.rows, attn.dim), scratch.take(x.rows, self._most_scratch)
        turns_at = batch.rotations[attn.ratio].at
        if code := self.library.v4k_self_attention(
            attn.at, x.at, turns_at, batch.spans_at, len(batch.spans), scratch.at, out.at
        ):
            native.checked(code)
        return out

    csa_attention = hca_attention = window_attention  # the library sees by the layer's parts which it is

    # -- feed-forward -------------------------------------------------------------------------------------------

    def route_by_token(self, layer: int, x: Buffer, batch: CpuBatch) -> Routing[Buffer]:
        return self._routed(layer, x, batch.ids.at, self._routes)

    def route_by_score(self, layer: int, x: Buffer) -> Routing[Buffer]:
        return self._routed(layer, x, None, self._routes)

    def foreseen(self, layer: int, streams: Buffer) -> Routing[Buffer]:
        """What the router of a layer that routes by score makes of streams (N, S, D) as they are: a guess."""
        x, _ = self._input(self.layers[layer].hc_ffn, streams, self._foreseen_input)
        return self._routed(layer, x, None, self._foreseen)

    def _routed(self, layer: int, x: Buffer, ids_at: int | None, to: Routing[Buffer]) -> Routing[Buffer]:
        ffn, n, scores = self.layers[layer].ffn, x.rows, to.scores
        if scores.rows != n:
            to.chosen.take(n, ffn.top_k), to.weights.take(n, ffn.top_k), scores.take(n, ffn.n_experts)
        if code := self.library.v4k_route(ffn.router_at, x.at, ids_at, n, to.chosen.at, to.weights.at, scores.at):
            native.checked(code)
        return to

    def shared_expert(self, layer: int, x: Buffer) -> Buffer:
        ffn, out = self.layers[layer].ffn, self._mlp
        if out.rows != x.rows:
            out.take(x.rows, x.width)
        ctypes.memset(out.at, 0, 4 * x.rows * x.width)
        if code := self.library.v4k_experts(None, 0, ffn.shared.at, x.at, x.rows, None, None, 0, ffn.limit, out.at):
            native.checked(code)
        return out

    def add_experts(
        self, layer: int, table: ExpertTable, x: Buffer, chosen: np.ndarray, weights: np.ndarray, out_at: int
    ) -> None:
        """Add to fp32 rows at `out_at` experts of `table`: chosen (N, k) int64 of it, weights (N, k)."""
        code = self.library.v4k_experts(
            table.at, table.n, None, x.at, x.rows, pointer(chosen), pointer(weights), chosen.shape[1],
            self.layers[layer].ffn.limit, out_at,
        )  # fmt: skip
        native.checked(code)

    def resident(self) -> "Resident":
        return Resident(self)

    # -- head ---------------------------------------------------------------------------------------------------

    def final_hidden(self, streams: Buffer) -> Buffer:
        out = self._hidden.take(streams.rows, self.hc_head.dim)
        native.checked(self.library.v4k_hyper_head(self.hc_head.at, streams.at, streams.rows, out.at))
        return out

    def finite(self, x: Buffer) -> bool:
        return bool(np.isfinite(x.array()).all())

    def rows(self, hidden: Buffer, rows: Sequence[int]) -> Buffer:
        some = self._rows.take(len(rows), hidden.width)
        some.array()[:] = hidden.array()[list(rows)]
        return some

    def logits(self, hidden: Buffer) -> np.ndarray:
        head = self.tree.head.matrix
        out = np.empty((hidden.rows, head.rows), np.float32)
        code = self.library.v4k_linear(ctypes.addressof(head), 1, hidden.at, hidden.rows, out.ctypes.data)
        native.checked(code)
        return out


class Resident:
    """The bank of the experts in the tree: nothing has to be fetched."""

    repeatable = True

    def __init__(self, ops: CpuOps):
        self.ops = ops

    def doubt(self, rows: Sequence[int]) -> Callable[[int], None]:
        return lambda row: None

    def begin_step(self, batch: CpuBatch) -> None: ...

    def foresee(self, layer: int, streams: Buffer) -> None: ...

    def end_step(self, rows: int) -> None: ...

    def begin(self, layer: int, x: Buffer, routing: Routing[Buffer], streams: Buffer) -> "Mixing":
        return Mixing(self.ops, layer, x, routing)


@dataclass(slots=True)
class Mixing:
    """Routed experts of one layer, computed when they are added."""

    ops: CpuOps
    layer: int
    x: Buffer
    routing: Routing[Buffer]

    def add_to(self, out: Buffer) -> Buffer:
        ffn, x, chosen = self.ops.layers[self.layer].ffn, self.x, self.routing.chosen
        if code := self.ops.library.v4k_experts(
            ffn.experts.at, ffn.experts.n, None, x.at, x.rows, chosen.at, self.routing.weights.at, ffn.top_k, ffn.limit,
            out.at,
        ):  # fmt: skip
            native.checked(code)
        return out


def need_stack() -> None:
    """Have LEAST_STACK bytes of stack, of which the kernels take up to 400 KB in the calling thread. ValueError where
    the system does not give them: beyond the limit a process ends without a word."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if 0 <= soft < LEAST_STACK:
        if 0 <= hard < LEAST_STACK:
            raise ValueError(
                f"the cpu backend needs {LEAST_STACK >> 10} KiB of stack, the limit is {hard >> 10} (ulimit -s)"
            )
        resource.setrlimit(resource.RLIMIT_STACK, (LEAST_STACK, hard))


def default_threads() -> int:
    """OMP_NUM_THREADS where set, else the physical cores this process may use, of which slower ones do not count."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted):
        return min(int(wanted), 1024)
    usable = native.cpus() if native.available() else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))
