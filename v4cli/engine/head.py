"""The draft model that came with the weights, as a drafter of one timeline."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from v4cli.engine.draft import DOUBT, FADE, Draft
from v4cli.engine.sampler import Sampler
from v4cli.model.draft import DraftModel

BINS = 10  # of what the model says of its guesses, each with what became of them


class HeadDrafter:
    """What the trunk's layers gave for the timeline's last tokens waits here until a draft is wanted. Positions are
    counted from the first token that is remembered: only distances matter to a window."""

    name = "model"

    def __init__(self, model: DraftModel, alone: Callable[[], AbstractContextManager]):
        """`alone`: within it nothing else is computed."""
        self.model, self._alone = model, alone
        self.sampler: Sampler | None = None
        self._right, self._seen = np.zeros(BINS), np.zeros(BINS)
        self._said: list[int] = []  # bins of the last draft
        self._restart(0)

    def _restart(self, at: int) -> None:
        """Remember nothing before this position."""
        self._timeline = self.model.new_timeline()
        self._start, self._taken = at, 0
        self._waiting: np.ndarray | None = None  # (m, F)

    @property
    def nbytes(self) -> int:
        """RAM taken."""
        remembered = sum(layer.nbytes for layer in self._timeline.layers)
        return remembered + (0 if self._waiting is None else self._waiting.nbytes)

    @property
    def _n_waiting(self) -> int:
        return 0 if self._waiting is None else len(self._waiting)

    @property
    def _end(self) -> int:
        return self._start + self._taken + self._n_waiting

    def fed(self, at: int, features: np.ndarray) -> None:
        """What the trunk's layers gave (m, F) for the tokens from position `at` on."""
        if at != self._end:
            self._restart(at)
        waiting = features if self._waiting is None else np.concatenate([self._waiting, features])
        surplus = len(waiting) - self.model.window
        if surplus > 0:
            end = at + len(features)
            self._restart(end - self.model.window)
        self._waiting = waiting[-self.model.window :].copy()

    def back(self, n_tokens: int) -> None:
        surplus = self._end - n_tokens
        if surplus <= 0:
            return
        waiting, left = self._n_waiting, self._timeline.spare - self.model.most
        if surplus <= waiting:
            assert self._waiting is not None
            self._waiting = self._waiting[: waiting - surplus]
        elif surplus - waiting <= min(left, self._taken):
            self._taken, self._waiting = self._taken - (surplus - waiting), None
        else:
            self._restart(n_tokens)

    def draft(self, tokens: Sequence[int], last: int, most: int) -> Draft:
        m = self._n_waiting
        if self._waiting is None or not m or self._end != len(tokens) or self.sampler is None:
            return Draft()
        sampler, place = self.sampler, len(tokens) + 1
        following = [*tokens[len(tokens) - m + 1 :], last]
        with self._alone():
            said, chances = self.model.guesses(
                self._waiting, following, self._timeline, self._taken, lambda row, i: sampler.pick(row, place + i)[0]
            )
        self._taken, self._waiting = self._taken + m, None
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
