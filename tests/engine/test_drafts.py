"""Drafts change what a step computes, and nothing else: tokens, logits, states and what policies learn are those of
plain decoding, to the bit, whatever is guessed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny
from guessing import guess, pieces
from v4kernels import native

from v4cli.engine.engine import Engine
from v4cli.engine.sampler import Sampling
from v4cli.errors import ModelError, UsageError
from v4cli.plan import cost
from v4cli.plan.budget import CONTEXT
from v4cli.plan.placement import LEAST_POINTS, Budget, shortage
from v4cli.store.store import Store

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the kernel library")
IDS = np.random.default_rng(3).integers(0, 512, 900).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("drafts")
    return tiny.make_store(tiny.random_checkpoint(home / "source", tiny.STORE_LIKE), home / "store")


def budget(folder: Path, n_experts: int) -> int:
    """Bytes of RAM that hold the least and so many experts."""
    store = Store.open(folder)
    needs = cost.at_context(cost.needs(store.config, cost.stored_tensors(store.trunk)), store.config, CONTEXT)
    return shortage(needs, Budget(0, 0, 1, 1, 1)) + (17 - LEAST_POINTS) * needs.point + n_experts * needs.slot


def opened(folder: Path, ram: bool) -> Engine:
    engine = Engine.open(folder, "cpu", ram=budget(folder, 8) if ram else None)
    assert bool(engine.stream) == ram
    engine.drafts = "off"
    return engine


@pytest.fixture(scope="module")
def engines(folder) -> dict[bool, Engine]:
    return {ram: opened(folder, ram) for ram in (False, True)}


def here(session) -> list:
    """All that a session is at a place, as bytes."""
    state = session.state
    whole = state.n_tokens // 128 * 128
    arrays = state.checkpoint().arrays | {f"entries {k}": v for k, v in state.entries(0, whole).items()}
    assert state.n_tokens == len(session.tokens)
    return [list(session.tokens), session.logits.tobytes(), {name: array.tobytes() for name, array in arrays.items()}]


class Story:
    """A random conversation: prompts, answers cut short or not, ways back."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.turns = []
        for _ in range(int(rng.integers(1, 4))):
            sampling = Sampling(float(rng.choice([0.0, 0.7, 1.5])), 0.9, 40, 0.0, int(rng.integers(1 << 30)))
            # prompt, rewind, most tokens, where it is stopped, share of the vocabulary that is allowed
            self.turns.append(
                (*(int(rng.integers(*ends)) for ends in ((1, 200), (0, 20), (1, 50), (1, 60))), rng.choice([0.0, 0.3]),
                 sampling)
            )  # fmt: skip

    def tell(self, session, prepare=lambda session, turn: None) -> list:
        """Everything that happens."""
        told, tokens = [], []
        for turn, (prompt, rewind, most, stop, share, sampling) in enumerate(self.turns):
            tokens = tokens[: max(len(tokens) - rewind, 0)] + IDS[turn * 200 : turn * 200 + prompt]
            session.sync(tokens)
            prepare(session, turn)
            asked: list[list[int]] = []

            def allowed(said, asked=asked, share=share):
                asked.append(list(said))
                return np.random.default_rng(sum(said)).random(512) > share if share else None

            for count, step in enumerate(session.generate(sampling, most, (7,), allowed=allowed), 1):
                told.append((step.token, step.logprob, step.finish, None if count % 7 else here(session)))
                tokens = [*session.tokens, step.token]
                if count == stop:
                    break
            told.append((asked, here(session)))
        return told


def with_drafts(engine: Engine, story: Story, plain: list, seed: int) -> tuple[list, list]:
    """The same story, drafts of what it was, and those who made them."""
    session, rates = engine.session(), np.random.default_rng(seed).random(len(story.turns))
    ends = [event[1][0] for event in plain if len(event) == 2]
    engine.drafts, guessers = "auto", []

    def prepare(session, turn: int) -> None:
        guessers.append(guess(session, [*ends[turn], 0, 0], rates[turn], seed))

    try:
        return story.tell(session, prepare), guessers
    finally:
        engine.drafts = "off"


