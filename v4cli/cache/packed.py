"""One layer's state as the CPU kernels read it: packed entries (spec 4.1) in numpy arrays of bytes.

Entries lie one behind the other in memory that grows (cache/memory.py); windows and tails are rings by position,
written in place, so a mark copies what is in use of them. One token leaves all that the state before it needs (v4k.h,
v4k_compress): no copy then.
"""

import ctypes

import numpy as np
from v4kernels import native

from v4cli.cache.memory import Memory

OVERLAPPED = 4  # the ratio whose blocks overlap
NAN = 0xFF  # as a scale


class PackedEntries:
    """What one compressor keeps: tails (slots, C) fp32 by position, and entries."""

    def __init__(self, compressor, most_tokens: int, memory: Memory):
        self.ratio = compressor.ratio
        overlap = self.ratio == OVERLAPPED
        width = compressor.head_dim * (2 if overlap else 1)
        self.slots = self.ratio * (2 if overlap else 1)
        self.tails = np.zeros((2, self.slots, width), np.float32)  # kv, gate
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
        self.native.on_disk = memory.file is not None
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
        """The tails in use at n_tokens, (2, slots in use, C), as a view."""
        return self.tails if self.ratio == OVERLAPPED else self.tails[:, : n_tokens % self.ratio]

    @property
    def nbytes(self) -> int:
        return self.tails.nbytes + sum(rows.nbytes for rows in self.rows.values())


class PackedLayer:
    """Window ring (window, entry bytes), compressed entries (ratio > 0), index keys (ratio 4)."""

    def __init__(self, attn, most_tokens: int, memory: Memory):
        """For one attention node of the weight tree."""
        self.ring = np.zeros((attn.window, native.entry_bytes(attn.head_dim, attn.rope_dims)), np.uint8)
        self.dims = attn.head_dim, attn.rope_dims
        self.main = self.index = None
        if attn.compressor is not None:
            self.main = PackedEntries(attn.compressor, most_tokens, memory)
        if attn.indexer is not None:
            self.index = PackedEntries(attn.indexer.compressor, most_tokens, memory)
        self.parts = {name: part for name, part in (("main", self.main), ("index", self.index)) if part is not None}
        self.native = native.Memory(self.ring.ctypes.data, self.main and self.main.at, self.index and self.index.at)
        self.at = ctypes.addressof(self.native)

    def _small(self, n_tokens: int) -> dict[str, np.ndarray]:
        """Views of what is in use of windows and tails."""
        window = {"window": self.ring[: min(n_tokens, len(self.ring))]}
        return window | {f"{name}.tail": part.tail(n_tokens) for name, part in self.parts.items()}

    def mark(self, n_tokens: int, n_next: int | None) -> dict[str, np.ndarray] | None:
        """Copies of windows and tails by name; None where the next token spares them."""
        return None if n_next == 1 else {name: array.copy() for name, array in self._small(n_tokens).items()}

    def restore(self, mark: dict[str, np.ndarray] | None, n_tokens: int) -> None:
        """Be at n_tokens again. ValueError if the mark is not of such a layer and place."""
        for part in self.parts.values():
            part.trim(n_tokens)
        if mark is not None:
            _copy(mark, self._small(n_tokens))

    def reserve(self, n_tokens: int) -> None:
        """Room for the entries of the first n_tokens tokens."""
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
        _copy(entries, self.entries(first, last))

    def finite(self, arrays: dict[str, np.ndarray]) -> bool:
        """Whether what `entries` or `mark` gave elsewhere is finite."""
        ok = True
        for name, array in arrays.items():
            if name in ("window", "main.entries"):
                ok &= _finite_entries(array, *self.dims)
            elif name == "index.scales":
                ok &= bool((array != NAN).all())
            elif name.endswith(".tail"):
                ok &= bool(np.isfinite(array).all())
        return ok

    @property
    def nbytes(self) -> int:
        return self.ring.nbytes + sum(part.nbytes for part in self.parts.values())


def _finite_entries(rows: np.ndarray, dims: int, rope_dims: int) -> bool:
    """Whether no e4m3 code, bf16 value or scale of these KV entries (v4k.h) is not finite."""
    plain = dims - rope_dims
    scales_at = plain + 2 * rope_dims
    turned = np.ascontiguousarray(rows[:, plain:scales_at]).view(np.uint16)
    scales = rows[:, scales_at : scales_at + -(-plain // 64)]
    bad = (rows[:, :plain] & 0x7F == 0x7F).any() or (turned & 0x7F80 == 0x7F80).any() or (scales == NAN).any()
    return not bad


def _copy(source: dict[str, np.ndarray], to: dict[str, np.ndarray]) -> None:
    """Array by array, of equal names, shapes and dtypes."""
    kinds = [{name: (array.shape, array.dtype) for name, array in arrays.items()} for arrays in (source, to)]
    if kinds[0] != kinds[1]:
        raise ValueError("arrays of another shape")
    for name, array in to.items():
        array[...] = source[name]
