"""Traces of routing: which experts the tokens of a decode used. Recorded from a model, or made with known statistics.

A trace file is .npz: `experts` uint16 (tokens, layers, top_k), `n_experts` of a layer, and where the router told,
`scores` float16 (tokens, layers, n_experts); NaN in layers where they do not decide (hash layers).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from v4cli.errors import UsageError


@dataclass(frozen=True)
class Trace:
    """experts (T, L, k) uint16, each in 0 .. n_experts - 1; scores (T, L, n_experts) float16."""

    experts: np.ndarray
    n_experts: int
    scores: np.ndarray

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, experts=self.experts, n_experts=self.n_experts, scores=self.scores)

    @classmethod
    def load(cls, path: Path) -> "Trace":
        """UsageError names the file if it is not a trace."""
        try:
            with np.load(path) as data:
                trace = cls(data["experts"], int(data["n_experts"]), data["scores"])
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise UsageError(f"{path}: not a trace ({error})") from None
        shape = trace.experts.shape
        if trace.experts.dtype != np.uint16 or len(shape) != 3 or 0 in shape or trace.experts.max() >= trace.n_experts:
            raise UsageError(f"{path}: not a trace (experts of unexpected shape, type or number)")
        if trace.scores.dtype != np.float16 or trace.scores.shape != (*shape[:2], trace.n_experts):
            raise UsageError(f"{path}: not a trace (scores of unexpected shape or type)")
        return trace

    @property
    def total(self) -> int:
        """Experts of all layers."""
        return self.experts.shape[1] * self.n_experts

    def requests(self) -> np.ndarray:
        """(T, L * k) int64: the experts asked for, numbered over all layers, in the order of the forward pass."""
        _, layers, _ = self.experts.shape
        numbered = np.sort(self.experts, axis=2) + np.arange(layers)[:, None] * self.n_experts
        return numbered.reshape(len(numbered), -1)


class Recorder:
    """A bank that notes what the routers of a model on the cpu backend choose for every decoded token, from now on."""

    repeatable = False

    def __init__(self, model):
        self.config, self._model, self._bank = model.config, model, model.bank
        self._noted: list[tuple[np.ndarray, np.ndarray]] = []  # experts and scores
        self.begin_step, self.foresee, self.end_step = self._bank.begin_step, self._bank.foresee, self._bank.end_step
        self.doubt = self._bank.doubt
        model.bank = self

    def begin(self, layer, x, routing, streams):
        if x.rows == 1:
            hashed = layer < self.config.num_hash_layers
            scores = np.full(self.config.n_routed_experts, np.nan) if hashed else routing.scores.array()[0]
            self._noted.append((routing.chosen.array()[0].astype(np.uint16), scores.astype(np.float16)))
        return self._bank.begin(layer, x, routing, streams)

    def stop(self) -> Trace:
        """The trace so far. UsageError if nothing was decoded."""
        self._model.bank = self._bank
        layers = self.config.num_hidden_layers
        n_tokens = len(self._noted) // layers
        if not n_tokens:
            raise UsageError("nothing was decoded: there is no trace")
        noted = zip(*self._noted[: n_tokens * layers])
        experts, scores = (np.stack(each).reshape(n_tokens, layers, -1) for each in noted)
        return Trace(experts, self.config.n_routed_experts, scores)


# Kinds of synthetic traces of Flash's shape. `popular`: some experts are used more than others, for good; like a
# published trace in which 6.4 % of the experts, chosen by hindsight, serve 46 % of the requests. `topics`: which ones
# changes. `repeats`: besides, tokens use again what the token before did.
KINDS = {
    "popular": {"skew": 0.92},
    "topics": {"skew": 1.1, "topics": 8, "topic_tokens": 200},
    "repeats": {"skew": 0.9, "topics": 8, "topic_tokens": 200, "persistence": 0.4},
}

SURE = 30.0  # a score above all that are drawn


def synthetic(
    n_tokens: int,
    n_layers: int = 43,
    n_experts: int = 256,
    top_k: int = 6,
    skew: float = 1.0,
    topics: int = 1,
    topic_tokens: int = 256,
    persistence: float = 0.0,
    seed: int = 0,
) -> Trace:
    """A trace of experts drawn without replacement by popularity, rank^-skew in an order of each layer's own: the
    highest of scores that are the logarithm of popularity and Gumbel noise, drawn for every token.

    `topics`: as many such popularities, one of them at a time, for `topic_tokens` tokens on average. `persistence`:
    share of choices that repeat the token before, as far as its experts go.
    """
    rng = np.random.default_rng(seed)
    popularity = -skew * np.log(np.arange(1, n_experts + 1))
    logits = np.stack([[rng.permutation(popularity) for _ in range(n_layers)] for _ in range(topics)])
    experts = np.empty((n_tokens, n_layers, top_k), np.uint16)
    scores = np.empty((n_tokens, n_layers, n_experts), np.float16)
    topic = 0
    for t in range(n_tokens):
        if rng.random() < 1 / topic_tokens:
            topic = rng.integers(topics)
        score = logits[topic] + rng.gumbel(size=(n_layers, n_experts))
        if t and persistence:
            again = rng.random((n_layers, top_k)) < persistence
            rows, cols = np.nonzero(again)
            score[rows, experts[t - 1][rows, cols]] = SURE
        experts[t] = np.argpartition(score, -top_k, axis=1)[:, -top_k:]
        scores[t] = score
    return Trace(experts, n_experts, scores)
