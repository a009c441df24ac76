"""Which timeline a request goes on with. So many are kept in memory; of those that are free, a request gets the one
that has the longest common prefix with it. One whose end another conversation may still want is copied, not cut; what
has to go is stored first, and found again on disk.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from v4cli.engine.session import Session
from v4cli.errors import Interrupted, ResourceError

BLOCK = 1024  # tokens compared at once
WORTH_COPYING = 32  # tokens in common
SHORT_TAIL = 16  # tokens that may be lost without a copy
HEED_S = 0.05  # from one question whether a waiting request is cancelled to the next


class Pool:
    """At most `most` sessions; requests that find all of them busy wait in the order of their coming."""

    def __init__(self, new: Callable[[], Session], most: int):
        """`new` makes an empty session. ResourceError where there is no memory for it."""
        self._new, self.most = new, most
        self._changed = threading.Condition()
        self._idle: list[Session] = []  # that used last at the end
        self._busy = 0
        self._waiting: deque[object] = deque()

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_busy(self) -> int:
        return self._busy

    @property
    def n_kept(self) -> int:
        return self._busy + len(self._idle)

    @contextmanager
    def session(self, ids: Sequence[int], cancelled: Callable[[], bool]) -> Iterator[Session]:
        """Within: a session of one's own, the best for a prompt of `ids`. Interrupted if cancelled while waiting."""
        session = self._taken(ids, cancelled)
        try:
            yield session
            session.keep()
        finally:
            with self._changed:
                self._busy -= 1
                self._idle.append(session)
                self._changed.notify_all()

    def _taken(self, ids: Sequence[int], cancelled: Callable[[], bool]) -> Session:
        """Where there is no memory for one more, others give way, or are waited for. ResourceError if none are left."""
        while True:
            try:
                return self._chosen(ids, cancelled)
            except ResourceError:
                if not self.drop_one() and not self.wait_for_another(cancelled, own=0):
                    raise

    def _chosen(self, ids: Sequence[int], cancelled: Callable[[], bool]) -> Session:
        with self._my_turn(cancelled):
            best = max(self._idle, key=lambda session: common(session.tokens, ids), default=None)
            self._busy += 1
            if best and _goes_on(best, ids):
                self._idle.remove(best)
                return best
            victim = self._idle.pop(0) if self.n_kept > self.most else None
            source = best if best is not victim and best and common(best.tokens, ids) >= WORTH_COPYING else None
            if source:
                self._idle.remove(source)
                self._busy += 1
        try:
            if victim:
                victim.keep(0.0)
            if source is None:
                return victim or self._new()
            victim = None  # its memory is given back before more is taken
            return source.fork()
        except BaseException as error:
            taken, source = source, None
            if taken and isinstance(error, ResourceError):
                taken.keep(0.0)
                with self._changed:
                    self._busy -= 1
                return taken
            with self._changed:
                self._busy -= 1 + (taken is not None)
                self._idle += [taken] if taken else []
            raise
        finally:
            with self._changed:
                if source:
                    self._busy -= 1
                    self._idle.append(source)
                self._changed.notify_all()

    @contextmanager
    def _my_turn(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        """Within, under the lock: all who came before have got a session, and there is one or room for one."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or not (self._idle or self.n_kept < self.most):
                    if cancelled():
                        raise Interrupted("the client has hung up")
                    self._changed.wait(HEED_S)
                yield
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def drop_one(self) -> bool:
        """Give back the memory of the idle session used first; whether there was one."""
        with self._changed:
            session = self._idle.pop(0) if self._idle else None
        if session is not None:
            session.keep(0.0)
        return session is not None

    def wait_for_another(self, cancelled: Callable[[], bool], own: int = 1) -> bool:
        """For one who has `own` sessions: until another is given back; False if no other is in use. Interrupted."""
        with self._changed:
            while self._busy > own and not self._idle:
                if cancelled():
                    raise Interrupted("the client has hung up")
                self._changed.wait(HEED_S)
            return bool(self._idle)

    def store(self) -> list[str]:
        """Store all idle sessions, for the next server; what hindered that."""
        with self._changed:
            sessions = list(self._idle)
        notes: list[str] = []
        for session in sessions:
            if session.unsaved_s > 0:
                session.keep(0.0)
            notes += session.notes
        return notes


def _goes_on(session: Session, ids: Sequence[int]) -> bool:
    """Whether nothing worth keeping is lost if the session is used for the prompt."""
    return len(session.tokens) - common(session.tokens, ids) <= SHORT_TAIL


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    most = min(len(a), len(b))
    at = next((i for i in range(0, most, BLOCK) if a[i : i + BLOCK] != b[i : i + BLOCK]), most)
    if at == most:
        return most
    return next((i for i in range(at, most) if a[i] != b[i]), most)
