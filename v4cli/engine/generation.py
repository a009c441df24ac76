"""Tokens after a prompt: each is sampled, told, and fed with what is guessed to come next. What that takes of the model
is asked for as jobs, so that it is the same whoever computes them.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from v4cli.engine.fault import failures_told
from v4cli.engine.jobs import Job, Work
from v4cli.engine.sampler import Sampler, Sampling, top_logprobs
from v4cli.errors import ModelError, ResourceError, UsageError
from v4cli.experts.slots import Counts

if TYPE_CHECKING:
    from v4cli.engine.session import Session

Computed = Generator[Job, Job | None, Job | None]


@dataclass(frozen=True)
class Step:
    """One generated token; `finish` is "stop" at a stop token, "length" at the limit, else None. `likeliest`: as many
    tokens as were asked for that were so at its place, with their log-probabilities."""

    token: int
    logprob: float
    finish: str | None
    likeliest: tuple[tuple[int, float], ...] = ()


def generation(
    session: "Session",
    sampling: Sampling,
    max_tokens: int,
    stop_tokens: Sequence[int] = (),
    cancelled: Callable[[], bool] = lambda: False,
    allowed: Callable[[Sequence[int]], np.ndarray | None] | None = None,
    n_likeliest: int = 0,
) -> Work[Step]:
    """Up to `max_tokens` tokens after a sync. A token is fed only when the next one is asked for. ResourceError where
    the memory that may be used holds no more: what was said so far stays.

    `allowed(tokens)`: (vocab,) bool, what may follow the tokens sampled so far; None if anything may.
    """
    if session.logits is None:
        raise UsageError("nothing to continue: sync the session to a prompt first")
    sampler, start_at, stats, session.counts = Sampler(sampling), len(session.tokens), session.stats, Counts()
    stats.completion_tokens, stats.decode_s = 0, 0.0
    session.drafting.begin(session.engine.drafts, sampler)
    with session.engine.scheduler.busy(decoding=True), _counted(session):
        for count in range(1, max_tokens + 1):
            if cancelled():
                return
            start = time.monotonic()
            open_to = allowed(session.tokens[start_at:]) if allowed else None
            token, logprob = sampler.pick(session.logits, len(session.tokens), open_to)
            finish = "stop" if token in stop_tokens else "length" if count == max_tokens else None
            stats.completion_tokens = count
            stats.decode_s += time.monotonic() - start
            likeliest = tuple(top_logprobs(session.logits, n_likeliest)) if n_likeliest else ()
            yield Step(token, logprob, finish, likeliest)
            if finish:
                return
            start = time.monotonic()
            if not (yield from _feed(session, token, max_tokens - count, cancelled)):
                return
            stats.decode_s += time.monotonic() - start


def _feed(session: "Session", token: int, left: int, cancelled: Callable[[], bool]) -> Generator[Job, Job | None, bool]:
    """Go on with a token that was sampled, `left` more of which may follow: where that was guessed, it is computed
    already; else compute it, and verify what is guessed to come next. False if cancelled."""
    ahead, drafting, engine = session.ahead, session.drafting, session.engine
    drafting.decide(token)
    if ahead and ahead.token == token:
        assert ahead.job.logits is not None
        if ahead.job.features is not None:
            drafting.fed(len(session.tokens), ahead.job.features[ahead.i : ahead.i + 1])
        session.tokens.append(token)
        session.state.again(len(session.tokens))
        session.logits, session.ahead = ahead.job.logits[ahead.i], ahead.rest()
        engine.scheduler.confirm(ahead.job, ahead.i)
        return True
    room = engine.config.max_position_embeddings - len(session.tokens) - 1
    most = min(engine.most_drafts, left - 1, room)
    drafts = drafting.propose(session.tokens, token, most, session.beside)
    done = yield from _verified(session, token, drafts, cancelled)
    if done is None:
        return False
    session.beside = done.beside
    drafting.stepped(done.seconds)
    return True


def _verified(session: "Session", token: int, drafts: list[int], cancelled: Callable[[], bool]) -> Computed:
    """Guesses that cannot be computed, or not held, are no reason to end an answer."""
    if drafts:
        try:
            return (yield from _computed(session, session.job([token, *drafts], True, cancelled, len(drafts))))
        except (ModelError, ResourceError):
            session.drafting.drop()
    return (yield from _computed(session, session.job([token], cancelled=cancelled)))


def _computed(session: "Session", job: Job) -> Computed:
    with failures_told():
        done = yield job
    return session.fed(done)


@contextmanager
def _counted(session: "Session") -> Iterator[None]:
    """Within: tokens are generated; what that took is told by the stats."""
    stats = session.stats
    try:
        yield
    finally:
        session.forget_drafts()
        stats.drafts = session.drafting.done
        session.say_memory()
        stats.decode_experts = session.counts.to_dict() if session.engine.counts() else None
        fed, seconds = stats.completion_tokens - 1, stats.decode_s
        stats.reached = session.engine.reached(session.counts, fed, seconds, len(session.tokens))
