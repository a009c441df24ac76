"""The compressed KV state of one timeline: what a V4 model remembers of the tokens it has seen (spec 3.5-3.8).

Per layer: the last `sliding_window` latents, the compressed entries so far, the unfinished block's fp32 inputs
(tail) and, for ratio 4, the previous block's (overlap). Never the full history. The fixed-size parts are
replaced, not written in place, so a checkpoint of them is a handful of references; entries only grow, so going
back is a truncation. Knows tensors and counts, not configs or tokens.
"""

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


@dataclass
class LayerState:
    """One layer: window latents (<= sliding_window, d), compressed KV (ratio > 0), index keys (ratio 4)."""

    window: Tensor | None = None
    main: CompressedKV | None = None
    index: CompressedKV | None = None

    def parts(self) -> list[CompressedKV]:
        return [part for part in (self.main, self.index) if part is not None]


@dataclass(frozen=True)
class Checkpoint:
    """Enough to return to `n_tokens` while the entries up to there are still held."""

    n_tokens: int
    windows: tuple
    pendings: tuple
    counts: tuple


class State:
    """All layers of one timeline, at `n_tokens` tokens."""

    def __init__(self, ratios):
        """`ratios`: compression ratio (0, 4 or 128) of each layer."""
        self.n_tokens = 0
        self.layers = [
            LayerState(main=CompressedKV() if r else None, index=CompressedKV() if r == 4 else None) for r in ratios
        ]

    def _parts(self) -> list[CompressedKV]:
        return [part for layer in self.layers for part in layer.parts()]

    def checkpoint(self) -> Checkpoint:
        """Remember this point; costs references only."""
        return Checkpoint(
            self.n_tokens,
            tuple(layer.window for layer in self.layers),
            tuple(replace(part.pending) for part in self._parts()),
            tuple(part.entries.n for part in self._parts()),
        )

    def restore(self, point: Checkpoint) -> None:
        """Go back to a checkpoint taken earlier on this timeline."""
        self.n_tokens = point.n_tokens
        for layer, window in zip(self.layers, point.windows):
            layer.window = window
        for part, pending, count in zip(self._parts(), point.pendings, point.counts):
            part.pending = replace(pending)
            part.entries.truncate(count)

    def fork(self) -> "State":
        """An independent copy of the whole state."""
        twin = State(())
        twin.n_tokens = self.n_tokens
        twin.layers = [
            LayerState(
                layer.window,
                layer.main.clone() if layer.main else None,
                layer.index.clone() if layer.index else None,
            )
            for layer in self.layers
        ]
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes held: windows, entries (allocated), tails."""
        windows = sum(layer.window.nbytes for layer in self.layers if layer.window is not None)
        return windows + sum(part.entries.nbytes + part.pending.nbytes for part in self._parts())
