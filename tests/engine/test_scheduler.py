"""Steps shared by sessions in threads: company changes nothing, and what goes wrong hits only whose it is."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from v4kernels import native

from v4cli.engine.engine import Engine
from v4cli.engine.generation import generation
from v4cli.engine.sampler import Sampling
from v4cli.errors import ModelError

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the kernel library")
IDS = np.random.default_rng(5).integers(0, 256, 4000).tolist()


@pytest.fixture
def engine(made):
    return Engine.open(made, "cpu")


def answer(engine, number: int, n_tokens: int = 12):
    """Tokens and log-probabilities after a prompt of its own length."""
    session = engine.session()
    session.sync(IDS[number : number + 150 + 37 * number])
    steps = list(session.generate(Sampling(temperature=1.0, seed=number), n_tokens))
    return [(step.token, step.logprob) for step in steps], session.logits.tobytes()


def together(n: int, work) -> list:
    """Results of n threads that begin at once."""
    start = threading.Barrier(n)

    def begin(number: int):
        start.wait()
        return work(number)

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(begin, range(n)))


def rows_of_steps(engine, monkeypatch) -> list[list[int]]:
    """Rows by timeline of every step from now on."""
    steps, forward = [], engine.model.forward

    def noted(feeds, *more):
        steps.append([len(ids) for ids, _ in feeds])
        return forward(feeds, *more)

    monkeypatch.setattr(engine.model, "forward", noted)
    return steps


def test_eight_sessions_get_the_bits_that_each_gets_alone(engine, monkeypatch):
    alone = [answer(engine, number) for number in range(8)]
    steps = rows_of_steps(engine, monkeypatch)
    assert together(8, lambda number: answer(engine, number)) == alone
    assert max(map(len, steps)) > 1, "no step was shared"
    assert all(sum(rows > 16 for rows in step) <= 1 for step in steps), "one slice of a prefill at a time"


def driven(engine, number: int, take=lambda step: False, n_tokens: int = 12):
    """The same answer, whose tokens are taken by whoever computes."""
    session, said = engine.session(), []
    session.sync(IDS[number : number + 150 + 37 * number])

    def taken(step) -> bool:
        said.append((step.token, step.logprob))
        return take(session)

    engine.scheduler.drive(generation(session, Sampling(temperature=1.0, seed=number), n_tokens), taken)
    return said, session.logits.tobytes()


def test_driven_sessions_get_the_same_beside_those_that_are_not(engine, monkeypatch):
    alone = [answer(engine, number) for number in range(8)]
    steps = rows_of_steps(engine, monkeypatch)
    assert together(8, lambda number: (driven if number % 2 else answer)(engine, number)) == alone
    assert max(map(len, steps)) > 1, "no step was shared"


def test_what_goes_wrong_in_a_driven_session_is_raised_in_its_own_thread(engine):
    """Wherever it was computed; the others go on, and so can it."""
    alone = [answer(engine, number) for number in range(3)]

    def fails(session) -> bool:
        if len(session.tokens) > 160:
            raise MemoryError(threading.current_thread().name)
        return False

    def work(number: int):
        if number:
            return driven(engine, number)
        with pytest.raises(MemoryError):
            driven(engine, 0, fails)
        return answer(engine, 0)

    assert together(3, work) == alone
    assert engine.scheduler._active == engine.scheduler._decoding == 0


def test_a_driven_session_ends_where_enough_was_taken_and_can_be_copied_there(engine):
    """A copy is made by the thread that computes, and may be made of one that goes on."""
    twins = []

    def take(session) -> bool:
        if len(session.tokens) == 153:
            twins.append(session.fork())
        return len(session.tokens) == 155

    said, _ = together(2, lambda number: driven(engine, 0, take) if not number else driven(engine, 1))[0]
    whole, _ = answer(engine, 0)
    assert said == whole[:6], "the token that was enough is not fed"
    [twin] = twins
    rest = [step.token for step in twin.generate(Sampling(temperature=1.0, seed=0), 9)]
    assert rest == [token for token, _ in whole[3:]]


def test_a_driven_session_ends_when_it_is_cancelled(engine):
    session, stop = engine.session(), threading.Event()
    session.sync(IDS[:100])

    def take(step) -> bool:
        stop.set()
        return False

    engine.scheduler.drive(generation(session, Sampling(temperature=0.0), 12, cancelled=stop.is_set), take)
    assert session.tokens[:100] == IDS[:100] and session.state.n_tokens == len(session.tokens) < 102


def test_a_step_that_fails_fails_for_whom_it_must(engine, monkeypatch):
    """Where it cannot be known whose rows are to blame, each is tried alone."""

    def fed_one_by_one(number: int) -> bytes:
        session = engine.session()
        for token in IDS[number : number + 40]:
            session.feed([token])
        return session.logits.tobytes()

    def prefilled() -> str:
        with pytest.raises(ModelError) as caught:
            engine.session().sync(IDS)
        return str(caught.value)

    begin, failed = engine.model.bank.begin, []

    def failing(layer, x, routing, streams):
        if layer == 2 and x.rows > 100:
            failed.append(x.rows)
            raise ModelError("an expert that cannot be read")
        return begin(layer, x, routing, streams)

    alone = [fed_one_by_one(number) for number in range(3)]
    monkeypatch.setattr(engine.model.bank, "begin", failing)
    done = together(4, lambda number: fed_one_by_one(number) if number < 3 else prefilled())
    assert done == [*alone, "an expert that cannot be read"] and failed


def test_ctrl_c_in_a_shared_step_ends_one_session_only(engine, monkeypatch):
    """Whose thread computes is interrupted; the others' rows are computed again, from where they were."""
    alone = [answer(engine, number) for number in range(3)]
    shared, interrupted = engine.model.ops.shared_expert, threading.Event()
    victims = []

    def pressed(layer, x):
        if layer == 2 and 1 < x.rows < 16 and not interrupted.is_set():
            interrupted.set()
            victims.append(threading.get_ident())
            raise KeyboardInterrupt
        return shared(layer, x)

    monkeypatch.setattr(engine.model.ops, "shared_expert", pressed)

    def work(number: int):
        try:
            return answer(engine, number)
        except KeyboardInterrupt:
            return threading.get_ident()

    done = together(3, work)
    assert interrupted.is_set(), "no step was shared"
    assert sum(result in victims for result in done) == 1
    assert all(result in (*victims, alone[number]) for number, result in enumerate(done))


def test_a_short_question_does_not_wait_for_a_long_prefill(engine, monkeypatch):
    """Prefills take turns: of two, neither is computed as a whole before the other."""
    steps = rows_of_steps(engine, monkeypatch)
    order = []

    def work(number: int):
        engine.session().sync(IDS if number else IDS[:600])
        order.append(number)

    together(2, work)
    assert order[0] == 0, "the short one is served first"
    assert sum(map(sum, steps)) == len(IDS) + 600


def test_who_gives_up_while_others_compute_leaves_its_timeline_as_it_was(engine):
    session, other = engine.session(), engine.session()
    session.sync(IDS[:100])
    before = session.logits.tobytes()
    stop = threading.Event()
    thread = threading.Thread(target=lambda: other.sync(IDS, cancelled=stop.is_set))
    thread.start()
    assert not session.sync(IDS[:1000], cancelled=lambda: True)
    stop.set()
    thread.join()
    assert session.tokens == IDS[:100] and session.logits.tobytes() == before
    assert session.state.n_tokens == 100 and other.state.n_tokens == len(other.tokens)
    assert session.sync(IDS[:120]) and session.stats.cached_tokens == 100
