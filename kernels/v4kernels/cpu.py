"""CPU backend: the op table over the kernel library (include/v4k.h). Plain memory, no torch.

One numerics, `int8`: inputs of quantized weights become int8 with one scale per 32, codes are multiplied exactly as
stored, KV entries and index keys are what the official cache holds, everything else is fp32 in a fixed order. Results
do not depend on ISA tier, threads or how many tokens are computed together: decoding equals any prefill bit for bit.
"""

import contextlib
import ctypes
import os

import numpy as np
import psutil

from v4kernels import native

MOST_DIMS = 1024  # of a head, as v4k.h says


class PackedWeight:
    """A matrix (out, in) as stored: where its codes and scales lie, in a format of native.FORMATS."""

    __slots__ = ("form", "matrix", "owners")

    def __init__(self, codes: int, scale: int | None, rows: int, cols: int, form: str, owners=()):
        """`codes`, `scale`: addresses, valid as long as `owners` live."""
        self.form = form
        self.matrix = native.Matrix(codes, scale, rows, cols, native.FORMATS[form])
        self.owners = owners

    @classmethod
    def of(cls, form: str, codes: np.ndarray, scale: np.ndarray | None = None) -> "PackedWeight":
        """From arrays: codes (out, in) or packed (out, in/2)."""
        cols = codes.shape[1] * (2 if form in ("fp4", "int4") else 1)
        at = None if scale is None else scale.ctypes.data
        return cls(codes.ctypes.data, at, codes.shape[0], cols, form, (codes, scale))


class Buffer:
    """`rows` rows of `width` elements in memory that the op table owns and uses again for every layer."""

    __slots__ = ("at", "data", "rows", "width")

    def __init__(self, data: np.ndarray):
        self.data, self.at = data, data.ctypes.data
        self.rows = self.width = 0

    def array(self) -> np.ndarray:
        """The values, as a view (rows, width)."""
        return self.data[: self.rows * self.width].reshape(self.rows, self.width)


class CpuOps:
    """Op table over the kernel library; v4kernels/reference.py describes the ops. Not for two threads at once."""

    name = "cpu"
    numerics = "int8"
    packed = True

    def __init__(self):
        """ValueError, with the reason, where the library is not available."""
        if not native.available():
            raise ValueError(f"the cpu backend is not available: {native.reason()}")
        native.set_threads(default_threads())
        self._call = native.library()
        self._buffers: dict[str, Buffer] = {}

    def inference(self):
        return contextlib.nullcontext()

    def _take(self, name: str, rows: int, width: int, dtype=np.float32) -> Buffer:
        """Room for an op's result, by name: what it held before is gone."""
        buffer = self._buffers.get(name)
        if buffer is not None and buffer.rows == rows and buffer.width == width:
            return buffer
        if buffer is None or len(buffer.data) < rows * width:
            buffer = self._buffers[name] = Buffer(np.empty(rows * width, dtype))
        buffer.rows, buffer.width = rows, width
        return buffer

    # -- argument structures, built once ----------------------------------------------------------------------

    def prepare(self, weights) -> None:
        """Describe every node of the tree to the library. ValueError for sizes it does not take."""
        _describe_hyper(weights.hc_head)
        for layer in weights.layers:
            _describe_hyper(layer.hc_attn)
            _describe_hyper(layer.hc_ffn)
            _describe_attention(layer.attn)
            _describe_ffn(layer.ffn)

    # -- ops --------------------------------------------------------------------------------------------------

    def tokens(self, ids) -> Buffer:
        held = self._take("ids", len(ids), 1, np.int64)
        held.array()[:, 0] = ids
        return held

    def embed(self, ids: Buffer, table: PackedWeight, n_streams: int) -> Buffer:
        out = self._take("streams", ids.rows, n_streams * table.matrix.cols)
        native.checked(self._call.v4k_embed(ctypes.addressof(table.matrix), ids.at, ids.rows, n_streams, out.at))
        return out

    def rotations(self, freqs: np.ndarray, start: int, n: int) -> Buffer:
        out = self._take(f"turns {freqs.ctypes.data}", n, 2 * len(freqs))
        native.checked(self._call.v4k_rotations(freqs.ctypes.data, len(freqs), start, 1, n, out.at))
        return out

    def sublayer_input(self, streams: Buffer, hyper):
        n = streams.rows
        x, mix = self._take("x", n, hyper.dim), self._take("mix", n, hyper.n_mix)
        native.checked(self._call.v4k_hyper_pre(hyper.at, streams.at, n, x.at, mix.at))
        return x, (mix.at, hyper.streams, hyper.dim)

    def sublayer_output(self, out: Buffer, streams: Buffer, mix) -> Buffer:
        native.checked(self._call.v4k_hyper_post(out.at, mix[0], streams.rows, mix[1], mix[2], streams.at))
        return streams

    def final_hidden(self, streams: Buffer, hyper) -> Buffer:
        out = self._take("x", streams.rows, hyper.dim)
        native.checked(self._call.v4k_hyper_head(hyper.at, streams.at, streams.rows, out.at))
        return out

    def self_attention(self, attn, x: Buffer, turns: Buffer, start: int, kv) -> Buffer:
        n = x.rows
        kv.reserve(start + n)
        out, scratch = self._take("out", n, attn.dim), self._take("scratch", n, attn.scratch, np.uint8)
        code = self._call.v4k_self_attention(attn.layer_at, x.at, turns.at, start, n, kv.at, scratch.at, out.at)
        native.checked(code)
        return out

    def route(self, ffn, x: Buffer, ids: Buffer):
        return self.routed(ffn, x, ids)[:2]

    def routed(self, ffn, x: Buffer, ids: Buffer, name: str = "") -> tuple[Buffer, Buffer, Buffer]:
        """Chosen experts and their weights (n, top_k), and the scores (n, E) they were chosen by, the bias included;
        `name` keeps them apart from those of other calls."""
        chosen = self._take(name + "chosen", x.rows, ffn.top_k, np.int64)
        weights = self._take(name + "weights", x.rows, ffn.top_k)
        scores = self._take(name + "scores", x.rows, ffn.gate.matrix.rows)
        code = self._call.v4k_route(ffn.at, x.at, ids.at, x.rows, chosen.at, weights.at, scores.at)
        native.checked(code)
        return chosen, weights, scores

    def experts(self, ffn, x: Buffer, chosen: Buffer, weights: Buffer) -> Buffer:
        out = self._take("out", x.rows, x.width)
        ctypes.memset(out.at, 0, x.rows * x.width * 4)
        code = self._call.v4k_experts(
            ffn.experts_at, len(ffn.experts), ffn.shared_at, x.at, x.rows, chosen.at, weights.at, ffn.top_k, ffn.limit,
            out.at,
        )  # fmt: skip
        native.checked(code)
        return out

    def last(self, hidden: Buffer) -> Buffer:
        row = self._take("last", 1, hidden.width)
        row.array()[:] = hidden.array()[-1]
        return row

    def finite(self, x: Buffer) -> bool:
        return bool(np.isfinite(x.array()).all())

    def logits(self, hidden: Buffer, head: PackedWeight) -> np.ndarray:
        out = np.empty((hidden.rows, head.matrix.rows), np.float32)
        at = ctypes.addressof(head.matrix)
        native.checked(self._call.v4k_linear(at, 1, hidden.at, hidden.rows, out.ctypes.data))
        return out


