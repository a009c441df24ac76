"""The compressed KV state of one timeline: what a V4 model remembers of the tokens it has seen (spec 3.5-3.8).

Per layer the last `sliding_window` latents, the compressed entries so far, the unfinished block's inputs (tail) and,
for ratio 4, the previous block's. Never the full history. Entries only grow, so going back is a truncation plus the
small parts, which a checkpoint holds. A layer is of the kind its op table works on: cache/layer.py (torch tensors) or
cache/packed.py (bytes for the kernels).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Checkpoint:
    """Enough to return to `n_tokens` while the entries up to there are still held."""

    n_tokens: int
    marks: tuple


class State:
    """All layers of one timeline, at `n_tokens` tokens."""

    def __init__(self, attentions, packed: bool):
        """`attentions`: the attention node of each layer; `packed`: in the stored form that kernels read."""
        if packed:
            from v4cli.cache.packed import PackedLayer as Layer
        else:
            from v4cli.cache.layer import Layer
        self.n_tokens = 0
        self.layers = [Layer(attn) for attn in attentions]

    def checkpoint(self, n_next: int | None = None) -> Checkpoint:
        """Remember this point. With `n_next` only until that many tokens have been fed, which may cost less."""
        return Checkpoint(self.n_tokens, tuple(layer.mark(self.n_tokens, n_next) for layer in self.layers))

    def restore(self, point: Checkpoint) -> None:
        """Go back to a checkpoint taken earlier on this timeline."""
        self.n_tokens = point.n_tokens
        for layer, mark in zip(self.layers, point.marks):
            layer.restore(mark)

    def fork(self) -> "State":
        """An independent copy of the whole state."""
        twin = State((), False)
        twin.n_tokens = self.n_tokens
        twin.layers = [layer.fork(self.n_tokens) for layer in self.layers]
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes held: windows, entries (allocated), tails."""
        return sum(layer.nbytes for layer in self.layers)
