"""The compressed KV state of one timeline: what a V4 model remembers of the tokens it has seen (spec 3.5-3.8).

Per layer the last `sliding_window` latents, the compressed entries so far, the unfinished block's inputs (tail) and,
for ratio 4, the previous block's. Never the full history. Entries only grow, so going back is a truncation plus the
small parts, which a checkpoint holds. What a layer's state is made of is its backend's affair (v4kernels/api.py).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic

import numpy as np
from v4kernels.api import LayerState, S
from v4kernels.tree import OVERLAPPED

from v4cli.errors import ResourceError, UsageError


@dataclass(frozen=True)
class Checkpoint:
    """Enough to return to `n_tokens` while the entries up to there are still held: the small parts of each layer."""

    n_tokens: int
    marks: tuple[dict[str, np.ndarray], ...]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for mark in self.marks for array in mark.values())

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All of it by name, `layers.N.` first."""
        return _joined(self.marks)

    @classmethod
    def of(cls, n_tokens: int, n_layers: int, arrays: dict[str, np.ndarray]) -> "Checkpoint":
        """From what `arrays` gave."""
        return cls(n_tokens, tuple(_split(arrays, n_layers)))


class State(Generic[S]):
    """All layers of one timeline, at `n_tokens` tokens."""

    def __init__(self, new: Callable[[], S]):
        """`new` gives a backend's empty timeline (v4kernels/api.py). ResourceError without room, UsageError."""
        self._new = new
        with _in_words():
            self.timeline = new()
        self.n_tokens = 0
        self._room = 0  # blocks of the lowest ratio whose entries have room
        self._floor = self._high = 0  # what lies before the first is not whole, nothing was written behind the second

    @property
    def layers(self) -> Sequence[LayerState]:
        return self.timeline.layers

    def begin(self, n_next: int) -> None:
        """So many tokens are about to be fed: there is room for them from now on. ResourceError without it."""
        self.reserve(self.n_tokens + n_next)
        self._high = max(self._high, self.n_tokens + n_next)

    def can_return(self, n_next: int) -> bool:
        """Whether `back` will lead here after n_next more tokens."""
        return max(self._high, self.n_tokens + n_next) - self.n_tokens <= self.timeline.spare

    def back(self, n_tokens: int) -> bool:
        """Go back to n_tokens if `can_go_back`; whether it does."""
        if not self.can_go_back(n_tokens):
            return False
        self.n_tokens = n_tokens
        return True

    def again(self, n_tokens: int) -> None:
        """Be where `back` came from, or on the way there: nothing has been fed since."""
        assert self.n_tokens <= n_tokens <= self._high, "what was fed there is not whole"
        self.n_tokens = n_tokens

    def can_go_back(self, n_tokens: int) -> bool:
        """Whether n_tokens can be reached without a copy: over as many tokens as the backend has spare rows for."""
        return self._floor <= n_tokens <= self.n_tokens and self._high - n_tokens <= self.timeline.spare

    def checkpoint(self) -> Checkpoint:
        """Remember this point."""
        return Checkpoint(self.n_tokens, tuple(layer.mark(self.n_tokens) for layer in self.layers))

    def restore(self, point: Checkpoint) -> None:
        """Go back to a checkpoint taken on this timeline, or to one whose entries have been `put`."""
        self._room = min(self._room, point.n_tokens // OVERLAPPED)  # what lies behind is given back
        for layer, mark in zip(self.layers, point.marks):
            layer.restore(mark, point.n_tokens)
        self.n_tokens = self._floor = self._high = point.n_tokens

    def entries(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Views of the compressed entries of tokens [first, last) by name; `first` a multiple of 128."""
        return _joined(layer.entries(first, last) for layer in self.layers)

    def reserve(self, n_tokens: int) -> None:
        """Room for the entries of n_tokens tokens at once. ResourceError without it."""
        if n_tokens // OVERLAPPED <= self._room:
            return  # no layer has an entry more
        with _in_words():
            for layer in self.layers:
                layer.reserve(n_tokens)
        self._room = n_tokens // OVERLAPPED

    def put(self, first: int, last: int, entries: dict[str, np.ndarray]) -> None:
        """Write what `entries(first, last)` gave elsewhere, behind n_tokens. ValueError if it does not fit."""
        self.reserve(last)
        for layer, own in zip(self.layers, _split(entries, len(self.layers))):
            layer.put(first, last, own)

    def finite(self, arrays: dict[str, np.ndarray]) -> bool:
        """Whether what `entries` or a checkpoint gave elsewhere is finite. ValueError for a name of no layer."""
        return all(layer.finite(own) for layer, own in zip(self.layers, _split(arrays, len(self.layers))))

    def fork(self) -> "State[S]":
        """An independent copy of the whole state."""
        twin = State(self._new)
        twin.put(0, self.n_tokens, self.entries(0, self.n_tokens))
        twin.restore(self.checkpoint())
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes held: windows, entries (whole pages), tails."""
        return sum(layer.nbytes for layer in self.layers)


@contextmanager
def _in_words() -> Iterator[None]:
    """A backend knows no errors of ours."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(
            str(error), "a shorter context; --kv-dir with a folder on a disk with more room, or with a GPU --kv-host"
        ) from None
    except ValueError as error:
        raise UsageError(str(error), "drop --kv-dir or --backend") from None


def _joined(layers: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
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