def default_threads() -> int:
    """OMP_NUM_THREADS where set, else the physical cores this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted):
        return min(int(wanted), 1024)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def _at(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


def _described(node, native_struct) -> None:
    """Give a node its structure; the node's own arrays and weights keep the memory alive."""
    node.native, node.at = native_struct, ctypes.addressof(native_struct)


def _describe_hyper(h) -> None:
    rows, cols = h.fn.shape
    fn = native.Matrix(_at(h.fn), None, rows, cols, native.FORMATS["f32"])
    _described(h, native.Hyper(fn, _at(h.base), _at(h.scale), _at(h.norm), h.streams, h.iters, h.norm_eps, h.eps))
    h.dim, h.n_mix = cols // h.streams, h.streams + h.streams**2


def _describe_attention(a) -> None:
    if a.head_dim > MOST_DIMS or a.rope_dims % 16:
        raise ValueError(f"the kernels take heads of up to {MOST_DIMS} dims and RoPE dims in sixteens")
    matrices = (w.matrix for w in (a.wq_a, a.wq_b, a.wkv, a.wo_a, a.wo_b))
    sizes = a.heads, a.head_dim, a.rope_dims, a.groups, a.window
    _described(a, native.Attention(*matrices, _at(a.q_norm), _at(a.kv_norm), _at(a.sink), *sizes, a.eps))
    a.dim, a.q_rank = a.wq_a.matrix.cols, a.wq_a.matrix.rows
    a.entry_bytes = native.entry_bytes(a.head_dim, a.rope_dims)
    if a.compressor is not None:
        _describe_compressor(a.compressor)
    if a.indexer is not None:
        ix = a.indexer
        struct = native.Indexer(ix.wq_b.matrix, ix.weights_proj.matrix, ix.heads, ix.head_dim, ix.rope_dims, ix.top_k)
        _described(ix, struct)
        _describe_compressor(ix.compressor)
    parts = a, a.compressor, a.indexer and a.indexer.compressor, a.indexer
    a.layer = native.AttentionLayer(*(part and part.at for part in parts))
    a.layer_at = ctypes.addressof(a.layer)
    a.scratch = native.library().v4k_attention_scratch(a.layer_at)  # bytes per token


def _describe_compressor(c) -> None:
    pointers = _at(c.ape), _at(c.norm), _at(c.freqs)
    sizes = c.ratio, c.head_dim, c.rope_dims, int(c.is_index)
    _described(c, native.Compressor(c.wkv.matrix, c.wgate.matrix, *pointers, *sizes, c.eps))


def _describe_ffn(ffn) -> None:
    _described(ffn, native.Router(ffn.gate.matrix, _at(ffn.gate_bias), _at(ffn.tid2eid), ffn.top_k, ffn.scale))
    parts = [native.Expert(e.w1.matrix, e.w3.matrix, e.w2.matrix) for e in (*ffn.experts, ffn.shared_experts)]
    ffn.table = (native.Expert * len(parts))(*parts)  # the shared one last
    ffn.experts_at = ctypes.addressof(ffn.table)
    ffn.shared_at = ffn.experts_at + len(ffn.experts) * ctypes.sizeof(native.Expert)
