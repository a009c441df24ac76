"""Drafts of one session: asks its drafters, lets their controls decide, and tells both what became of it."""

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

import numpy as np

from v4cli.engine.control import SHARE, Control, Costs
from v4cli.engine.draft import Draft, Drafter
from v4cli.engine.head import HeadDrafter
from v4cli.engine.sampler import Sampler
from v4cli.errors import V4Error


@dataclass
class Drafted:
    """What drafts did in a turn."""

    steps: int = 0  # of the model
    verified: int = 0  # drafted tokens in them
    accepted: int = 0  # of these, those that were right
    drafter_s: float = 0.0
    step_s: float = 0.0
    single_s: float = 0.0  # what its tokens would have taken one by one, about
    rows_s: float = 0.0  # of the steps, for the drafted tokens, about

    @classmethod
    def sum(cls, turns: Sequence["Drafted"]) -> "Drafted":
        """What they did in all of them."""
        return cls(*map(sum, zip(*map(astuple, turns))))

    @property
    def row_cost(self) -> float:
        """What verifying a token takes, in steps of one token."""
        single = self.single_s / (self.steps + self.accepted) if self.steps else 0.0
        return self.rows_s / self.verified / single if self.verified and single else 0.0

    @property
    def gain(self) -> float:
        """How many times as fast as without drafts, about."""
        taken = self.step_s + self.drafter_s
        return self.single_s / taken if taken else 1.0


@dataclass
class Heard:
    """A drafter, its control, and its draft of which it is being decided how many tokens are right."""

    drafter: Drafter
    control: Control
    draft: Draft = field(default_factory=Draft)
    right: int = 0  # of its tokens, so far
    open: bool = False  # the next one may be right, too

    def ask(self, tokens: Sequence[int], last: int, most: int) -> None:
        """For a draft, at its own cost."""
        start = time.perf_counter()
        self.draft = self.drafter.draft(tokens, last, most)
        self.open = bool(self.draft.tokens)
        self.control.made(time.perf_counter() - start)

    def decide(self, token: int) -> bool:
        """This one came where the next token of the draft, if any, was guessed: whether it was right. What nobody
        verified teaches as much as what was."""
        if not self.open:
            return False
        right = token == self.draft.tokens[self.right]
        self.drafter.seen(self.draft, self.right, right)
        self.right += right
        self.open = right and self.right < len(self.draft.tokens)
        return right


class Drafting:
    """Of its drafters the first that has a guess worth verifying is taken, so one that costs time comes last."""

    def __init__(self, costs: Costs, drafters: Sequence[Drafter]):
        share = SHARE / max(len(drafters), 1)
        self.costs = costs
        self.all = [Heard(drafter, Control(costs, share, drafter.effort)) for drafter in drafters]
        self.head = next((drafter for drafter in drafters if isinstance(drafter, HeadDrafter)), None)
        self.done = Drafted()
        self.heard = self.all
        self._taken: Heard | None = None  # whose draft the step verifies,
        self._n_verified = self._beside = 0  # how much of it, beside how many rows of others

    @property
    def nbytes(self) -> int:
        """RAM that what is remembered for guesses takes."""
        return self.head.nbytes if self.head else 0

    def begin(self, which: str, sampler: Sampler) -> None:
        """A turn: `which` of the drafters are heard, auto (all), ngram, model or off (none)."""
        self.done = Drafted()
        self.heard = [one for one in self.all if which in ("auto", one.drafter.name)]
        if self.head:
            self.head.sampler = sampler

    def propose(self, tokens: Sequence[int], last: int, most: int, beside: int) -> list[int]:
        """What to verify after these tokens and `last`, in a step with so many rows of others; up to `most`."""
        self.drop()
        self._beside = beside
        if most < 1:
            return []
        start = time.perf_counter()
        for one in self.heard:
            if not one.control.may_ask(beside):
                continue
            try:
                one.ask(tokens, last, most)
            except (ArithmeticError, MemoryError, ValueError, V4Error):  # no reason to end an answer
                self.heard = [other for other in self.heard if other is not one]
                continue
            if one.open and (worth := one.control.worth(one.draft, beside)):
                self._taken, self._n_verified = one, worth
                break
        self.done.drafter_s += time.perf_counter() - start
        return self._taken.draft.tokens[: self._n_verified] if self._taken else []

    def stepped(self, seconds: float) -> None:
        """The step took so long."""
        single = self.costs.single * self.costs.of(1 + self._beside)
        for one in self.heard:
            one.control.stepped(seconds, self._n_verified if one is self._taken else 0, self._beside)
        self.done.steps += 1
        self.done.verified += self._n_verified
        self.done.step_s += seconds
        self.done.single_s += single if self._n_verified else seconds
        self.done.rows_s += max(seconds - single, 0.0) if self._n_verified else 0.0

    def decide(self, token: int) -> None:
        """This one came where the next guess was made."""
        for one in self.heard:
            if one.decide(token) and one is self._taken and one.right <= self._n_verified:
                one.control.gained(self._beside)
                self.done.accepted += 1
                self.done.single_s += self.costs.single * self.costs.of(1 + self._beside)

    @property
    def wants_features(self) -> bool:
        """Whether the draft model is to know what the trunk's layers give for tokens: not while it could not be asked
        anyway, since on a small model that takes a good part of a step."""
        return any(one.drafter is self.head and one.control.can_pay() for one in self.heard)

    def is_in_window(self, distance: int) -> bool:
        """Whether a draft after a prompt looks at tokens so far before its end."""
        return self.head is not None and distance < self.head.model.window

    def fed(self, at: int, features: np.ndarray | None, seconds: float = 0.0) -> None:
        """What the trunk's layers gave (m, F) for tokens of the timeline from position `at` on, if it was noted, which
        took so long."""
        if self.head and features is not None:
            start = time.perf_counter()
            self.head.fed(at, features)
            for one in self.heard:
                if one.drafter is self.head:
                    one.control.noted(seconds + time.perf_counter() - start)

    def drop(self) -> None:
        """Nothing is being decided, nothing is verified."""
        self._taken, self._n_verified = None, 0
        for one in self.heard:
            one.open, one.right = False, 0

    def back(self, n_tokens: int) -> None:
        """The timeline has gone back to so many tokens."""
        self.drop()
        for one in self.all:
            one.drafter.back(n_tokens)
