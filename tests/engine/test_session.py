"""Sessions: reuse, rewind, fork, cancellation and sampling, on a small random model."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import SMALL, random_checkpoint
from v4kernels import BACKENDS, native
from v4kernels.api import DeviceError

from v4cli.engine import scheduler
from v4cli.engine.engine import Engine
from v4cli.engine.sampler import Sampling
from v4cli.errors import ResourceError, UsageError

SHAPE = SMALL | {"head_dim": 128, "num_hidden_layers": 3, "compress_ratios": [0, 4, 128], "index_topk": 8}
IDS = np.random.default_rng(5).integers(0, 512, 600).tolist()


@pytest.fixture(scope="module", params=BACKENDS)
def engine(tmp_path_factory, request):
    if request.param == "cpu" and not native.available():
        pytest.skip(native.reason())
    return Engine.open(random_checkpoint(tmp_path_factory.mktemp("m"), SHAPE, seed=4, shards=1), request.param)


def fresh(engine, tokens):
    return engine.session().feed(tokens)


def close(engine, a, b):
    """Of the cpu backend the same bits."""
    return np.array_equal(a, b) if engine.model.ops.name == "cpu" else np.abs(a - b).max() < 1e-4


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["extend", "rewind", "fork", "branch", "save", "load"]), st.integers(1, 300)),
        min_size=1,
        max_size=8,
    )
)
def test_any_sequence_of_extend_rewind_fork_save_and_load_equals_a_fresh_prefill(engine, steps):
    with tempfile.TemporaryDirectory() as folder:
        prefixes = engine.prefixes(Path(folder), 1 << 30, 1 << 30)
        session, target = engine.session(prefixes=prefixes, worth_s=1e9), IDS[:40]
        session.sync(target)
        for action, n in steps:
            if action == "extend":
                target = (target + IDS)[: min(len(target) + n, 500)]
            elif action == "rewind":
                target = target[: max(1, len(target) - n)]
            elif action == "branch":
                target = [*target[: n % len(target) + 1], *IDS[n : n + 20]]
            elif action == "fork":
                session.fork().sync([*target, *IDS[:50]])
            elif action == "save":
                session.keep(0.0)
            else:
                session = engine.session(prefixes=prefixes, worth_s=1e9)
            session.sync(target)
            assert session.tokens == target and not session.notes
            assert close(engine, session.logits, fresh(engine, target))


def test_sync_computes_only_what_is_new(engine):
    session = engine.session()
    session.sync(IDS[:300])
    session.sync(IDS[:310])
    assert (session.stats.cached_tokens, session.stats.prefill_tokens) == (300, 10)
    session.sync(IDS[:310])
    assert session.stats.prefill_tokens == 0


def test_cancelled_sync_keeps_the_chunks_that_are_done(engine, monkeypatch):
    monkeypatch.setattr(scheduler, "HEED_S", 0)  # a step asks after each sublayer
    session, looks = engine.session(), 0

    def cancelled() -> bool:  # within the second chunk, whose layers have begun
        nonlocal looks
        looks += len(session.tokens) == 512
        return looks > 3

    assert not session.sync(IDS[:100] * 6, cancelled=cancelled)
    assert len(session.tokens) == session.state.n_tokens == 512
    assert session.sync(IDS[:100] * 6)
    assert session.stats.cached_tokens == 512


@pytest.mark.parametrize("n_next", [20, 1])
@pytest.mark.parametrize("n_before", [140, 128, 127])
def test_interrupt_inside_a_forward_leaves_the_session_as_it_was(engine, monkeypatch, n_before, n_next):
    session, target = engine.session(), IDS[: n_before + n_next]
    session.sync(IDS[:n_before])
    logits = session.logits
    original, calls = engine.model.ops.shared_expert, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(engine.model.ops, "shared_expert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.sync(target)
    monkeypatch.undo()
    assert session.tokens == IDS[:n_before]
    session.sync(target)
    assert close(engine, session.logits, fresh(engine, target))
    assert close(engine, logits, fresh(engine, IDS[:n_before]))


def test_a_device_that_fails_is_told_and_the_session_is_as_it_was(engine, monkeypatch):
    session = engine.session()
    session.sync(IDS[:5])

    def failing(*args):
        raise DeviceError("the GPU: it failed")

    with monkeypatch.context() as patched:
        patched.setattr(engine.model.ops, "shared_expert", failing)
        with pytest.raises(ResourceError, match=r"^the GPU: it failed$"):
            session.feed(IDS[5:7])
    assert close(engine, session.feed(IDS[5:7]), fresh(engine, IDS[:7]))


def test_same_seed_gives_the_same_tokens_and_stop_tokens_end_it(engine):
    def tokens(seed, stop=()):
        session = engine.session()
        session.sync(IDS[:20])
        return [s.token for s in session.generate(Sampling(seed=seed), 12, stop)]

    first = tokens(1)
    assert first == tokens(1) != tokens(2)
    assert tokens(1, stop=(first[4],))[-1] == first[4]


def test_tokens_are_the_same_in_one_go_and_continued_and_after_a_rewind(engine):
    session = engine.session()
    session.sync(IDS[:20])
    whole = [step.token for step in session.generate(Sampling(seed=1), 12)]
    for n_kept in (5, 8):
        session.sync(IDS[:20] + whole[:n_kept])
        assert [step.token for step in session.generate(Sampling(seed=1), 12 - n_kept)] == whole[n_kept:]


@pytest.mark.parametrize("bad", [[], [512], [-1]])
def test_bad_prompts_are_refused(engine, bad):
    with pytest.raises(UsageError):
        engine.session().sync(bad)
