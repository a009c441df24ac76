"""A tree of packed weights described to the kernel library: its structures (include/v4k.h), built once per op table.

The structures hold addresses; the tree that they are made of must outlive them.
"""

import ctypes
from collections.abc import Sequence

import numpy as np

from v4kernels import native
from v4kernels.formats import FORMATS
from v4kernels.tree import Attention, Compressor, Expert, Hyper, Layer, Mixture, Tree

MOST_DIMS = 1024  # of a head, as v4k.h says


class PackedWeight:
    """A matrix (out, in) as stored: where its codes and scales lie, in a format that the kernels read."""

    __slots__ = ("form", "matrix", "owners")

    def __init__(self, codes: int, scale: int | None, rows: int, cols: int, form: str, owners: tuple = ()):
        """`codes`, `scale`: addresses, valid as long as `owners` live."""
        self.form = form
        self.matrix = native.Matrix(codes, scale, rows, cols, FORMATS[form].id)
        self.owners = owners

    @classmethod
    def of(cls, form: str, codes: np.ndarray, scale: np.ndarray | None = None) -> "PackedWeight":
        """From arrays: codes (out, in) or packed (out, in/2)."""
        cols, at = FORMATS[form].cols(codes.shape[1]), None if scale is None else scale.ctypes.data
        return cls(codes.ctypes.data, at, codes.shape[0], cols, form, (codes, scale))


PackedTree = Tree[PackedWeight, np.ndarray]
PackedAttention = Attention[PackedWeight, np.ndarray]
PackedCompressor = Compressor[PackedWeight, np.ndarray]


def pointer(array: np.ndarray | None) -> int | None:
    """Address of an array's first element."""
    return None if array is None else array.ctypes.data


class BoundHyper:
    """A hyper-connection: `dim` D, `n_mix` numbers that a sublayer's output needs."""

    def __init__(self, h: Hyper[np.ndarray]):
        rows, cols = h.fn.shape
        fn = native.Matrix(pointer(h.fn), None, rows, cols, FORMATS["f32"].id)
        floats = h.norm_eps, h.eps
        self.native = native.Hyper(fn, pointer(h.base), pointer(h.scale), pointer(h.norm), h.streams, h.iters, *floats)
        self.at = ctypes.addressof(self.native)
        self.streams, self.dim, self.n_mix = h.streams, cols // h.streams, h.streams + h.streams**2


class BoundCompressor:
    def __init__(self, c: PackedCompressor):
        sizes = c.ratio, c.head_dim, c.rope_dims, int(c.is_index)
        pointers = pointer(c.ape), pointer(c.norm), pointer(c.freqs)
        self.native = native.Compressor(c.wkv.matrix, c.wgate.matrix, *pointers, *sizes, c.eps)
        self.at = ctypes.addressof(self.native)


class BoundAttention:
    """Attention of layer `number`: `scratch` bytes a row, `ratio` tokens per entry."""

    def __init__(self, a: PackedAttention, number: int):
        """ValueError for sizes that the kernels do not take."""
        if a.head_dim > MOST_DIMS or a.rope_dims % 16:
            raise ValueError(f"the kernels take heads of up to {MOST_DIMS} dims and RoPE dims in sixteens")
        matrices = (w.matrix for w in (a.wq_a, a.wq_b, a.wkv, a.wo_a, a.wo_b))
        pointers = pointer(a.q_norm), pointer(a.kv_norm), pointer(a.sink)
        self.attention = native.Attention(
            *matrices, *pointers, a.heads, a.head_dim, a.rope_dims, a.groups, a.window, a.eps
        )
        self.attention_at = ctypes.addressof(self.attention)
        self.main = BoundCompressor(a.compressor) if a.compressor is not None else None
        self.keys = self.indexer = None
        if a.indexer is not None:
            ix = a.indexer
            self.indexer = native.Indexer(
                ix.wq_b.matrix, ix.weights_proj.matrix, ix.heads, ix.head_dim, ix.rope_dims, ix.top_k
            )
            self.keys = BoundCompressor(ix.compressor)
        parts = (
            self.attention_at,
            self.main and self.main.at,
            self.keys and self.keys.at,
            self.indexer and ctypes.addressof(self.indexer),
        )
        self.layer = native.AttentionLayer(*parts, number)
        self.at = ctypes.addressof(self.layer)
        self.ratio, self.dim = a.ratio, a.wq_a.matrix.cols
        self.scratch = native.library().v4k_attention_scratch(self.at)


class BoundMixture:
    """Router and experts of one layer; `experts` is empty where a bank of its own holds them."""

    def __init__(self, ffn: Mixture[PackedWeight, np.ndarray]):
        pointers = pointer(ffn.gate_bias), pointer(ffn.tid2eid)
        self.router = native.Router(ffn.gate.matrix, *pointers, ffn.top_k, ffn.scale)
        self.router_at = ctypes.addressof(self.router)
        self.n_experts, self.top_k, self.limit = ffn.gate.matrix.rows, ffn.top_k, ffn.limit
        self.experts = ExpertTable(ffn.experts)
        self.shared = ExpertTable([ffn.shared])


class ExpertTable:
    """Experts one behind the other, as v4k_experts takes them: `n` of them at `at`. None: not in memory."""

    def __init__(self, experts: Sequence[Expert[PackedWeight] | None]):
        self._table = (native.Expert * len(experts))(*map(_described, experts))
        self.at, self.n = ctypes.addressof(self._table), len(experts)

    def put(self, number: int, expert: Expert[PackedWeight] | None) -> None:
        """This one lies elsewhere now; not while something computes with it."""
        self._table[number] = _described(expert)


def _described(expert: Expert[PackedWeight] | None) -> native.Expert:
    if expert is None:
        return native.Expert()
    return native.Expert(expert.w1.matrix, expert.w3.matrix, expert.w2.matrix)


class BoundLayer:
    def __init__(self, layer: Layer[PackedWeight, np.ndarray], number: int):
        self.hc_attn, self.hc_ffn = BoundHyper(layer.hc_attn), BoundHyper(layer.hc_ffn)
        self.attn = BoundAttention(layer.attn, number)
        self.ffn = BoundMixture(layer.ffn)