@pytest.mark.parametrize("seeds", pieces(2), ids=str)
def test_random_conversations_are_those_without_drafts_to_the_bit(engines, seeds):
    accepted = rejected = 0
    for seed in seeds:
        engine, story = engines[seed % 4 == 0], Story(seed)
        plain = story.tell(engine.session())
        done, guessers = with_drafts(engine, story, plain, seed)
        assert done == plain, seed
        accepted += sum(right for guesser in guessers for _, right in guesser.told)
        rejected += sum(not right for guesser in guessers for _, right in guesser.told)
    assert accepted > 5 * len(seeds) < rejected


def test_drafts_save_steps(engines):
    engine = engines[False]
    session = engine.session()
    session.sync(IDS[:100])
    plain = [step.token for step in session.generate(Sampling(0.0), 80)]
    engine.drafts, again = "auto", engine.session()
    again.sync(IDS[:100])
    guesser = guess(again, IDS[:100] + plain, 1.0)
    assert [step.token for step in again.generate(Sampling(0.0), 80)] == plain
    engine.drafts, done = "off", again.drafting.done
    assert done.accepted == done.verified > 50 and done.steps == 79 - done.accepted
    assert all(right for _, right in guesser.told)


def test_policies_learn_what_plain_decoding_teaches_them(folder):
    learned = []
    plain: list = []
    for right in (None, 0.6):
        engine = opened(folder, True)
        session = engine.session()
        session.sync(IDS[:150])
        if right is not None:
            engine.drafts = "auto"
            guess(session, IDS[:150] + plain, right, 5)
        said = [step.token for step in session.generate(Sampling(0.0), 40)]
        plain = plain or said
        assert said == plain
        engine.scheduler.settle()
        learned.append({name: array.tobytes() for name, array in engine.stream.policy.learned().items()})
        assert engine.stream.policy.n_resident <= engine.stream.policy.places
    assert learned[0] == learned[1]


def test_sessions_together_with_drafts_get_what_each_gets_alone_without(engines):
    engine = engines[True]

    def answer(number: int, truth=None):
        session = engine.session()
        session.sync(IDS[number : number + 40 + 25 * number])
        if truth:
            guess(session, session.tokens + truth, 0.3 * number, number)
        steps = session.generate(Sampling(1.0 * (number % 2), seed=number), 12)
        return [(step.token, step.logprob) for step in steps], here(session)

    alone = [answer(number) for number in range(4)]
    engine.drafts = "auto"
    truths = [[token for token, _ in steps] for steps, _ in alone]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, range(4), truths)) == alone
    engine.drafts = "off"


def test_guesses_that_cannot_be_computed_end_no_answer(engines, monkeypatch):
    engine = engines[False]
    session = engine.session()
    session.sync(IDS[:60])
    plain = [step.token for step in session.generate(Sampling(0.0), 30)]
    begin, failed = engine.model.bank.begin, []

    def failing(layer, x, routing, streams):
        if 1 < x.rows < 17 and layer == 2:
            failed.append(x.rows)
            raise ModelError("an expert that cannot be read")
        return begin(layer, x, routing, streams)

    again = engine.session()
    again.sync(IDS[:60])
    monkeypatch.setattr(engine.model.bank, "begin", failing)
    monkeypatch.setattr(engine, "drafts", "auto")
    guess(again, IDS[:60] + plain, 0.8)
    assert [step.token for step in again.generate(Sampling(0.0), 30)] == plain and failed
    assert here(again) == here(session)


def test_where_steps_are_not_equal_to_the_bit_there_are_no_drafts(folder):
    engine = Engine.open(folder.parent / "source", "reference")
    assert engine.drafts == "auto" and engine.most_drafts == 0


def test_an_answer_ends_at_the_end_of_the_context(engines):
    engine = engines[False]
    with pytest.raises(UsageError):
        next(engine.session().generate(Sampling(), 1))
