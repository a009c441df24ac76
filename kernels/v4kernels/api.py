"""The contract between the forward pass (v4cli/model/v4.py) and whatever computes it.

A backend binds a tree of weights (tree.py) and gives an op table over it; several may be bound to one tree. Every
backend has these ops with these meanings, `reference` is the oracle for the others. What is not said here is a
backend's own affair: array types, the layout of what it remembers, where weights lie.

Sizes: N rows of a step (tokens of one or several timelines), D hidden_size, S hc_mult streams, E routed experts.

Lifetime: the result of an op is valid until the same op of the same table is called again, unless it says otherwise;
who needs it longer copies it. `streams` may be updated in place by sublayer_output. A table serves one thread at a
time.

Numerics: a row's result does not depend on the other rows of the step, nor on how a timeline is cut into steps; for
`exact` and `official` numerics (torch) up to rounding, for `int8` (cpu) to the bit.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from v4kernels.tree import Attention, M, Tree, V

A = TypeVar("A")  # activations: an array of the backend
X = TypeVar("X")  # what of a sublayer's input its output needs
S = TypeVar("S", bound="TimelineState")
B = TypeVar("B", bound="Batch")
B_contra = TypeVar("B_contra", bound="Batch", contravariant=True)


class DeviceError(RuntimeError):
    """A device that is not there, that cannot run something, or that failed: in one line. Whatever runs on one may
    raise it."""


class LayerState(Protocol):
    """What one layer remembers of one timeline (spec 3.5-3.8): the last `window` latents, compressed entries and index
    keys so far, and the inputs of unfinished blocks. Arrays are named; entries only grow."""

    def mark(self, n_tokens: int) -> dict[str, np.ndarray]:
        """Everything but the entries, as it is at n_tokens, for `restore`; independent of what comes."""

    def restore(self, mark: dict[str, np.ndarray], n_tokens: int) -> None:
        """Be at n_tokens again, whose entries are still held. ValueError for a mark of another layer or place."""

    def reserve(self, n_tokens: int) -> None:
        """Room for the entries of the first n_tokens tokens. MemoryError without it."""

    def entries(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Views of the entries of tokens [first, last), whole blocks of every ratio."""

    def put(self, first: int, last: int, entries: dict[str, np.ndarray]) -> None:
        """Write what `entries(first, last)` gave elsewhere. ValueError if it does not fit, MemoryError without room."""

    def finite(self, arrays: dict[str, np.ndarray]) -> bool:
        """Whether what `entries` or `mark` gave elsewhere is finite."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""


class TimelineState(Protocol):
    """What a backend remembers of one timeline."""

    @property
    def layers(self) -> Sequence[LayerState]: ...

    @property
    def spare(self) -> int:
        """How many of the rows fed last can be taken back without a mark: the next span just names an earlier start."""


@dataclass(frozen=True, slots=True)
class Span(Generic[S]):
    """Consecutive new tokens of one timeline: `state` remembers the `start` tokens before them. The last `together` of
    them, of a draft model, see each other, those behind them too, beside the window before the first of them."""

    ids: Sequence[int]
    state: S
    start: int
    together: int = 0


class Batch(Protocol):
    """The rows of one step, span after span. Valid until the next batch of the same table."""

    @property
    def rows(self) -> int:
        """N."""


@dataclass(frozen=True, slots=True)
class Routing(Generic[A]):
    """Who computes each row: experts (N, top_k) int64, their weights (N, top_k) fp32, and the scores (N, E) fp32 that
    the choice went by, the bias included (in hash layers no choice is made)."""

    chosen: A
    weights: A
    scores: A


class Pending(Protocol[A]):
    """Routed experts on their way."""

    def add_to(self, out: A) -> A:
        """out (N, D) with the rows' experts added in ascending order; `out` may be changed. Once only."""


class Bank(Protocol[A, B_contra]):
    """Who holds the routed experts: in memory, or elsewhere for as long as nothing needs them. A step is begin_step,
    for each layer foresee and begin, end_step; one that is not ended has failed."""

    @property
    def repeatable(self) -> bool:
        """Whether foresee and begin do the same in every step of so many rows, and nothing on the host: what they
        start may be recorded once (Ops.step)."""

    def doubt(self, rows: Sequence[int]) -> Callable[[int], None]:
        """Between steps: these rows of the next step are guesses. What they use is not learned from, until the function
        that is given is called with one of them, between later steps."""

    def begin_step(self, batch: B_contra) -> None:
        """A step begins; what its tokens will surely need may be fetched."""

    def foresee(self, layer: int, streams: A) -> None:
        """streams (N, S, D) before the layer: what it will probably need may be fetched. Changes no result."""

    def begin(self, layer: int, x: A, routing: Routing[A], streams: A) -> Pending[A]:
        """Start what `routing` of x (N, D) asks for; x and routing stay untouched until it is added."""

    def end_step(self, rows: int) -> None:
        """All layers are served."""


