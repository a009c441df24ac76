"""The budget's account: sessions say what they will hold before they do, and get it or an error.

What a session may hold is pledged in its own thread, at any time; experts give their memory back between two steps, in
the thread that computes. So the sum of all sessions stays within the budget, and who is refused is who asked for more.
"""

import threading
from typing import TYPE_CHECKING
from weakref import WeakSet

from v4kernels import native

from v4cli.errors import ResourceError
from v4cli.experts.slots import ExpertStream
from v4cli.model.config import V4Config
from v4cli.plan import cost, memory
from v4cli.plan.budget import CONTEXT, Residence
from v4cli.plan.ledger import Ledger
from v4cli.plan.placement import PINNED_KV, Plan

if TYPE_CHECKING:
    from v4cli.engine.engine import Engine
    from v4cli.engine.session import Session
    from v4cli.experts.split import Split


class Account:
    """Of one engine, and of the RAM: what lies on a card is not its affair. Without a `place` nothing is refused."""

    def __init__(
        self,
        config: V4Config,
        place: Residence | None,
        stream: ExpertStream | None,
        bank: "Split | None" = None,
        drafting: int = 0,
    ):
        """`bank`: rests before anything is done to the stream. `drafting`: bytes that a draft model keeps for a
        session."""
        self.config, self.place, self.stream, self.bank = config, place, stream, bank
        self.sessions: WeakSet[Session] = WeakSet()
        self.lock = threading.RLock()  # of pledges and of all rewind points
        self._point = memory.most_point_bytes(config)
        self._beside_kv = memory.logits_bytes(config) + drafting  # of each session
        self._most = 1  # sessions at a time, so far
        self._longest = CONTEXT  # tokens of one, so far

    @property
    def points(self) -> int:
        """Rewind points that a session may keep."""
        return self.place.plan.points if self.place else memory.POINTS

    def open(self, session: "Session") -> None:
        """A new session. ResourceError where not even an empty one fits."""
        with self.lock:
            self.sessions.add(session)
            try:
                self.pledge(session, 0)
            except ResourceError:
                self.sessions.discard(session)
                raise

    def pledge(self, session: "Session", n_tokens: int) -> None:
        """The session is about to hold n_tokens. Experts are to give way, then rewind points go, those first that cost
        least to do without. ResourceError if that would not be enough: all sessions are as they were."""
        if self.place is None:
            return
        with self.lock:
            before = session.pledged, self._most, self._longest
            kv = self._kv(self.place.plan, session.kv_dir is not None, n_tokens)
            session.pledged = kv + self._beside_kv
            self._most = max(self._most, len(self.sessions))
            self._longest = max(self._longest, n_tokens)
            missing = -self._planned(self.place, 0).free
            if missing > 0:
                session.pledged, self._most, self._longest = before
                raise self._full(missing, n_tokens)
            while self._planned(self.place, self._kept()).free < 0:
                max(self.sessions, key=lambda session: len(session.points)).drop_point()

    def fits(self, n_tokens: int, on_disk: bool) -> bool:
        """Whether the budget holds a session of so many tokens, if there is no other; `on_disk`: its entries are."""
        if self.place is None:
            return True
        kv = self._kv(self.place.plan, on_disk, n_tokens) + self._beside_kv
        scratch = max(self.place.ledger.scratch, cost.scratch_bytes(self.config, n_tokens, 1))
        return self.place.ledger.with_sessions(kv, self._point, scratch).free >= 0

    def _kv(self, plan: Plan, on_disk: bool, n_tokens: int) -> int:
        """Bytes of KV state that a session has in RAM at n_tokens."""
        if plan.on_card:
            return memory.chosen_bytes(self.config, n_tokens) if PINNED_KV in plan.ram.holds else 0
        return memory.timeline_bytes(self.config, n_tokens, on_disk)

    def _kept(self) -> int:
        """Bytes of all rewind points."""
        return sum(point.nbytes for session in self.sessions for point in session.points)

    def _planned(self, place: Residence, kept: int) -> Ledger:
        """With everything that is pledged, and so many bytes of rewind points beside one in hand for every session."""
        kv = sum(session.pledged for session in self.sessions)
        scratch = cost.scratch_bytes(self.config, self._longest, self._most)
        points = kept + len(self.sessions) * self._point
        return place.ledger.with_sessions(kv, points, max(place.ledger.scratch, scratch))

    def _full(self, missing: int, n_tokens: int) -> ResourceError:
        assert self.place is not None
        budget, others = self.place.ledger.budget, len(self.sessions) - 1
        beside = f" beside {others} other session{'s' * (others > 1)}" if others else ""
        what = f"{n_tokens:,} tokens of context" if n_tokens else "another session"
        ways = ["fewer sessions at a time (--jobs)", "a shorter context"]
        ways += [] if self.place.plan.on_card else ["--kv-dir"]
        return ResourceError(
            f"no memory for {what}{beside} within {budget >> 20} MiB",
            f"--ram {self._enough(budget + missing) >> 20}M, {', '.join(ways[:-1])}, or {ways[-1]}",
        )

    def _enough(self, budget: int) -> int:
        """A budget, in whole MiB, that holds what this one would with no more experts than have to be: within it all
        experts may lie in memory from the start, and then none of them gives way."""
        budget = -(-budget >> 20) << 20
        if self.stream is None or self.place is None:
            return budget
        ledger = self.place.ledger
        experts = len(self.stream.reader.files) * ledger.slot
        at_first = ledger.held - ledger.staging - (ledger.slots - ledger.spare) * ledger.slot
        return budget if at_first + experts > budget else -(-(budget - ledger.staging + experts) >> 20) << 20

    def settle(self) -> None:
        """Between two steps: experts give way to what is pledged."""
        if self.place is None or self.stream is None:
            return
        with self.lock:
            slots = self._planned(self.place, self._kept()).slots
        if slots < self.stream.n_slots:
            if self.bank:
                self.bank.rest()
            self.stream.shrink(slots)

    def held(self, engine: "Engine") -> Ledger | None:
        """What is really held of the RAM, as its owners say; of the runtime, and of experts that files hold, what was
        planned. None without a budget."""
        if self.place is None:
            return None
        planned, placed, model = self.place.ledger, engine.placed, engine.model
        with self.lock:
            kv = sum(session.kv_nbytes for session in self.sessions)
            points = self._kept()
        parts = (model.ops, model.bank)
        working = placed.working if placed else sum(getattr(part, "nbytes", 0) for part in parts)
        return Ledger(
            budget=planned.budget,
            weights=engine.weights or planned.weights,
            scratch=working + native.library().v4k_scratch_peak(),
            slot=planned.slot,
            slots=self.stream.n_slots if self.stream else planned.slots,
            spare=planned.spare,
            staging=planned.staging,
            kv=kv,
            points=points,
            pinned=placed.pinned if placed else 0,
        )
