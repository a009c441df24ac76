"""The draft models that come with a V4 model, in execution order (spec 3.11): DSpark of 0731 and 0813, MTP of April.

They look at what the trunk's layers gave for the tokens so far, and remember a window of it. What they say is a guess:
nothing depends on it but speed.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic

import numpy as np
from v4kernels.api import A, B, DraftOps, S, Span, X
from v4kernels.tree import Dspark, Mtp

Pick = Callable[[np.ndarray, int], int]  # of logits (vocab,) and the number of the guess: a token


class DraftModel(Generic[A, X, S, B]):
    """Draft blocks over an op table."""

    def __init__(self, weights: Dspark | Mtp, ops: DraftOps[A, X, S, B], last_layer: int):
        """`last_layer` of the trunk, by number."""
        self.weights, self.ops, self.bank = weights, ops, ops.resident()
        layers = weights.targets if isinstance(weights, Dspark) else (last_layer,)
        self.watched = tuple(f"layers.{layer}.ffn" for layer in layers)
        self.window = weights.tree.layers[0].attn.window

    @property
    def most(self) -> int:
        """Tokens that are guessed at a time."""
        return self.weights.size if isinstance(self.weights, Dspark) else 1

    def noted(self, streams: Any) -> np.ndarray:
        """What is kept of the trunk's streams (N, S, D) after a watched sublayer: (N, F) fp32 on the host."""
        flat = streams.array() if hasattr(streams, "array") else streams.float().flatten(1).numpy()
        if isinstance(self.weights, Mtp):
            return flat.astype(np.float32)  # a copy
        return flat.reshape(len(flat), self.weights.tree.hc_head.streams, -1).mean(axis=1)

    @property
    def timeline_bytes(self) -> int:
        """RAM of what waits for one timeline, at most, and of what it remembers."""
        weights, (dim,) = self.weights, self.weights.tree.hc_head.norm.shape
        features = dim * (len(weights.targets) if isinstance(weights, Dspark) else weights.tree.hc_head.streams)
        return 4 * self.window * features + sum(layer.nbytes for layer in self.new_timeline().layers)

    def new_timeline(self) -> S:
        """What one timeline remembers."""
        return self.ops.new_state(1 << 20)

    def guesses(
        self, features: np.ndarray, following: Sequence[int], timeline: S, start: int, pick: Pick
    ) -> tuple[list[int], list[float]]:
        """Tokens guessed after the last of `following`, and of each the chance that it is right if those before it are.

        `features` (m, F): of m tokens behind the `start` ones that the timeline remembers, which remembers them from
        now on; `following`: of each the token behind it.
        """
        with self.ops.inference():
            if isinstance(self.weights, Mtp):
                logits = self.mtp(features, following, timeline, start, 1)
                top = float(logits[0].max())
                return [pick(logits[0], 0)], [float(1 / np.exp(logits[0] - top).sum())]
            logits, collapsed = self.dspark(features, following[-1], timeline, start)
            tokens, chances, token = [], [], following[-1]
            for i, row in enumerate(logits):
                chance = self.ops.confidence(collapsed[i], token)
                token = pick(row + self.ops.markov(token), i)
                tokens.append(token)
                chances.append(1 / (1 + math.exp(-min(max(chance, -50.0), 50.0))))
            return tokens, chances

    def mtp(self, features: np.ndarray, following: Sequence[int], timeline: S, start: int, n: int) -> np.ndarray:
        """Logits (n, vocab_size) of what comes two behind the last n tokens."""
        ops = self.ops
        batch = ops.batch([Span(following, timeline, start)])
        streams = ops.mtp_streams(features, batch)
        x, mix = ops.attention_input(0, streams)
        x = ops.window_attention(0, x, batch)
        streams = ops.sublayer_output(x, streams, mix)
        streams = self._feed_forward(0, ops.last(streams, n))
        return np.asarray(ops.logits(ops.final_hidden(streams)))

    def dspark(self, features: np.ndarray, token: int, timeline: S, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits (size, vocab_size) of what comes behind a token, each as if nothing were known of those before it, and
        collapsed streams (size, D)."""
        weights, ops = self.weights, self.ops
        assert isinstance(weights, Dspark)
        n = weights.size
        ids = [weights.noise] * len(features) + [token] + [weights.noise] * (n - 1)
        batch = ops.batch([Span(ids, timeline, start, together=n)])
        main = ops.main_input(features)  # (m, D)
        streams = ops.last(ops.embed(batch), n)  # (n, S, D)
        for layer in range(len(weights.tree.layers)):
            x, mix = ops.attention_input(layer, streams)
            x = ops.window_attention(layer, ops.joined(main, x), batch)  # (m + n, D)
            streams = ops.sublayer_output(ops.last(x, n), streams, mix)
            streams = self._feed_forward(layer, streams)
        return np.asarray(ops.logits(ops.final_hidden(streams))), ops.collapsed(streams)

    def _feed_forward(self, layer: int, streams: A) -> A:
        ops = self.ops
        x, mix = ops.ffn_input(layer, streams)
        experts = self.bank.begin(layer, x, ops.route_by_score(layer, x), streams)
        return ops.sublayer_output(experts.add_to(ops.shared_expert(layer, x)), streams, mix)