class Ops(Protocol[A, X, S, B]):
    """The op table over one tree of weights. Layers are named by number."""

    name: str
    numerics: str

    @property
    def chunk(self) -> int:
        """Rows that a step of a prefill should bring at most."""

    @property
    def most_drafts(self) -> int:
        """How many guessed tokens a step may bring behind a token of a timeline that is known. Not to the bit does any
        row depend on those behind it, and all of them can be taken back (TimelineState.spare). 0: that is not so."""

    def inference(self) -> AbstractContextManager:
        """What to run a forward in when no gradient is wanted."""

    def new_state(self, most_tokens: int, folder: Path | None = None) -> S:
        """An empty timeline of up to most_tokens tokens, its entries in RAM or in a file in `folder`. MemoryError
        without room, ValueError if the backend cannot use a folder."""

    def batch(self, spans: Sequence[Span[S]]) -> B:
        """The rows of a step, prepared for the other ops. The states of the spans must have room (`reserve`)."""

    def step(self, batch: B, walk: Callable[[], A], repeatable: bool) -> A:
        """What `walk` makes of the batch by the other ops, from embed to final_hidden. If it does the same in every
        step of so many rows, `repeatable`, a backend may record it once and play that again instead."""

    def embed(self, batch: B) -> A:
        """Streams (N, S, D), all alike."""

    def attention_input(self, layer: int, streams: A) -> tuple[A, X]:
        """Normed input (N, D) of a sublayer, collapsed from the streams, and the mix for sublayer_output."""

    def ffn_input(self, layer: int, streams: A) -> tuple[A, X]:
        """The same for the other sublayer."""

    def sublayer_output(self, out: A, streams: A, mix: X) -> A:
        """A sublayer's result (N, D) goes back into the streams (N, S, D)."""

    def window_attention(self, layer: int, x: A, batch: B) -> A:
        """x (N, D) -> (N, D): each row attends to the last `window` tokens of its timeline, itself included, and to the
        sink; its own latent joins the window."""

    def csa_attention(self, layer: int, x: A, batch: B) -> A:
        """The same, and to the top_k entries that the indexer scores highest of those its timeline has so far (an entry
        for each 4 tokens). New entries and index keys are made."""

    def hca_attention(self, layer: int, x: A, batch: B) -> A:
        """The same, and to all entries (one for each 128 tokens)."""

    def route_by_token(self, layer: int, x: A, batch: B) -> Routing[A]:
        """Experts by token id (hash layers), weights by score."""

    def route_by_score(self, layer: int, x: A) -> Routing[A]:
        """The top_k experts by score and bias; weights by score alone."""

    def shared_expert(self, layer: int, x: A) -> A:
        """x (N, D) -> (N, D)."""

    def final_hidden(self, streams: A) -> A:
        """streams (N, S, D) -> hidden (N, D), normed for the head."""

    def finite(self, x: A) -> bool:
        """Whether every value of streams or hidden states is finite."""

    def rows(self, hidden: A, rows: Sequence[int]) -> A:
        """Some rows of hidden (N, D)."""

    def logits(self, hidden: A) -> A:
        """hidden (M, D) -> (M, vocab_size) fp32, new memory that stays valid."""

    def resident(self) -> Bank[A, B]:
        """The bank of the experts that are in the tree."""


class DraftOps(Ops[A, X, S, B], Protocol):
    """The op table over the blocks of a draft model (spec 3.11), whose spans may have tokens `together`."""

    def main_input(self, features: np.ndarray) -> A:
        """Of DSpark: means of streams of the targets (m, targets * D) fp32 -> (m, D), normed."""

    def mtp_streams(self, features: np.ndarray, batch: B) -> A:
        """Of MTP: the trunk's last streams (N, S * D) fp32 and the tokens that follow them -> streams (N, S, D)."""

    def joined(self, first: A, second: A) -> A:
        """Rows one behind the other."""

    def last(self, x: A, n: int) -> A:
        """The last n rows, as long as x is valid; sublayer_output of these may change x."""

    def markov(self, token: int) -> np.ndarray:
        """Of DSpark: (vocab_size,) fp32, to be added to the logits of what follows a token."""

    def collapsed(self, streams: A) -> np.ndarray:
        """streams (N, S, D) -> (N, D) fp32: final_hidden before its norm."""

    def confidence(self, collapsed: np.ndarray, token: int) -> float:
        """Of DSpark: the raw logit that a guess by a row (D,), after a token, is right."""


class Backend(Protocol[M, V]):
    """Makes op tables."""

    name: str
    numerics: str

    def new_state(self, attentions: Sequence[Attention], most_tokens: int) -> "TimelineState":
        """As Ops.new_state, for attentions that need not have weights."""

    @property
    def bind(self) -> Callable[[Tree[M, V]], Ops]:
        """The op table over a tree. ValueError for sizes it does not take."""
