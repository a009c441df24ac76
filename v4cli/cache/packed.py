"""One layer's state as the CPU kernels read it: packed entries (spec 4.1) in numpy arrays of bytes.

Entries lie one behind the other and grow; windows and tails are rings by position, written in place, so a mark copies
what is in use of them. One token leaves all that the state before it needs (v4k.h, v4k_compress): no copy then.
"""

import ctypes

import numpy as np
from v4kernels import native

OVERLAPPED = 4  # the ratio whose blocks overlap


class PackedEntries:
    """What one compressor keeps: tails (slots, C) fp32 by position, and room for entries."""

    def __init__(self, compressor):
        self.ratio = compressor.ratio
        overlap = self.ratio == OVERLAPPED
        width = compressor.head_dim * (2 if overlap else 1)
        self.slots = self.ratio * (2 if overlap else 1)
        self.tails = np.zeros((2, self.slots, width), np.float32)  # kv, gate
        dims, rope = compressor.head_dim, compressor.rope_dims
        if compressor.is_index:
            sizes = native.key_bytes(dims)
        else:
            sizes = native.entry_bytes(dims, rope), 0
        self.rows = [np.empty((0, size), np.uint8) for size in sizes]  # entries, scales of index keys
        self.native = native.Compressed()
        self._describe()

    def _describe(self) -> None:
        pointers = (self.tails[0], self.tails[1], *self.rows)
        for (name, _), array in zip(native.Compressed._fields_, pointers):
            setattr(self.native, name, array.ctypes.data if array.size else None)
        self.at = ctypes.addressof(self.native)

    def reserve(self, n_tokens: int) -> None:
        """Room for the entries of the first n_tokens tokens."""
        need, have = n_tokens // self.ratio, len(self.rows[0])
        if need > have:
            self._resize(max(need, have * 3 // 2 + 8), have)

    def _resize(self, room: int, keep: int) -> None:
        grown = [np.empty((room, rows.shape[1]), np.uint8) for rows in self.rows]
        for new, old in zip(grown, self.rows):
            new[:keep] = old[:keep]
        self.rows = grown
        self._describe()

    def tail(self, n_tokens: int) -> np.ndarray:
        """A copy of the tails in use at n_tokens."""
        return self.tails.copy() if self.ratio == OVERLAPPED else self.tails[:, : n_tokens % self.ratio].copy()

    def put_back(self, tail: np.ndarray) -> None:
        self.tails[:, : tail.shape[1]] = tail

    def fork(self, n_tokens: int) -> "PackedEntries":
        twin = object.__new__(PackedEntries)
        twin.ratio, twin.slots, twin.tails = self.ratio, self.slots, self.tails.copy()
        twin.rows, twin.native = self.rows, native.Compressed()
        twin._resize(n_tokens // self.ratio, n_tokens // self.ratio)
        return twin

    @property
    def nbytes(self) -> int:
        return self.tails.nbytes + sum(rows.nbytes for rows in self.rows)


class PackedLayer:
    """Window ring (window, entry bytes), compressed entries (ratio > 0), index keys (ratio 4)."""

    def __init__(self, attn):
        """For one attention node of the weight tree."""
        self.ring = np.zeros((attn.window, native.entry_bytes(attn.head_dim, attn.rope_dims)), np.uint8)
        self.main = PackedEntries(attn.compressor) if attn.compressor is not None else None
        self.index = PackedEntries(attn.indexer.compressor) if attn.indexer is not None else None
        self._describe()

    def _describe(self) -> None:
        self.parts = [part for part in (self.main, self.index) if part is not None]
        self.native = native.Memory(self.ring.ctypes.data, self.main and self.main.at, self.index and self.index.at)
        self.at = ctypes.addressof(self.native)

    def reserve(self, n_tokens: int) -> None:
        """Room for the entries of the first n_tokens tokens."""
        for part in self.parts:
            part.reserve(n_tokens)

    def mark(self, n_tokens: int, n_next: int | None):
        """Copies of window and tails; None where the next token spares them."""
        if n_next == 1:
            return None
        return self.ring[: min(n_tokens, len(self.ring))].copy(), [part.tail(n_tokens) for part in self.parts]

    def restore(self, mark) -> None:
        if mark is None:
            return
        self.ring[: len(mark[0])] = mark[0]
        for part, tail in zip(self.parts, mark[1]):
            part.put_back(tail)

    def fork(self, n_tokens: int) -> "PackedLayer":
        twin = object.__new__(PackedLayer)
        twin.ring = self.ring.copy()
        twin.main, twin.index = (part.fork(n_tokens) if part else None for part in (self.main, self.index))
        twin._describe()
        return twin

    @property
    def nbytes(self) -> int:
        return self.ring.nbytes + sum(part.nbytes for part in self.parts)
