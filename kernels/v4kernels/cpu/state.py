"""What the kernels remember of one timeline: packed entries (spec 4.1) in numpy arrays of bytes.

Entries lie one behind the other in memory that grows (memory.py). Windows and tails are rings by position, with rows to
spare: going back by no more than SPARE_ROWS tokens overwrites and needs nothing (v4k.h).
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from v4kernels import native
from v4kernels.cpu.bound import PackedAttention, PackedCompressor
from v4kernels.cpu.memory import Memory
from v4kernels.native import SPARE_ROWS
from v4kernels.tree import OVERLAPPED

NAN = 0xFF  # as a scale


class PackedEntries:
    """What one compressor keeps: tails (2, slots, C) fp32 of kv and gate by position, and entries."""

    def __init__(self, compressor: PackedCompressor, most_tokens: int, memory: Memory):
        self.ratio = compressor.ratio
        self._overlap = self.ratio == OVERLAPPED
        width = compressor.head_dim * (2 if self._overlap else 1)
        self.tails = np.zeros((2, self.ratio * (2 if self._overlap else 1) + SPARE_ROWS, width), np.float32)
        dims, rope = compressor.head_dim, compressor.rope_dims
        if compressor.is_index:
            sizes = dict(zip(("entries", "scales"), native.key_bytes(dims)))
        else:
            sizes = {"entries": native.entry_bytes(dims, rope)}
        self.rows = {name: memory.rows(most_tokens // self.ratio, size) for name, size in sizes.items()}
        self.room = 0  # entries that may be written
        self.native = native.Compressed(
            self.tails[0].ctypes.data, self.tails[1].ctypes.data, *(r.data.ctypes.data for r in self.rows.values())
        )
        self.native.slots, self.native.on_disk = self.tails.shape[1], memory.file is not None
        self.at = ctypes.addressof(self.native)

    def reserve(self, n_tokens: int) -> None:
        """Room for the entries of the first n_tokens tokens."""
        need = n_tokens // self.ratio
        if need > self.room:
            for rows in self.rows.values():
                rows.reserve(need)
            self.room = need

    def trim(self, n_tokens: int) -> None:
        """Give back the memory of entries behind the first n_tokens tokens."""
        self.room = min(self.room, n_tokens // self.ratio)
        for rows in self.rows.values():
            rows.trim(self.room)

    def tail(self, n_tokens: int) -> np.ndarray:
        """Slots in use at n_tokens, in the order of their positions: of the unfinished block, and of the one before."""
        first = max(0, (n_tokens // self.ratio - self._overlap) * self.ratio)
        return np.arange(first, n_tokens) % self.tails.shape[1]

    @property
    def nbytes(self) -> int:
        return self.tails.nbytes + sum(rows.nbytes for rows in self.rows.values())


class PackedLayer:
    """Window ring (window + SPARE_ROWS, entry bytes), compressed entries (ratio > 0), index keys (ratio 4)."""

    def __init__(self, attn: PackedAttention, most_tokens: int, memory: Memory):
        self.window, self.dims = attn.window, (attn.head_dim, attn.rope_dims)
        self.ring = np.zeros((attn.window + SPARE_ROWS, native.entry_bytes(attn.head_dim, attn.rope_dims)), np.uint8)
        self.main = self.index = None
        if attn.compressor is not None:
            self.main = PackedEntries(attn.compressor, most_tokens, memory)
        if attn.indexer is not None:
            self.index = PackedEntries(attn.indexer.compressor, most_tokens, memory)
        self.parts = {name: part for name, part in (("main", self.main), ("index", self.index)) if part is not None}

    def described(self) -> ctypes.Structure:
        """For the kernels; valid as long as this layer."""
        parts = self.main and self.main.at, self.index and self.index.at
        return native.Memory(self.ring.ctypes.data, *parts, len(self.ring))

    def _latest(self, n_tokens: int) -> np.ndarray:
        """Rows of the window at n_tokens, in the order of their positions."""
        return np.arange(max(0, n_tokens - self.window), n_tokens) % len(self.ring)

    def mark(self, n_tokens: int) -> dict[str, np.ndarray]:
        """Copies of windows (n, bytes) and tails (2, n, C) by name, in the order of positions."""
        tails = {f"{name}.tail": part.tails[:, part.tail(n_tokens)] for name, part in self.parts.items()}
        return {"window": self.ring[self._latest(n_tokens)]} | tails

    def restore(self, mark: dict[str, np.ndarray], n_tokens: int) -> None:
        """Be at n_tokens again. ValueError if the mark is not of such a layer and place."""
        now = self.mark(n_tokens)
        if kinds(mark) != kinds(now):
            raise ValueError("arrays of another shape")
        self.ring[self._latest(n_tokens)] = mark["window"]
        for name, part in self.parts.items():
            part.tails[:, part.tail(n_tokens)] = mark[f"{name}.tail"]
            part.trim(n_tokens)

    def reserve(self, n_tokens: int) -> None:
        """Room for the entries of the first n_tokens tokens. MemoryError."""
        for part in self.parts.values():
            part.reserve(n_tokens)

    def entries(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Views of the entries of tokens [first, last), whole blocks of every ratio, by name."""
        return {
            f"{name}.{kind}": rows.data[first // part.ratio : last // part.ratio]
            for name, part in self.parts.items()
            for kind, rows in part.rows.items()
        }

    def put(self, first: int, last: int, entries: dict[str, np.ndarray]) -> None:
        """Write what `entries(first, last)` gave elsewhere. ValueError if it does not fit."""
        self.reserve(last)
        own = self.entries(first, last)
        if kinds(entries) != kinds(own):
            raise ValueError("arrays of another shape")
        for name, array in own.items():
            array[...] = entries[name]

    def finite(self, arrays: dict[str, np.ndarray]) -> bool:
        """Whether what `entries` or `mark` gave elsewhere is finite."""
        return finite_arrays(arrays, *self.dims)

    @property
    def nbytes(self) -> int:
        return self.ring.nbytes + sum(part.nbytes for part in self.parts.values())


class Timeline:
    """All layers of one timeline; `at`: their v4k_memory structures, one behind the other."""

    spare = SPARE_ROWS

    def __init__(self, attentions: Sequence[PackedAttention], most_tokens: int, folder: Path | None = None):
        """`folder`: where entries live in a file instead of RAM. MemoryError without room."""
        memory = Memory(folder)
        self.layers = [PackedLayer(attn, most_tokens, memory) for attn in attentions]
        self._memories = (native.Memory * len(self.layers))(*(layer.described() for layer in self.layers))
        self.at = ctypes.addressof(self._memories)


def finite_arrays(arrays: dict[str, np.ndarray], dims: int, rope_dims: int) -> bool:
    """Whether what a layer's `entries` or `mark` gave is finite."""
    ok = True
    for name, array in arrays.items():
        if name in ("window", "main.entries"):
            ok &= _finite_entries(array, dims, rope_dims)
        elif name == "index.scales":
            ok &= bool((array != NAN).all())
        elif name.endswith(".tail"):
            ok &= bool(np.isfinite(array).all())
    return ok


def _finite_entries(rows: np.ndarray, dims: int, rope_dims: int) -> bool:
    """Whether no e4m3 code, bf16 value or scale of these KV entries (v4k.h) is not finite."""
    plain = dims - rope_dims
    scales_at = plain + 2 * rope_dims
    turned = np.ascontiguousarray(rows[:, plain:scales_at]).view(np.uint16)
    scales = rows[:, scales_at : scales_at + -(-plain // native.KV_GROUP)]
    bad = (rows[:, :plain] & 0x7F == 0x7F).any() or (turned & 0x7F80 == 0x7F80).any() or (scales == NAN).any()
    return not bad


def kinds(arrays: dict[str, np.ndarray]) -> dict[str, tuple]:
    """Shapes and types by name."""
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}
