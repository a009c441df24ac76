"""Who computes when: the tokens that sessions wait for become the rows of one step.

There is no thread of its own. Of the threads that wait for their tokens one computes for all of them, so that a session
alone pays for no others. A step takes the few rows of every session that decodes, and with them one slice of a prefill;
prefills take turns, slice by slice. Rows do not see each other: what a session gets does not depend on its company.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from v4cli.engine.control import Costs
from v4cli.experts.slots import Counts, ExpertStream
from v4cli.model.draft import DraftModel
from v4cli.model.state import Checkpoint, State
from v4cli.model.v4 import V4
from v4cli.plan.memory import FEW

SLICE_S = 0.1  # of a prefill at a time while others wait
LEAST_SLICE = 32  # rows
HEED_S = 0.005  # from one question whether a job is cancelled to the next, within a step
PATIENCE = 0.1  # of a step's time that it may wait for sessions which decode to bring their next token,
LEAST_PATIENCE_S = 0.002  # or so long: about what eight of them take for that


class Withdrawn(Exception):
    """Nobody wants the result of a step any more."""


@dataclass(eq=False)
class Job:
    """Tokens that continue a timeline, and what becomes of them: logits (n or 1, vocab), or why there are none."""

    ids: Sequence[int]
    state: State
    all_logits: bool
    cancelled: Callable[[], bool]
    turn: threading.Condition  # of its thread, which waits until it is done, or has to compute
    n_drafts: int = 0  # of the last tokens, guesses
    beside: int = 0  # rows of others in the step
    seconds: float = 0.0  # that the step took
    features: np.ndarray | None = None  # (n, F) of its tokens, where a draft model wants to know
    confirm: Callable[[int], None] = lambda row: None  # told of a row of the step, a guess that was right
    first_row: int = 0
    alone: bool = False  # it may be to blame for a step that failed
    taken: bool = False  # its rows are being computed
    done: bool = False
    logits: np.ndarray | None = None
    error: BaseException | None = None
    counts: Counts = field(default_factory=Counts)
    start: int = -1  # of the timeline before the step; -1: not begun
    before: Checkpoint | None = None  # where its own memory of that does not outlast the step

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


class Tap:
    """Notes in a step what a draft model wants to know."""

    def __init__(self, head: DraftModel):
        self.head, self._noted = head, dict[str, np.ndarray]()

    def __call__(self, name: str, streams: Any) -> None:
        if name in self.head.watched:
            self._noted[name] = self.head.noted(streams)

    def of(self, rows: range) -> np.ndarray:
        """(n, F)."""
        return np.concatenate([self._noted[name][rows.start : rows.stop] for name in self.head.watched], axis=1)


class Scheduler:
    """Steps of one model for all sessions on it, whose threads call `run`."""

    def __init__(
        self,
        model: V4,
        stream: ExpertStream | None,
        before_step: Callable[[], None],
        fault: Callable[[Sequence[int], State], Exception],
        counts: Callable[[], Counts | None],
        costs: Costs,
        head: Callable[[], DraftModel | None],
    ):
        """`stream`: where experts come from, if on demand. `before_step` is called before each step. `fault` gives the
        error for tokens whose results after a state are not finite. `counts`: what experts cost so far, if they are not
        all in one place. `costs` is told what steps take in which all rows are decoded. `head`: the draft model that
        wants to know what layers give."""
        self.model, self.stream, self.before_step, self.fault = model, stream, before_step, fault
        self.counts, self.costs, self.head = counts, costs, head
        self.chunk = model.ops.chunk
        self._lock = threading.RLock()
        self._brought = threading.Condition(self._lock)  # all that decode have brought a token, or fewer do
        self._free = threading.Condition(self._lock)  # nobody computes
        self._waiting: list[Job] = []  # in the order of their coming, until they are done
        self._confirmed: list[tuple[Job, int]] = []
        self._computing = False
        self._decoding = self._active = 0  # sessions
        self._step_s = 0.0  # of the last step of few rows
        self._row_s = 0.0  # of a prefill

    def run(
        self,
        ids: Sequence[int],
        state: State,
        all_logits: bool = False,
        cancelled: Callable[[], bool] = lambda: False,
        n_drafts: int = 0,
    ) -> Job | None:
        """The job done: logits (n, vocab) of all or (1, vocab) of the last of the tokens, by which `state` advanced;
        None if cancelled. Whatever is raised, the state is where it was. The last n_drafts tokens are guesses: of those
        that are right `confirm` is to be told."""
        job = Job(ids, state, all_logits, cancelled, threading.Condition(self._lock), n_drafts)
        try:
            self._wait_or_compute(job)
        except BaseException:  # Ctrl-C, while others may compute our rows
            with self._lock:
                job.turn.wait_for(lambda: not job.taken)
                if job in self._waiting:
                    self._waiting.remove(job)
                elif job.error is None:
                    job.undo()
                self._pass_on()  # it may have been ours
            raise
        if isinstance(job.error, Withdrawn):
            return None
        if job.error is not None:
            raise job.error
        return job

    def confirm(self, job: Job, i: int) -> None:
        """Token number i of a job that is done, a guess, was right."""
        with self._lock:
            self._confirmed.append((job, i))

    def settle(self) -> None:
        """Between steps, by who computes: what was confirmed counts."""
        with self._lock:
            confirmed, self._confirmed = self._confirmed, []
        for job, i in confirmed:
            job.confirm(job.first_row + i)

    def slice_rows(self) -> int:
        """Rows that a prefill should bring next: a chunk; while others wait what takes about SLICE_S, but with experts
        on demand a chunk all the same, for which each of them is read once."""
        if self._active < 2 or self.stream or not self._row_s:
            return self.chunk
        return int(min(max(SLICE_S / self._row_s, LEAST_SLICE), self.chunk))

    @contextmanager
    def busy(self, decoding: bool) -> Iterator[None]:
        """Within: a session prefills or decodes."""
        with self._lock:
            self._active += 1
            self._decoding += decoding
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1
                self._decoding -= decoding
                self._tell_if_all_brought()

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Within: nothing is computed. Not for a thread that computes."""
        with self._lock:
            self._free.wait_for(lambda: not self._computing)
            self._computing = True
        try:
            yield
        finally:
            with self._lock:
                self._computing = False
                self._pass_on()

    # -- steps ----------------------------------------------------------------------------------------------------

    def _wait_or_compute(self, job: Job) -> None:
        with self._lock:
            self._waiting.append(job)
            self._tell_if_all_brought()
            job.turn.wait_for(lambda: job.done or not self._computing)
            if job.done:
                return
            self._computing = True
        try:
            while not job.done:
                self._step(job)
        finally:
            with self._lock:
                self._computing = False
                self._pass_on()

    def _tell_if_all_brought(self) -> None:
        if len(self._waiting) >= self._active:
            self._brought.notify()

    def _pass_on(self) -> None:
        """Unless somebody computes: whoever waits for that may now, one of those who wait for their tokens, or who
        wants nothing computed."""
        if not self._computing:
            self._free.notify_all()
            if self._waiting:
                self._waiting[0].turn.notify()

    def _step(self, own: Job) -> None:
        """Compute the rows that wait. Ctrl-C ends `own` only, whose thread this is; the others wait on."""
        try:
            jobs = self._take()
            self._compute(jobs)
        except BaseException as error:
            with self._lock:
                jobs = [job for job in self._waiting if job.taken]
                for job in jobs:
                    job.undo()
                    job.taken = False
                    job.turn.notify()
                    if self._is_to_blame(job, jobs, own, error):
                        job.error = error
                        self._finish(job)
            if not isinstance(error, Exception):
                raise
            return
        with self._lock:
            for job in jobs:
                self._finish(job)

    def _finish(self, job: Job) -> None:
        job.done, job.taken = True, False
        self._waiting.remove(job)
        job.turn.notify()

    def _is_to_blame(self, job: Job, jobs: list[Job], own: Job, error: BaseException) -> bool:
        """Whether a step failed for this job; where that cannot be known, each is tried alone."""
        if isinstance(error, Withdrawn):
            return job.cancelled()
        if not isinstance(error, Exception):
            return job is own
        job.alone = True
        return len(jobs) == 1

    def _take(self) -> list[Job]:
        """Rows of the next step: all of few rows, and one slice of a prefill."""
        with self._lock:
            if self._decoding > 1 and self._step_s:
                patience = max(PATIENCE * self._step_s, LEAST_PATIENCE_S)
                self._brought.wait_for(lambda: len(self._waiting) >= self._active, patience)
            first = self._waiting[0]
            jobs, has_slice = [first], len(first.ids) > FEW
            for job in () if first.alone else self._waiting[1:]:
                if not job.alone and (len(job.ids) <= FEW or not has_slice):
                    jobs.append(job)
                    has_slice = has_slice or len(job.ids) > FEW
            for job in jobs:
                job.taken = True
            return jobs

    def _compute(self, jobs: list[Job]) -> None:
        model, start = self.model, time.perf_counter()
        asked = start
        rows = self._lay_out(jobs)
        for job in jobs:
            job.begin()
        self.settle()
        self.before_step()
        confirm = model.bank.doubt([row for job in jobs for row in job.rows[len(job.ids) - job.n_drafts :]])
        before = self.counts()

        def pause() -> None:
            nonlocal asked
            if time.perf_counter() < asked + HEED_S:
                return
            asked = time.perf_counter()
            if any(job.cancelled() for job in jobs):
                raise Withdrawn

        tap = Tap(head) if (head := self.head()) else None
        with model.ops.inference():
            hidden = model.forward([(job.ids, job.state) for job in jobs], tap, pause)
            wanted: list[int] = []
            for job in jobs:
                wanted += job.rows if job.all_logits else job.rows[-1:]
            some = hidden if len(wanted) == rows else model.ops.rows(hidden, wanted)
            logits = np.asarray(model.logits(some))
            if not (np.isfinite(logits).all() and model.ops.finite(hidden)):
                raise self._not_finite(jobs)
        at = 0
        for job in jobs:
            count = len(job.ids) if job.all_logits else 1
            own = logits[at : at + count]
            job.logits, at = own if len(jobs) == 1 else own.copy(), at + count  # who keeps its own keeps no others'
            if before and (now := self.counts()):
                job.counts = now.since(before).share(len(job.ids) / rows)
        seconds = time.perf_counter() - start
        for job in jobs:
            job.seconds, job.beside, job.confirm = seconds, rows - len(job.ids), confirm
            job.features = tap.of(job.rows) if tap else None
        if any(len(job.ids) > FEW for job in jobs):
            self._row_s = seconds / rows
        else:
            self._step_s = seconds
            if all(len(job.ids) == 1 + job.n_drafts for job in jobs):
                self.costs.told(rows, seconds)

    @staticmethod
    def _lay_out(jobs: list[Job]) -> int:
        """The jobs' rows one behind the other; how many there are."""
        rows = 0
        for job in jobs:
            job.first_row, rows = rows, rows + len(job.ids)
        return rows

    def _not_finite(self, jobs: list[Job]) -> Exception:
        """Why, if it is known whose rows they are."""
        if len(jobs) > 1:
            return FloatingPointError("a result is not finite")
        jobs[0].undo()
        jobs[0].begin()
        return self.fault(jobs[0].ids, jobs[0].state)
