"""Which timeline a request goes on with. So many are kept in memory; of those that are free, a request gets the one
that has the longest common prefix with it. One whose end another conversation may still want is copied, not cut; what
has to go is stored first, and found again on disk. A request that begins like one which is being answered waits until
that much has been computed, and gets a copy: those that come at once do not compute the same.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from v4cli.engine.session import Session
from v4cli.errors import Interrupted, ResourceError

BLOCK = 1024  # tokens compared at once
WORTH_COPYING = 32  # tokens in common; so many more than elsewhere are worth waiting for
SHORT_TAIL = 16  # tokens that may be lost without a copy
PATIENCE_S = 10.0  # for sessions that are being stored
HEED_S = 0.05  # from one question whether a waiting request is cancelled to the next


@dataclass(eq=False)
class _Follower:
    """A request that waits for the first `common` tokens of another; then `session`, unless there was no memory."""

    ids: Sequence[int]
    common: int
    is_served: bool = False
    session: Session | None = None


@dataclass(eq=False)
class _Use:
    """A session that is in use, or will be, for a prompt."""

    ids: Sequence[int]
    session: Session | None = None
    followers: list[_Follower] = field(default_factory=list)

    def common(self, ids: Sequence[int]) -> int:
        """Tokens that a prompt has in common with what is there already, or will be."""
        return max(common(self.ids, ids), common(self.session.tokens, ids) if self.session else 0)


class Pool:
    """At most `most` sessions; requests that find all of them busy wait in the order of their coming."""

    def __init__(self, new: Callable[[], Session], most: int, aside: Callable[[Callable[[], None]], None]):
        """`new` makes an empty session; ResourceError where there is no memory for it. `aside` has something done in
        another thread."""
        self._new, self.most, self._aside = new, most, aside
        self._changed = threading.Condition()
        self._idle: list[Session] = []  # that used last at the end
        self._busy = 0
        self._leaving: list[Session] = []  # that are being stored, and are nobody's then
        self._sources: list[Session] = []  # that are being copied, and count as busy
        self._waiting: deque[object] = deque()
        self._used = time.monotonic()  # when a session was given back last
        self._uses: list[_Use] = []
        self._n_following = 0  # of those that count as busy; they have no session

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_busy(self) -> int:
        return self._busy

    @property
    def n_kept(self) -> int:
        return self._busy + len(self._idle)

    @property
    def idle_s(self) -> float:
        """Seconds since anybody has had a session, or waited for one."""
        with self._changed:
            return 0.0 if self._busy or self._waiting else time.monotonic() - self._used

    @contextmanager
    def session(self, ids: Sequence[int], cancelled: Callable[[], bool]) -> Iterator[Session]:
        """Within: a session of one's own, the best for a prompt of `ids`. Interrupted if cancelled while waiting."""
        use = _Use(ids)
        try:
            use.session = session = self._taken(use, cancelled)
        except BaseException:
            self._leave(use)
            raise
        try:
            yield session
            session.keep()
        finally:
            self._used = time.monotonic()
            self._leave(use)

    def _taken(self, use: _Use, cancelled: Callable[[], bool]) -> Session:
        """Where there is no memory for one more, others give way, or are waited for. ResourceError if none are left."""
        while True:
            try:
                session, follower = self._chosen(use, cancelled)
                session = self._copy_for(follower, cancelled) if follower else session
                if session is not None:
                    return session
            except ResourceError:
                if not self.drop_one() and not self.wait_for_another(cancelled, own=0):
                    raise

    def _chosen(self, use: _Use, cancelled: Callable[[], bool]) -> tuple[Session | None, _Follower | None]:
        """A session, or whom to follow to one."""
        ids = use.ids
        with self._my_turn(ids, cancelled):
            best = max(self._idle, key=lambda session: common(session.tokens, ids), default=None)
            self._busy += 1
            follower = self._following(use, common(best.tokens, ids) if best else 0)
            if best and not follower and _goes_on(best, ids):
                self._idle.remove(best)
                return best, None
            source = best if best and not follower and common(best.tokens, ids) >= WORTH_COPYING else None
            others = [session for session in self._idle if session is not source]
            if self.n_kept > self.most and others:
                self._let_go(others[0])
            if source:
                self._idle.remove(source)
                self._sources.append(source)
                self._busy += 1
        if follower:
            return None, follower
        best, others = None, []  # one may be leaving, and its memory be wanted
        try:
            return (self._copied(source) if source else self._new()), None
        except BaseException:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()
            raise

    def _copied(self, source: Session) -> Session:
        """A copy, after which the source is free again, or has to go; the source itself, stored, where there is no
        memory for one."""
        try:
            twin = source.fork()
        except ResourceError:
            _store(source)
            with self._changed:
                self._sources.remove(source)
                self._busy -= 1
            return source
        except BaseException:
            with self._changed:
                self._sources.remove(source)
                self._free(source)
            raise
        with self._changed:
            self._sources.remove(source)
            self._free(source)
            if self.n_kept > self.most:
                self._let_go(source)
        return twin

    def _free(self, session: Session) -> None:
        with self._changed:
            self._busy -= 1
            self._idle.append(session)
            self._changed.notify_all()

    def _let_go(self, session: Session) -> None:
        """Store a session and forget it, aside: whoever takes its place does not wait for the disk. Under the lock."""
        self._idle.remove(session)
        self._leaving.append(session)

        def leave() -> None:
            nonlocal session
            try:
                _store(session)
            finally:
                with self._changed:
                    self._leaving.remove(session)
                    del session
                    self._changed.notify_all()

        self._aside(leave)

    # -- what is computed for one is there for others -------------------------------------------------------------

    def _following(self, use: _Use, had: int) -> _Follower | None:
        """Whoever will have the most in common with a new use, if that is worth waiting for; `had`: tokens that an idle
        session has. The use can be followed from here on. Under the lock."""
        if use not in self._uses:
            self._uses.append(use)
        earlier = self._uses[: self._uses.index(use)]  # else two might wait for each other
        leader = max(earlier, key=lambda other: other.common(use.ids), default=None)
        if leader is None or leader.common(use.ids) < had + WORTH_COPYING:
            return None
        leader.followers.append(follower := _Follower(use.ids, leader.common(use.ids)))
        self._n_following += 1
        return follower

    def _copy_for(self, follower: _Follower, cancelled: Callable[[], bool]) -> Session | None:
        """What it has waited for; None if that did not come about, and it is not busy any more. Interrupted."""
        with self._changed:
            while not follower.is_served and not cancelled():
                self._changed.wait(HEED_S)
            if not follower.is_served:
                follower.is_served = True  # it wants nothing any more
                self._n_following -= 1
            if cancelled() or follower.session is None:
                self._busy -= 1
                self._idle += [follower.session] if follower.session else []
                self._changed.notify_all()
            if cancelled():
                raise Interrupted("the client has hung up")
            return follower.session

    def passed(self, session: Session) -> None:
        """For its user, between two steps: those who wait for what it has by now get copies."""
        if not self._n_following:
            return
        with self._changed:
            use = next((use for use in self._uses if use.session is session), None)
            followers = use.followers if use else []
            due = [one for one in followers if one.common <= len(session.tokens)]
            followers[:] = [one for one in followers if one not in due]
        for follower in due:
            self._serve(follower, session)

    def _serve(self, follower: _Follower, source: Session | None) -> None:
        copy = None
        with contextlib.suppress(ResourceError):
            copy = source.fork() if source and not follower.is_served else None
        with self._changed:
            if not follower.is_served:  # it has not hung up
                self._hand(follower, copy)

    def _hand(self, follower: _Follower, session: Session | None) -> None:
        """Under the lock."""
        follower.is_served, follower.session = True, session
        self._n_following -= 1
        self._changed.notify_all()

    def _leave(self, use: _Use) -> None:
        """The use has ended, or never began. Who goes on with its session gets that, others who follow get copies, or
        have to look for another."""
        session = use.session
        with self._changed:
            self._uses = [other for other in self._uses if other is not use]
            followers, use.followers = use.followers, []
        heir = next((one for one in followers if session and _goes_on(session, one.ids)), None)
        for follower in followers:
            if follower is not heir:
                self._serve(follower, session)
        with self._changed:
            if heir and not heir.is_served:
                self._hand(heir, session)
                self._busy -= 1
            elif session:
                self._free(session)

    def _has_room(self, ids: Sequence[int]) -> bool:
        """Whether there is a session or room for one; not until what it needs of those that leave is on disk, or of
        those that are being copied is free again, and not while too many still take memory."""
        if not (self._idle or self.n_kept < self.most) or len(self._leaving) > self.most // 2:
            return False
        going = max((common(session.tokens, ids) for session in self._leaving + self._sources), default=0)
        return going < WORTH_COPYING or any(common(session.tokens, ids) >= going for session in self._idle)

    @contextmanager
    def _my_turn(self, ids: Sequence[int], cancelled: Callable[[], bool]) -> Iterator[None]:
        """Within, under the lock: all who came before have got a session, and there is one or room for one."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or not self._has_room(ids):
                    if cancelled():
                        raise Interrupted("the client has hung up")
                    self._changed.wait(HEED_S)
                yield
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def drop_one(self) -> bool:
        """Give back the memory of the idle session used first; whether there was one, or one was on its way."""
        with self._changed:
            if self._leaving:
                first = self._leaving[0]
                return self._changed.wait_for(lambda: first not in self._leaving)
            session = self._idle.pop(0) if self._idle else None
        if session is not None:
            _store(session)
        return session is not None

    def wait_for_another(self, cancelled: Callable[[], bool], own: int = 1) -> bool:
        """For one who has `own` sessions: until another is given back; False if no other is in use. Interrupted."""
        with self._changed:
            while self._busy - self._n_following > own and not self._idle:
                if cancelled():
                    raise Interrupted("the client has hung up")
                self._changed.wait(HEED_S)
            return bool(self._idle)

    def emptied(self) -> list[Session] | None:
        """All sessions, which then are nobody's; None while somebody has one or waits for one."""
        with self._changed:
            if self._busy or self._waiting or self._leaving:
                return None
            sessions, self._idle = self._idle, []
            return sessions

    def store(self) -> list[str]:
        """Store all idle sessions, for the next server; what hindered that."""
        with self._changed:
            self._changed.wait_for(lambda: not self._leaving, PATIENCE_S)
            sessions = list(self._idle)
        return self.stored(sessions)

    @staticmethod
    def stored(sessions: Iterable[Session]) -> list[str]:
        """Store sessions that nobody uses; what hindered that."""
        notes: list[str] = []
        for session in sessions:
            _store(session)
            notes += session.notes
        return notes


def _store(session: Session) -> None:
    if session.unsaved_s > 0:
        session.keep(0.0)


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
