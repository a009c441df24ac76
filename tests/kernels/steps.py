"""The functions of v4k.h that a layer is made of, one by one, over arrays: what CpuOps calls as a whole."""

import ctypes

import numpy as np
from v4kernels import native
from v4kernels.cpu import Buffer, PackedWeight
from v4kernels.cpu.bound import BoundHyper, BoundMixture, pointer
from v4kernels.cpu.state import PackedEntries, PackedLayer


class Steps:
    """On the tier in use. Results are new arrays."""

    def __init__(self):
        self.library = native.library()

    def embed(self, ids, table: PackedWeight, n_streams: int) -> np.ndarray:
        ids, out = np.asarray(ids, np.int64), np.empty((len(ids), n_streams * table.matrix.cols), np.float32)
        at = ctypes.addressof(table.matrix)
        native.checked(self.library.v4k_embed(at, pointer(ids), len(ids), n_streams, pointer(out)))
        return out

    def rotations(self, freqs: np.ndarray, start: int, n: int) -> np.ndarray:
        out = np.empty((n, 2 * len(freqs)), np.float32)
        native.checked(self.library.v4k_rotations(pointer(freqs), len(freqs), start, 1, n, pointer(out)))
        return out

    def hyper_pre(self, streams: np.ndarray, hyper: BoundHyper) -> tuple[np.ndarray, np.ndarray]:
        x, mix = (np.empty((len(streams), width), np.float32) for width in (hyper.dim, hyper.n_mix))
        code = self.library.v4k_hyper_pre(hyper.at, pointer(streams), len(streams), pointer(x), pointer(mix))
        native.checked(code)
        return x, mix

    def hyper_post(self, out: np.ndarray, streams: np.ndarray, mix: np.ndarray, hyper: BoundHyper) -> np.ndarray:
        streams = streams.copy()
        sizes = len(streams), hyper.streams, hyper.dim
        native.checked(self.library.v4k_hyper_post(pointer(out), pointer(mix), *sizes, pointer(streams)))
        return streams

    def route(self, ffn: BoundMixture, x: np.ndarray, tokens: np.ndarray):
        n, k = len(x), ffn.top_k
        chosen, weights = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
        scores = np.empty((n, ffn.n_experts), np.float32)
        pointers = (pointer(array) for array in (chosen, weights, scores))
        native.checked(self.library.v4k_route(ffn.router_at, pointer(x), pointer(tokens), n, *pointers))
        return chosen, weights, scores

    # -- attention ------------------------------------------------------------------------------------------------

    def queries(self, attn, x: np.ndarray, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        q = np.empty((len(x), attn.heads * attn.head_dim), np.float32)
        qr = np.empty((len(x), attn.wq_a.matrix.rows), np.float32)
        pointers = pointer(turns), pointer(q), pointer(qr)
        native.checked(self.library.v4k_queries(attn.bound.attention_at, pointer(x), len(x), *pointers))
        return q, qr

    def window_entries(self, attn, x: np.ndarray, turns: np.ndarray) -> np.ndarray:
        fresh = np.empty((len(x), native.entry_bytes(attn.head_dim, attn.rope_dims)), np.uint8)
        pointers = pointer(turns), pointer(fresh)
        native.checked(self.library.v4k_window_entries(attn.bound.attention_at, pointer(x), len(x), *pointers))
        return fresh

    def compress(self, compressor, x: np.ndarray, start: int, part: PackedEntries) -> None:
        part.reserve(start + len(x))
        native.checked(self.library.v4k_compress(compressor.at, pointer(x), start, len(x), part.at))

    def select(self, attn, x: np.ndarray, qr: np.ndarray, turns: np.ndarray, start: int, part: PackedEntries):
        if (start + len(x)) // 4 <= attn.indexer.top_k:
            return None
        out, keys = np.empty((len(x), attn.indexer.top_k), np.int32), part.native
        code = self.library.v4k_select(
            ctypes.addressof(attn.bound.indexer), pointer(x), pointer(qr), pointer(turns), start, len(x), keys.entries,
            keys.scales, pointer(out),
        )  # fmt: skip
        native.checked(code)
        return out

    def attend(self, attn, q, turns, start: int, layer: PackedLayer, fresh, selected) -> np.ndarray:
        out = np.empty_like(q)
        entries = layer.main.native.entries if layer.main else None
        k = 0 if selected is None else selected.shape[1]
        code = self.library.v4k_attend(
            attn.bound.attention_at, pointer(q), pointer(turns), start, len(q), pointer(layer.ring), len(layer.ring),
            pointer(fresh), entries, attn.ratio, pointer(selected), k, pointer(out),
        )  # fmt: skip
        native.checked(code)
        return out

    def attention_output(self, attn, heads: np.ndarray) -> np.ndarray:
        out = np.empty((len(heads), attn.wq_a.matrix.cols), np.float32)
        pointers = pointer(heads), len(heads), pointer(out)
        native.checked(self.library.v4k_attention_output(attn.bound.attention_at, *pointers))
        return out

    def self_attention(self, attn, x: np.ndarray, turns: np.ndarray, spans) -> np.ndarray:
        """All of it; spans are (layer, start, rows)."""
        memories, described = [], (native.Span * len(spans))()
        for (layer, start, rows), span in zip(spans, described):
            for part in layer.parts.values():
                part.reserve(start + rows)
            memories.append(layer.described())
            span.memory, span.start, span.rows = ctypes.addressof(memories[-1]), start, rows
        out, scratch = np.empty_like(x), Buffer(np.uint8).take(len(x), attn.bound.scratch)
        code = self.library.v4k_self_attention(
            attn.bound.at, pointer(x), pointer(turns), ctypes.addressof(described), len(spans), scratch.at, pointer(out)
        )
        native.checked(code)
        return out
