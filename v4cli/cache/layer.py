"""One layer's state in torch tensors, as the reference ops keep it.

The fixed-size parts are replaced, not written in place, so a mark of them is a handful of references.
"""

from copy import copy
from dataclasses import dataclass, field, replace

from torch import Tensor


class Entries:
    """Growing array of compressed entries (n, dim)."""

    def __init__(self):
        self._buffer: Tensor | None = None
        self.n = 0

    def append(self, rows: Tensor) -> None:
        """Add rows (m, dim)."""
        if not rows.shape[0]:
            return
        end = self.n + rows.shape[0]
        if self._buffer is None:
            self._buffer = rows
        elif end > self._buffer.shape[0]:
            grown = rows.new_empty((max(end, self.n * 3 // 2 + 8), rows.shape[1]))
            grown[: self.n] = self._buffer[: self.n]
            grown[self.n : end] = rows
            self._buffer = grown
        else:
            self._buffer[self.n : end] = rows
        self.n = end

    def view(self) -> Tensor | None:
        """The entries as (n, dim), None while there are none."""
        return self._buffer[: self.n] if self.n else None

    def truncate(self, n: int) -> None:
        """Forget all but the first n entries."""
        self.n = n

    def clone(self) -> "Entries":
        """An independent copy: later appends to one never show in the other."""
        twin = Entries()
        if self.n:
            twin.append(self._buffer[: self.n].clone())
        return twin

    @property
    def nbytes(self) -> int:
        return 0 if self._buffer is None else self._buffer.nbytes


@dataclass
class Pending:
    """Compressor inputs that are still needed. Tensors are fp32 and never written in place."""

    kv: Tensor | None = None  # (m, C) tokens of the unfinished block, m < ratio
    gate: Tensor | None = None  # (m, C)
    previous_kv: Tensor | None = None  # (ratio, C/2) last whole block, overlap compressors only
    previous_gate: Tensor | None = None

    @property
    def nbytes(self) -> int:
        parts = (self.kv, self.gate, self.previous_kv, self.previous_gate)
        return sum(p.nbytes for p in parts if p is not None)


@dataclass
class CompressedKV:
    """Entries of one compressor and what the next entry will need."""

    entries: Entries = field(default_factory=Entries)
    pending: Pending = field(default_factory=Pending)

    def clone(self) -> "CompressedKV":
        return CompressedKV(self.entries.clone(), replace(self.pending))


class Layer:
    """Window latents (<= sliding_window, d), compressed KV (ratio > 0), index keys (ratio 4)."""

    def __init__(self, attn):
        """For one attention node of the weight tree."""
        self.window: Tensor | None = None
        self.main = CompressedKV() if attn.compressor is not None else None
        self.index = CompressedKV() if attn.indexer is not None else None

    def _parts(self) -> list[CompressedKV]:
        return [part for part in (self.main, self.index) if part is not None]

    def mark(self, n_tokens: int, n_next: int | None):
        """The fixed-size parts; costs references only."""
        return self.window, tuple((replace(part.pending), part.entries.n) for part in self._parts())

    def restore(self, mark) -> None:
        self.window = mark[0]
        for part, (pending, count) in zip(self._parts(), mark[1]):
            part.pending = replace(pending)
            part.entries.truncate(count)

    def fork(self, n_tokens: int) -> "Layer":
        twin = copy(self)
        twin.main, twin.index = (part.clone() if part else None for part in (self.main, self.index))
        return twin

    @property
    def nbytes(self) -> int:
        window = 0 if self.window is None else self.window.nbytes
        return window + sum(part.entries.nbytes + part.pending.nbytes for part in self._parts())
