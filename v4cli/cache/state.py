"""The compressed KV state of one timeline: what a V4 model remembers of the tokens it has seen (spec 3.5-3.8).

Per layer the last `sliding_window` latents, the compressed entries so far, the unfinished block's inputs (tail) and,
for ratio 4, the previous block's. Never the full history. Entries only grow, so going back is a truncation plus the
small parts, which a checkpoint holds. A layer is of the kind its op table works on: cache/layer.py (torch tensors) or
cache/packed.py (bytes for the kernels).
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Checkpoint:
    """Enough to return to `n_tokens` while the entries up to there are still held: the small parts of each layer."""

    n_tokens: int
    marks: tuple[dict[str, np.ndarray], ...]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All of it by name, `layers.N.` first."""
        return _joined(self.marks)

    @classmethod
    def of(cls, n_tokens: int, n_layers: int, arrays: dict[str, np.ndarray]) -> "Checkpoint":
        """From what `arrays` gave."""
        return cls(n_tokens, tuple(_split(arrays, n_layers)))


class State:
    """All layers of one timeline, at `n_tokens` tokens."""

    def __init__(self, attentions, packed: bool, most_tokens: int, folder: Path | None = None):
        """`attentions`: the attention node of each layer; `packed`: in the stored form that kernels read.

        `folder`: where packed entries live in a file instead of RAM. ResourceError without room.
        """
        self._kind = attentions, packed, most_tokens, folder
        self.n_tokens = 0
        if packed:
            from v4cli.cache.memory import Memory
            from v4cli.cache.packed import PackedLayer

            memory = Memory(folder)
            self.layers = [PackedLayer(attn, most_tokens, memory) for attn in attentions]
        else:
            from v4cli.cache.layer import Layer

            self.layers = [Layer(attn) for attn in attentions]

    def checkpoint(self, n_next: int | None = None) -> Checkpoint:
        """Remember this point. With `n_next` only until that many tokens have been fed, which may cost less."""
        return Checkpoint(self.n_tokens, tuple(layer.mark(self.n_tokens, n_next) for layer in self.layers))

    def restore(self, point: Checkpoint) -> None:
        """Go back to a checkpoint taken on this timeline, or to one whose entries have been `put`."""
        self.n_tokens = point.n_tokens
        for layer, mark in zip(self.layers, point.marks):
            layer.restore(mark, point.n_tokens)

    def entries(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Views of the compressed entries of tokens [first, last) by name; `first` a multiple of 128."""
        return _joined(layer.entries(first, last) for layer in self.layers)

    def reserve(self, n_tokens: int) -> None:
        """Room for the entries of n_tokens tokens at once. ResourceError without it."""
        for layer in self.layers:
            layer.reserve(n_tokens)

    def put(self, first: int, last: int, entries: dict[str, np.ndarray]) -> None:
        """Write what `entries(first, last)` gave elsewhere, behind n_tokens. ValueError if it does not fit."""
        for layer, own in zip(self.layers, _split(entries, len(self.layers))):
            layer.put(first, last, own)

    def finite(self, arrays: dict[str, np.ndarray]) -> bool:
        """Whether what `entries` or a checkpoint gave elsewhere is finite. ValueError for a name of no layer."""
        return all(layer.finite(own) for layer, own in zip(self.layers, _split(arrays, len(self.layers))))

    def fork(self) -> "State":
        """An independent copy of the whole state."""
        twin = State(*self._kind)
        twin.put(0, self.n_tokens, self.entries(0, self.n_tokens))
        twin.restore(self.checkpoint())
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes held: windows, entries (whole pages), tails."""
        return sum(layer.nbytes for layer in self.layers)


def _joined(layers) -> dict[str, np.ndarray]:
    """Arrays of all layers in one dict, `layers.N.` before their names."""
    return {f"layers.{i}.{name}": array for i, own in enumerate(layers) for name, array in own.items()}


def _split(arrays: dict[str, np.ndarray], n_layers: int) -> list[dict[str, np.ndarray]]:
    """What `_joined` joined. ValueError for a name of no layer."""
    layers: list[dict[str, np.ndarray]] = [{} for _ in range(n_layers)]
    for name, array in arrays.items():
        _, layer, own = name.split(".", 2)
        if not re.fullmatch("[0-9]{1,4}", layer) or int(layer) >= n_layers:
            raise ValueError(f"{name}: no such layer")
        layers[int(layer)][own] = array
    return layers
