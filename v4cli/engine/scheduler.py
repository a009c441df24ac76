"""Who computes when: the tokens that sessions wait for become the rows of one step.

There is no thread of its own. Of the threads that wait for their tokens one computes for all of them, so that a session
alone pays for no others. A step takes the few rows of every session that decodes, and with them one slice of a prefill;
prefills take turns, slice by slice. Rows do not see each other: what a session gets does not depend on its company.

What lies between two steps of a session, sampling above all, is its `Work`. A caller can do that in its own thread
(`steps`), or leave it to whoever computes (`drive`): then no thread has to wake for every token of every session.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import numpy as np

from v4cli.engine.control import Costs
from v4cli.engine.jobs import Job, T, Waiter, Withdrawn, Work
from v4cli.experts.slots import Counts, ExpertStream
from v4cli.model.draft import DraftModel
from v4cli.model.state import State
from v4cli.model.v4 import V4
from v4cli.plan.memory import FEW

SLICE_S = 0.1  # of a prefill at a time while others wait
LEAST_SLICE = 32  # rows
HEED_S = 0.005  # from one question whether a job is cancelled to the next, within a step
PATIENCE = 0.1  # of a step's time that it may wait for sessions which decode to bring their next token,
LEAST_PATIENCE_S = 0.002  # or so long: about what eight of them take for that


class Tap:
    """Notes in a step what a draft model wants to know."""

    def __init__(self, head: DraftModel):
        self.head, self._noted = head, dict[str, np.ndarray]()
        self.seconds = 0.0

    def __call__(self, name: str, streams: Any) -> None:
        if name in self.head.watched:
            start = time.perf_counter()
            self._noted[name] = self.head.noted(streams)
            self.seconds += time.perf_counter() - start

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
        self._computing: int | None = None  # the thread that does
        self._decoding = self._active = 0  # sessions
        self._step_s = 0.0  # of the last step of few rows
        self._row_s = 0.0  # of a prefill

    def run(self, job: Job) -> Job | None:
        """The job done: logits (n, vocab) of all or (1, vocab) of the last of its tokens, by which its state advanced;
        None if it was cancelled. Whatever is raised, the state is where it was."""
        job.owner = owner = Waiter(self._lock)
        try:
            with self._lock:
                self._waiting.append(job)
            self._wait_or_compute(owner)
        except BaseException:  # Ctrl-C, while others may compute our rows
            with self._lock:
                owner.turn.wait_for(lambda: not job.taken)
                if job in self._waiting:
                    self._waiting.remove(job)
                elif job.error is None:
                    job.undo()
                self._pass_on()  # it may have been ours
            raise
        return job.result

    def steps(self, work: Work[T]) -> Iterator[T]:
        """What `work` yields beside its jobs, for which the caller's thread waits."""
        with closing(work):
            go_on = partial(next, work)
            while True:
                try:
                    item = go_on()
                except StopIteration:
                    return
                go_on = partial(next, work)
                if not isinstance(item, Job):
                    yield item
                    continue
                try:
                    go_on = partial(work.send, self.run(item))
                except Exception as error:
                    go_on = partial(work.throw, error)

    def drive(self, work: Work[T], take: Callable[[T], bool]) -> None:
        """The same, but `take` hears of it, and says when that is enough. Both are run by whoever computes, so they
        must not wait for anything; what they raise is raised here. Not for a thread that Ctrl-C may interrupt."""

        def go_on(job: Job | None) -> Job | None:
            try:
                done = job and job.result
            except Exception as error:
                item = work.throw(error)
            else:
                item = work.send(done)
            while not isinstance(item, Job):
                if take(item):
                    work.close()
                    return None
                item = next(work)
            return item

        owner = Waiter(self._lock, go_on)
        with closing(work):
            self._go_on(owner, None)
            self._wait_or_compute(owner)
        if owner.error is not None:
            raise owner.error

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
        """Within: nothing is computed."""
        me = threading.get_ident()
        with self._lock:
            is_driven = self._computing == me
            if not is_driven:
                self._free.wait_for(lambda: self._computing is None)
                self._computing = me
        try:
            yield
        finally:
            if not is_driven:
                with self._lock:
                    self._computing = None
                    self._pass_on()

    # -- steps ----------------------------------------------------------------------------------------------------

    def _wait_or_compute(self, owner: Waiter) -> None:
        with self._lock:
            self._tell_if_all_brought()
            owner.turn.wait_for(lambda: owner.done or self._computing is None)
            if owner.done:
                return
            self._computing = threading.get_ident()
        try:
            while not owner.done:
                for job in self._step(owner):
                    if job.owner.is_driven:
                        self._go_on(job.owner, job)
        finally:
            with self._lock:
                self._computing = None
                self._pass_on()

    def _go_on(self, owner: Waiter, job: Job | None) -> None:
        """What is driven brings its next job, or has ended. Whatever goes wrong there is its own affair."""
        following = None
        try:
            following = owner.go_on(job)
        except StopIteration:
            pass
        except BaseException as error:
            owner.error = error
        with self._lock:
            if following is None:
                owner.done = True
                owner.turn.notify()
            else:
                following.owner = owner
                self._waiting.append(following)

    def _tell_if_all_brought(self) -> None:
        if len(self._waiting) >= self._active:
            self._brought.notify()

    def _pass_on(self) -> None:
        """Unless somebody computes: whoever waits for that may now, one of those who wait for their tokens, or who
        wants nothing computed."""
        if self._computing is None:
            self._free.notify_all()
            if self._waiting:
                self._waiting[0].owner.turn.notify()

    def _step(self, own: Waiter) -> list[Job]:
        """Compute the rows that wait: the jobs that have ended with it. Ctrl-C ends what is `own`, whose thread this
        is; the others wait on."""
        try:
            jobs = self._take()
            self._compute(jobs)
        except BaseException as error:
            ended = []
            with self._lock:
                jobs = [job for job in self._waiting if job.taken]
                for job in jobs:
                    job.undo()
                    job.taken = False
                    job.owner.turn.notify()
                    if self._is_to_blame(job, jobs, own, error):
                        job.error = error
                        ended.append(job)
                        self._finish(job)
            if not isinstance(error, Exception):
                raise
            return ended
        with self._lock:
            for job in jobs:
                self._finish(job)
        return jobs

    def _finish(self, job: Job) -> None:
        job.taken = False
        self._waiting.remove(job)
        if not job.owner.is_driven:
            job.owner.done = True
            job.owner.turn.notify()

    def _is_to_blame(self, job: Job, jobs: list[Job], own: Waiter, error: BaseException) -> bool:
        """Whether a step failed for this job; where that cannot be known, each is tried alone."""
        if isinstance(error, Withdrawn):
            return job.cancelled()
        if not isinstance(error, Exception):
            return job.owner is own
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

        head = self.head() if any(job.watched for job in jobs) else None
        tap = Tap(head) if head else None
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
            if tap and job.watched:
                job.features, job.noting_s = tap.of(job.rows), tap.seconds * len(job.ids) / rows
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
