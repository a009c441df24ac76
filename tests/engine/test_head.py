"""The draft model of a session: what it remembers of a timeline that goes on, back, and elsewhere; and that its drafts,
too, change nothing."""

import numpy as np
import pytest
import tiny
from guessing import heed
from v4kernels import native

from v4cli.engine.engine import Engine
from v4cli.engine.head import HeadDrafter
from v4cli.engine.sampler import Sampler, Sampling
from v4cli.errors import ResourceError
from v4cli.store.store import Store

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the kernel library")
IDS = np.random.default_rng(3).integers(0, 512, 900).tolist()


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    home = tmp_path_factory.mktemp("head")
    trunk = tiny.random_checkpoint(home / "trunk", tiny.STORE_LIKE)
    return Engine.open(tiny.with_drafts(trunk, home / "model"), "cpu")


def opened(engine):
    """A session that lets its draft model know all, whatever that costs."""
    session = engine.session()
    heed(session, [session.drafting.head], 0)
    return session


def guessed(session, tokens: list[int]):
    """What the session's draft model says after these tokens, the last of them not computed."""
    session.drafting.head.sampler = Sampler(Sampling(0.0))
    return session.drafting.head.draft(tokens[:-1], tokens[-1], 5)


def fresh(engine, tokens: list[int]):
    session = opened(engine)
    session.sync(tokens[:-1])
    return guessed(session, tokens)


def alike(some, others) -> bool:
    """The first guess: those behind it go another way where two are nearly equal. Entries are rotated by other angles,
    and rounded."""
    return some.tokens[:1] == others.tokens[:1] and np.allclose(some.chances[:1], others.chances[:1], atol=0.03)


def test_it_follows_the_timeline(engine):
    session, tokens = opened(engine), IDS[:200]
    session.sync(tokens[:-1])
    assert alike(guessed(session, tokens), fresh(engine, tokens)) and len(guessed(session, tokens).tokens) == 0
    session.sync(IDS[:205])
    assert alike(guessed(session, IDS[:206]), fresh(engine, IDS[:206]))
    for back in (203, 190, 40):
        tokens = [*IDS[:back], *IDS[500:510]]
        session.sync(tokens[:-1])
        said = guessed(session, tokens)
        assert said.tokens, back
        assert alike(said, fresh(engine, tokens)) or back < 195, "a window that is whole"
    session.sync(IDS[:700])
    assert alike(guessed(session, IDS[:701]), fresh(engine, IDS[:701]))


def test_answers_are_those_without_drafts(engine):
    plain = {}
    for seed, temperature in enumerate((0.0, 1.0)):
        engine.drafts = "off"
        session = engine.session()
        session.sync(IDS[:140])
        plain[seed] = [(s.token, s.logprob) for s in session.generate(Sampling(temperature, seed=seed), 25)]
        engine.drafts, again = "model", engine.session()
        head = HeadDrafter(engine.model.head, 6, engine.scheduler.between_steps)
        heed(again, [head], seed)
        again.sync(IDS[:140])
        assert [(s.token, s.logprob) for s in again.generate(Sampling(temperature, seed=seed), 25)] == plain[seed]
        assert again.drafting.done.verified > 3 and again.logits.tobytes() == session.logits.tobytes()


def test_without_its_leave_it_is_not_loaded(engine):
    assert Engine.open(engine.path, "cpu", drafts="ngram").model.head is None
    assert Engine.open(engine.path, "reference").model.head is None


def test_within_a_budget_it_is_counted_and_experts_make_room_where_it_is_asked_for(engine, tmp_path):
    folder = tiny.make_store(engine.path, tmp_path / "store")
    size = sum(part.n_bytes for name, part in Store.open(folder).parts.items() if name.startswith("mtp-"))
    least = {}
    for drafts in ("auto", "model"):
        with pytest.raises(ResourceError) as refused:
            Engine.open(folder, "cpu", ram=1, drafts=drafts)
        least[drafts] = int(refused.value.hint.removeprefix("--ram ").removesuffix("M")) << 20
    assert abs(least["model"] - least["auto"] - size) <= 1 << 20
    answers = []
    for drafts, ram, has in (("off", 1 << 30, False), ("auto", 1 << 30, True), ("auto", least["auto"], False),
                             ("model", least["model"], True)):  # fmt: skip
        some = Engine.open(folder, "cpu", ram=ram, drafts=drafts)
        assert (some.model.head is not None) == has == ("draft blocks" in some.held.items), (drafts, ram)
        assert bool(some.stream) == (ram < 1 << 30) and some.held.free >= 0
        assert not has or some.held.items["draft blocks"] >= size
        session = some.session()
        session.sync(IDS[:50])
        if has:
            heed(session, [session.drafting.head], 0)
        answers.append([(step.token, step.logprob) for step in session.generate(Sampling(0.0), 25)])
        assert not has or session.drafting.done.verified
    assert all(answer == answers[0] for answer in answers)


def test_a_draft_model_that_fails_ends_no_answer(engine, monkeypatch):
    engine.drafts = "model"
    session = engine.session()
    heed(session, [session.drafting.head], 0)
    session.sync(IDS[:50])
    monkeypatch.setattr(engine.model.head, "noted", lambda streams: np.full((streams.rows, 256), np.nan, np.float32))
    session.sync(IDS[:60])
    asked, draft = [], session.drafting.head.draft
    monkeypatch.setattr(session.drafting.head, "draft", lambda *given: asked.append(given) or draft(*given))
    assert len(list(session.generate(Sampling(0.0), 12))) == 12 and len(asked) == 1


def test_what_it_remembers_of_a_session_is_in_the_budget(engine):
    """What is pledged before the first token holds what is remembered after many."""
    budgeted = Engine.open(engine.path, "cpu", ram=1 << 30)
    session, most = opened(budgeted), budgeted.model.head.timeline_bytes
    session.sync(IDS[:400])
    assert guessed(session, IDS[:401]).tokens
    session.sync(IDS[:700])  # more than a window waits
    assert most // 2 < session.drafting.nbytes <= most
    assert budgeted.kv_in_ram(session.state) + session.drafting.nbytes < session.kv_nbytes <= session.pledged
