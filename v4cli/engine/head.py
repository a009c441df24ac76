"""The draft model that came with the weights, as a drafter of one timeline."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from v4cli.engine.draft import DOUBT, FADE, Draft
from v4cli.engine.sampler import Sampler
from v4cli.model.draft import DraftModel

BINS = 10  # of what the model says of its guesses, each with what became of them


class HeadDrafter:
    """What the trunk's layers gave for the timeline's last tokens waits here until a draft is wanted. Positions are
    counted from the first token that is remembered: only distances matter to a window."""

    name = "model"

    def __init__(self, model: DraftModel, trunk_layers: int, alone: Callable[[], AbstractContextManager]):
        """`trunk_layers` of the model; `alone`: within it nothing else is computed."""
        self.model, self._alone = model, alone
        self.effort = len(model.weights.tree.layers) / trunk_layers, model.most
        self.sampler: Sampler | None = None
        self._right, self._seen = np.zeros(BINS), np.zeros(BINS)
        self._said: list[int] = []  # bins of the last draft
        self._restart(0)

    def _restart(self, at: int) -> None:
        """Remember nothing before this position."""
        self._timeline: Any = None  # made when a draft is
        self._start, self._taken = at, 0
        self._waiting: list[np.ndarray] = []  # (m, F) each
        self._n_waiting = 0

    @property
    def nbytes(self) -> int:
        """RAM taken."""
        remembered = sum(layer.nbytes for layer in self._timeline.layers) if self._timeline else 0
        return remembered + sum(features.nbytes for features in self._waiting)

    @property
    def _end(self) -> int:
        return self._start + self._taken + self._n_waiting

    def fed(self, at: int, features: np.ndarray) -> None:
        """What the trunk's layers gave (m, F) for the tokens from position `at` on."""
        if at != self._end:
            self._restart(at)
        window = self.model.window
        self._waiting.append(features[-window:].copy())
        self._n_waiting += len(features)
        if self._n_waiting > window:  # what was remembered lies before the window, and so do the first that wait
            self._timeline, self._start, self._taken, self._n_waiting = None, self._end - window, 0, window
            surplus = sum(map(len, self._waiting)) - window
            while surplus and len(self._waiting[0]) <= surplus:
                surplus -= len(self._waiting.pop(0))
            if surplus:
                self._waiting[0] = self._waiting[0][surplus:].copy()

    def back(self, n_tokens: int) -> None:
        surplus = self._end - n_tokens
        if surplus <= 0:
            return
        spare = self._timeline.spare - self.model.most if self._timeline else 0
        if surplus <= self._n_waiting:
            waiting = np.concatenate(self._waiting)[: self._n_waiting - surplus]
            self._waiting, self._n_waiting = [waiting], len(waiting)
        elif surplus - self._n_waiting <= min(spare, self._taken):
            self._taken -= surplus - self._n_waiting
            self._waiting, self._n_waiting = [], 0
        else:
            self._restart(n_tokens)

    def draft(self, tokens: Sequence[int], last: int, most: int) -> Draft:
        m = self._n_waiting
        if not m or self._end != len(tokens) or self.sampler is None:
            return Draft()
        self._timeline = self._timeline or self.model.new_timeline()
        sampler, place = self.sampler, len(tokens) + 1
        following = [*tokens[len(tokens) - m + 1 :], last]
        with self._alone():
            said, chances = self.model.guesses(
                np.concatenate(self._waiting),
                following,
                self._timeline,
                self._taken,
                lambda row, i: sampler.pick(row, place + i)[0],
            )
        self._taken, self._waiting, self._n_waiting = self._taken + m, [], 0
        self._said = [min(int(BINS * chance), BINS - 1) for chance in chances]
        sure = [self._chance(bin, chance) for bin, chance in zip(self._said, chances)]
        return Draft(said[:most], sure[:most])

    def _chance(self, bin: int, said: float) -> float:
        """What the model says, corrected by what became of such guesses."""
        return float((self._right[bin] + DOUBT * said) / (self._seen[bin] + DOUBT))

    def seen(self, draft: Draft, i: int, right: bool) -> None:
        bin = self._said[i]
        self._right[bin] = FADE * self._right[bin] + right
        self._seen[bin] = FADE * self._seen[bin] + 1
