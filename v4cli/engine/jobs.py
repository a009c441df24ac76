"""What sessions ask to be computed, and who waits for it."""

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from v4cli.experts.slots import Counts
from v4cli.model.state import Checkpoint, State

T = TypeVar("T")


class Withdrawn(Exception):
    """Nobody wants the result of a step any more."""


@dataclass(eq=False)
class Job:
    """Tokens that continue a timeline, and what becomes of them: logits (n or 1, vocab), or why there are none. The
    last n_drafts tokens are guesses: of those that are right `confirm` is to be told."""

    ids: Sequence[int]
    state: State
    all_logits: bool = False
    cancelled: Callable[[], bool] = lambda: False
    n_drafts: int = 0
    watched: bool = False  # a draft model wants to know what layers give for its tokens
    owner: "Waiter" = field(init=False)
    beside: int = 0  # rows of others in the step
    seconds: float = 0.0  # that the step took
    features: np.ndarray | None = None  # (n, F) of its tokens, if watched,
    noting_s: float = 0.0  # and what it took to note them
    confirm: Callable[[int], None] = lambda row: None  # told of a row of the step, a guess that was right
    first_row: int = 0
    alone: bool = False  # it may be to blame for a step that failed
    taken: bool = False  # its rows are being computed
    logits: np.ndarray | None = None
    error: BaseException | None = None
    counts: Counts = field(default_factory=Counts)
    start: int = -1  # of the timeline before the step; -1: not begun
    before: Checkpoint | None = None  # where its own memory of that does not outlast the step

    @property
    def result(self) -> "Job | None":
        """It, done; None if it was cancelled. Raises what went wrong."""
        if isinstance(self.error, Withdrawn):
            return None
        if self.error is not None:
            raise self.error
        return self

    @property
    def rows(self) -> range:
        """Of the step."""
        return range(self.first_row, self.first_row + len(self.ids))

    def begin(self) -> None:
        """Remember where the timeline is."""
        self.before = None if self.state.can_return(len(self.ids)) else self.state.checkpoint()
        self.start = self.state.n_tokens

    def undo(self) -> None:
        """Be there again: some layers may have advanced."""
        if self.before is not None:
            self.state.restore(self.before)
        elif self.start >= 0:
            self.state.back(self.start)
        self.start, self.before = -1, None


Work = Generator[Job | T, Job | None, None]  # yields jobs, among others, and is sent them done; None: cancelled


class Waiter:
    """Whose thread waits until it is done, or has to compute: for one job, or for all that is driven."""

    def __init__(self, lock: "threading.RLock", go_on: Callable[[Job | None], Job | None] | None = None):
        """`go_on`: of what is driven, from a job that is done to the next one; raises StopIteration behind the last."""
        self.turn, self.is_driven = threading.Condition(lock), go_on is not None
        self.go_on = go_on or (lambda job: None)
        self.done = False
        self.error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Ahead:
    """Guesses that are computed already: from number i on of the tokens of a step, and all its logits (n, vocab)."""

    job: Job
    i: int

    @property
    def token(self) -> int:
        return self.job.ids[self.i]

    def rest(self) -> "Ahead | None":
        return Ahead(self.job, self.i + 1) if self.i + 1 < len(self.job.ids) else None
