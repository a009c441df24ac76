"""One timeline of tokens. A caller hands `Session.sync` the full list of tokens it wants to be at; the session takes up
the longest prefix it has in memory or finds on disk, and prefills the rest. `Session.generate` then yields tokens.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v4cli.engine.draft import Drafter, NGram
from v4cli.engine.drafting import Drafting
from v4cli.engine.fault import failures_told
from v4cli.engine.generation import Step, generation
from v4cli.engine.head import HeadDrafter
from v4cli.engine.jobs import Ahead, Job
from v4cli.engine.sampler import Sampling
from v4cli.engine.stats import Stats
from v4cli.errors import Interrupted, ResourceError, SnapshotError, UsageError
from v4cli.experts.slots import Counts
from v4cli.interrupts import wished
from v4cli.prefixes.prefixes import Prefixes, Snapshot

if TYPE_CHECKING:
    from v4cli.engine.engine import Engine

WORTH_S = 1.0  # of computing: what takes less is not stored
SPACING = 16384  # tokens: a long prefill is stored about this often on the way,
SPACING_S = 60.0  # and after so many seconds of computing


class Session:
    """The tokens fed so far, the model's state after them, and the logits of the last one."""

    def __init__(
        self, engine: "Engine", kv_dir: Path | None = None, prefixes: Prefixes | None = None, worth_s: float = WORTH_S
    ):
        """`kv_dir`: keep entries in a file there. `prefixes`: where computed prefixes are found and stored.

        `worth_s`: seconds of computing that are worth storing. ResourceError without room.
        """
        self.engine, self.kv_dir, self.prefixes, self.worth_s = engine, kv_dir, prefixes, worth_s
        self.tokens: list[int] = []
        self.state = engine.model.new_state(kv_dir)
        self.logits: np.ndarray | None = None  # (vocab,) fp32 after the last token
        self.points = [self.state.checkpoint()]  # in order, the start always; others go where memory is short
        self.pledged = 0  # bytes that `engine.account` keeps for it, points not counted
        self._in_ram = self.state.nbytes if kv_dir else None  # what does not go to the file
        self.stored: list[Snapshot] = []  # those this timeline passes through
        self.unsaved_s = 0.0  # of computing since the last of them
        self.title = ""
        self.notes: list[str] = []  # what went wrong with stored prefixes, for people
        self.counts = Counts()  # of experts on demand, since the last sync or generate began
        self.ahead: Ahead | None = None
        self.beside = 0  # rows of others in the last step
        drafters: list[Drafter] = [NGram()]
        if engine.model.head:
            layers = engine.config.num_hidden_layers
            drafters.append(HeadDrafter(engine.model.head, layers, engine.scheduler.between_steps))
        self.drafting = Drafting(engine.scheduler.costs, drafters)
        self.stats = Stats(load_s=engine.load_s, planned_bytes=engine.place.ledger.held if engine.place else 0)

    # -- being at some tokens ---------------------------------------------------------------------------------

    def sync(
        self,
        tokens: Sequence[int],
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        anchors: Sequence[int] = (),
    ) -> bool:
        """Be at exactly `tokens`, with logits for the next one; False if cancelled on the way (work is kept).

        `progress(done, total)` is called after every chunk with prompt tokens in place. `anchors`: numbers of tokens
        after which other prompts may go on differently; what is computed up to there is stored for them.
        """
        tokens = self.checked(tokens)
        start, self.counts = time.monotonic(), Counts()
        self._take_up(tokens)
        common = len(self.tokens)
        self.stats.prompt_tokens, self.stats.cached_tokens = len(tokens), common
        stops = sorted(anchor for anchor in anchors if common < anchor < len(tokens))
        scheduler = self.engine.scheduler
        with scheduler.busy(decoding=False):
            while len(self.tokens) < len(tokens) and not cancelled():
                at = len(self.tokens)
                whole = (at // scheduler.chunk + 1) * scheduler.chunk
                end = min(whole, at + scheduler.slice_rows(), len(tokens), *stops[:1])
                is_last = self.drafting.is_in_window(len(tokens) - end)
                if self._run(tokens[at:end], cancelled=cancelled, watched=is_last) is None:
                    break
                if end in (whole, len(tokens), *stops[:1]):
                    self._mark()
                if progress:
                    progress(end, len(tokens))
                if end in stops or end // SPACING > at // SPACING or self.unsaved_s > SPACING_S:
                    self.keep()
                stops = [anchor for anchor in stops if anchor > end]
        if len(self.tokens) > common:
            self.keep()
        self.stats.prefill_tokens = len(self.tokens) - common
        self.stats.prefill_s = time.monotonic() - start
        self.stats.prefill_experts = self.counts.to_dict() if self.engine.counts() else None
        self.say_memory()
        return len(self.tokens) == len(tokens)

    def _take_up(self, tokens: list[int]) -> None:
        """Be at the longest prefix of `tokens` that needs no computing, from memory or from disk."""
        self.forget_drafts()
        common = next((i for i, (a, b) in enumerate(zip(self.tokens, tokens)) if a != b), None)
        common = min(len(self.tokens), len(tokens)) if common is None else common
        if common == len(self.tokens) and (common < len(tokens) or self.logits is not None):
            here = common  # go on from here, or nothing to do
        else:
            here = self._nearest(min(common, len(tokens) - 1))
        self.stats.restored_tokens = 0
        found = self.prefixes.longest(tokens, here) if self.prefixes else None
        if here < len(self.tokens):
            self._go_back(here)
        if self.prefixes and found is not None:
            self._load(self.prefixes, found, tokens)

    def _load(self, prefixes: Prefixes, snapshot: Snapshot, tokens: list[int]) -> None:
        """Take up a stored prefix; one that cannot be used is named in `notes` and deleted. ResourceError."""
        self.make_room(snapshot.n_tokens)
        try:
            self.logits = prefixes.load(snapshot, self.state, self.state.n_tokens)
            if len(self.logits) != self.engine.config.vocab_size:
                raise SnapshotError(f"{snapshot.path}: does not fit this model", snapshot.path)
        except SnapshotError as error:
            self.notes.append(f"{error}; computing it again")
            with suppress(OSError):
                (error.path or snapshot.path).unlink()
            with self.engine.account.lock:
                self.state.restore(self.points[-1])
                self.tokens, self.logits = self.tokens[: self.points[-1].n_tokens], None
            self.drafting.back(len(self.tokens))
            return
        self.tokens = tokens[: snapshot.n_tokens]
        self._mark()
        self.stored.append(snapshot)
        self.unsaved_s = 0.0
        self.stats.restored_tokens = snapshot.n_tokens

    def _nearest(self, n_tokens: int) -> int:
        """The largest number of tokens up to n_tokens that `_go_back` can be given."""
        if self.state.can_go_back(n_tokens):
            return n_tokens
        with self.engine.account.lock:
            return max(point.n_tokens for point in self.points if point.n_tokens <= n_tokens)

    def _go_back(self, n_tokens: int) -> None:
        """Be at n_tokens again: by moving the cursor, or at the point there; further back if that has gone since."""
        with self.engine.account.lock:
            self.forget_drafts()
            n_tokens = self._nearest(n_tokens)
            while self.points[-1].n_tokens > n_tokens:
                self.points.pop()
            if not self.state.back(n_tokens):
                self.state.restore(self.points[-1])
        self.stored = [snapshot for snapshot in self.stored if snapshot.n_tokens <= n_tokens]
        del self.tokens[n_tokens:]
        self.drafting.back(n_tokens)
        self.logits = None

    def feed(self, tokens: Sequence[int], all_logits: bool = False) -> np.ndarray:
        """Run tokens through the model: logits of the last, or (T, vocab) of all. All or nothing on error.

        ModelError if they, or what any of the tokens leaves for later ones, are not finite; ResourceError where the
        memory that may be used does not hold them; Interrupted where a signal wishes for an early end.
        """
        done = self._run(tokens, all_logits)
        if done is None or done.logits is None:
            raise Interrupted("interrupted")
        return done.logits if all_logits else done.logits[-1]

    def _run(
        self,
        tokens: Sequence[int],
        all_logits: bool = False,
        cancelled: Callable[[], bool] = lambda: False,
        watched: bool = True,
    ) -> Job | None:
        """The job done; None if cancelled on the way, or where a signal wishes for an early end. `watched`: a draft
        model may want to know of these tokens."""
        job = self.job(tokens, all_logits, cancelled, watched=watched)
        with failures_told():
            return self.fed(self.engine.scheduler.run(job))

    def job(
        self,
        tokens: Sequence[int],
        all_logits: bool = False,
        cancelled: Callable[[], bool] = lambda: False,
        n_drafts: int = 0,
        watched: bool = True,
    ) -> Job:
        """That the tokens be computed, the last n_drafts of which are guesses. ResourceError where the budget does not
        hold them."""
        self.ahead = None
        self.engine.account.pledge(self, len(self.tokens) + len(tokens))
        watched = watched and self.drafting.wants_features
        return Job(tokens, self.state, all_logits, lambda: wished() or cancelled(), n_drafts, watched)

    def fed(self, done: Job | None) -> Job | None:
        """Be behind its tokens, where it was not cancelled. With guesses the session is where it would be without, and
        they are ahead."""
        if done is None:
            return None
        tokens, n_drafts = done.ids, done.n_drafts
        assert done.logits is not None
        n_sure = len(tokens) - n_drafts
        self.drafting.fed(len(self.tokens), None if done.features is None else done.features[:n_sure], done.noting_s)
        self.tokens.extend(tokens[:n_sure])
        self.logits = done.logits[-1 - n_drafts]
        if n_drafts:
            self.state.back(len(self.tokens))
            self.ahead = Ahead(done, n_sure)
        self.unsaved_s += done.seconds * len(tokens) / (len(tokens) + done.beside)
        self.counts = self.counts.plus(done.counts)
        return done

    @property
    def kv_nbytes(self) -> int:
        """Bytes of RAM taken, rewind points not counted."""
        state = self.engine.kv_in_ram(self.state) if self._in_ram is None else self._in_ram
        ahead = self.ahead.job.logits if self.ahead else self.logits
        return state + (0 if ahead is None else ahead.nbytes) + self.drafting.nbytes

    def make_room(self, n_tokens: int) -> None:
        """Room for the state of n_tokens that no step computes. ResourceError where the budget does not hold it."""
        self.engine.account.pledge(self, n_tokens)
        with self.engine.scheduler.between_steps():
            self.engine.account.settle()

    def fork(self) -> "Session":
        """An independent session at the same place. ResourceError."""
        twin = self.engine.session(self.kv_dir, self.prefixes, self.worth_s)
        twin.make_room(len(self.tokens))
        twin.tokens = list(self.tokens)
        twin.state = self.state.fork()
        twin.logits = self.logits
        twin.stored = list(self.stored)
        with self.engine.account.lock:
            twin.points = list(self.points)
        twin.title, twin.unsaved_s = self.title, self.unsaved_s
        return twin

    def is_worth_keeping(self, worth_s: float | None = None) -> bool:
        """Whether `keep` would store something."""
        worth_s = self.worth_s if worth_s is None else worth_s
        return self.prefixes is not None and self.logits is not None and self.unsaved_s >= worth_s

    def keep(self, worth_s: float | None = None) -> Snapshot | None:
        """Store this place for later, if the computing since the last one is worth it; what hinders goes to `notes`."""
        if self.prefixes is None or self.logits is None or not self.is_worth_keeping(worth_s):
            return None
        if not self.engine.unchanged():
            self.notes.append("not stored: the model's files changed while in use")
            self.unsaved_s = 0.0
            return None
        about = {"title": self.title, "after": self.stored[-1].id if self.stored else ""}
        try:
            snapshot = self.prefixes.save(self.tokens, self.state, self.state.checkpoint(), self.logits, about)
        except (SnapshotError, OSError) as error:
            self.notes.append(f"not stored: {getattr(error, 'strerror', None) or error}")
            self.unsaved_s = 0.0
            return None
        self.stored.append(snapshot)
        self.unsaved_s = 0.0
        return snapshot

    def _mark(self) -> None:
        """Remember this place; of too many, drop the one that costs least to do without."""
        point = self.state.checkpoint()
        with self.engine.account.lock:
            if self.points[-1].n_tokens != point.n_tokens:
                self.points.append(point)
            while len(self.points) - 1 > self.engine.account.points:
                self.drop_point()

    def drop_point(self) -> None:
        """Do without the rewind point that costs least, the last one at last, never the start. What is lost is time:
        going back there computes again what lies behind the point before it. Under `engine.account.lock`."""
        n = [point.n_tokens for point in self.points]
        # Spacing may grow with the distance from the end: far rewinds are rare.
        cost = [(n[i + 1] - n[i - 1]) / (n[-1] - n[i - 1]) for i in range(1, len(n) - 1)]
        if len(n) > 1:
            del self.points[1 + cost.index(min(cost)) if cost else 1]

    def checked(self, tokens: Sequence[int]) -> list[int]:
        """Tokens as ints; UsageError if none or outside the vocabulary, ResourceError if beyond the context."""
        tokens = [int(token) for token in tokens]
        vocab, limit = self.engine.config.vocab_size, self.engine.config.max_position_embeddings
        if not tokens:
            raise UsageError("the prompt is empty")
        if len(tokens) > limit:
            raise ResourceError(f"{len(tokens)} tokens exceed the model's context of {limit}")
        bad = next((token for token in tokens if not 0 <= token < vocab), None)
        if bad is not None:
            raise UsageError(f"token id {bad} is outside the vocabulary of {vocab}")
        return tokens

    # -- going on ---------------------------------------------------------------------------------------------

    def generate(
        self,
        sampling: Sampling,
        max_tokens: int,
        stop_tokens: Sequence[int] = (),
        cancelled: Callable[[], bool] = lambda: False,
        allowed: Callable[[Sequence[int]], np.ndarray | None] | None = None,
        n_likeliest: int = 0,
    ) -> Iterator[Step]:
        """Up to `max_tokens` tokens after a sync, as `generation` says, computed when they are asked for."""
        work = generation(self, sampling, max_tokens, stop_tokens, cancelled, allowed, n_likeliest)
        return self.engine.scheduler.steps(work)

    def forget_drafts(self) -> None:
        """What was guessed is of no use any more."""
        self.ahead = None
        self.drafting.drop()

    def say_memory(self) -> None:
        self.stats.kv_bytes, self.stats.memory = self.state.nbytes, self.engine.memory()
        self.stats.vram = self.engine.vram()
