"""Drafts for tests: some right, some wrong, verified without regard to what they cost."""

from collections.abc import Sequence

import numpy as np
import pytest

from v4cli.engine.draft import Draft, Drafter
from v4cli.engine.drafting import Drafting


class Guesser:
    """Knows what will come, and says it with a chance of `right` each."""

    name = "guesser"
    effort = 0.0, 1

    def __init__(self, truth: Sequence[int], right: float, seed: int, vocab: int = 512):
        self.truth, self.right, self.vocab = list(truth), right, vocab
        self.rng = np.random.default_rng(seed)
        self.told: list[tuple[int, bool]] = []

    def draft(self, tokens, last, most):
        said = self.truth[len(tokens) + 1 :][: int(self.rng.integers(0, most + 1))]
        said = [t if self.rng.random() < self.right else int(self.rng.integers(self.vocab)) for t in said]
        return Draft(said, [0.5] * len(said))

    def seen(self, draft, i, right):
        self.told.append((i, right))

    def back(self, n_tokens): ...


class Reckless:
    """A control that asks always, and verifies some of whatever it is given."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def may_ask(self, beside):
        return True

    def can_pay(self, beside=0):
        return True

    def made(self, seconds): ...

    def noted(self, seconds): ...

    def worth(self, draft, beside):
        return int(self.rng.integers(0, len(draft.tokens) + 1))

    def stepped(self, seconds, n_drafts, beside): ...

    def gained(self, beside): ...


def heed(session, drafters: Sequence[Drafter], seed: int) -> None:
    """Have a session verify what these draft, without regard to what it costs."""
    session.drafting = Drafting(session.engine.scheduler.costs, drafters)
    for one in session.drafting.all:
        one.control = Reckless(seed)


def guess(session, truth: Sequence[int], right: float, seed: int = 0) -> Guesser:
    """Have a session verify such drafts of the tokens that it will have."""
    guesser = Guesser(truth, right, seed, session.engine.config.vocab_size)
    heed(session, [guesser], seed)
    return guesser


def pieces(few: int, all: int = 200, each: int = 25) -> list:
    """Seeds of random conversations: a few, and in the long runs all, in pieces that can be run side by side."""
    long = [pytest.param(range(at, at + each), marks=pytest.mark.slow) for at in range(0, all, each)]
    return [range(few), *long]
