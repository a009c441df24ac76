"""Which experts stay in memory, without a model; the replay against other policies."""

import itertools

import numpy as np
import pytest

from v4cli.bench import cache, nano_routing
from v4cli.bench.traces import KINDS, Trace, synthetic
from v4cli.errors import UsageError
from v4cli.experts.policy import Divided, Residency, nearness


def test_places_are_filled_then_given_to_what_is_used_most():
    policy = Residency(6, 2)
    for used in ([0, 1], [0, 2], [0, 2], [0, 2]):
        policy.used(np.array(used), 1)
        for expert in used:
            if not policy.resident[expert]:
                policy.admit(expert)
        policy.end_step()
    assert policy.resident.tolist() == [True, False, True, False, False, False]
    policy.used(np.array([5]), 1)
    assert policy.admit(5) == 5, "one use does not outweigh three"


def test_never_more_residents_than_places():
    rng = np.random.default_rng(0)
    policy = Residency(40, 7)
    for _ in range(200):
        used = rng.choice(40, 5, replace=False)
        policy.used(used, 1)
        for expert in used.tolist():
            if not policy.resident[expert]:
                victim = policy.admit(expert)
                assert victim is None or victim == expert or not policy.resident[victim]
        policy.end_step()
        assert policy.n_resident == policy.resident.sum() <= 7


def test_a_prompt_counts_and_does_not_wash_out():
    """Experts used by a few of many prompt tokens displace none that every token uses."""
    policy = Residency(64, 4)
    for _ in range(30):
        policy.used(np.arange(4), 1)
        for expert in range(4):
            if not policy.resident[expert]:
                policy.admit(expert)
        policy.end_step()
    policy.used(np.arange(64), np.where(np.arange(64) < 4, 400, 10), 512)
    assert all(policy.admit(expert) == expert for expert in range(4, 64))
    policy.end_step(512)
    assert policy.resident[:4].all()


def test_nearness_is_zero_at_the_limit_and_one_less_at_the_median():
    scores = np.array([np.arange(9.0), 100 + 3 * np.arange(9.0)])
    assert nearness(scores, 2).tolist() == [-7 / 3, -2, -5 / 3, -4 / 3, -1, -2 / 3, -1 / 3, 0, 1 / 3]
    assert nearness(np.zeros((1, 4)), 2).tolist() == [0] * 4, "no division by zero"


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_the_router_help(kind):
    trace = synthetic(300, n_layers=6, **KINDS[kind])
    blind = Trace(trace.experts, trace.n_experts, np.full_like(trace.scores, np.nan))
    assert cache._ours(trace, 150) > 1.01 * cache._ours(blind, 150)


def test_a_second_start_knows_what_the_first_learned():
    first, second = Residency(64, 8), Residency(64, 8)
    trace = synthetic(100, n_layers=1, n_experts=64, skew=1.2).requests()
    for token in trace:
        first.used(token, 1)
        first.end_step()
    second.learn(first.learned())
    assert second.best().tolist() == first.best().tolist()
    popular = np.argsort(-np.bincount(trace.ravel(), minlength=64))[:4]
    assert set(popular) <= set(second.best())
    with pytest.raises(ValueError, match="rates"):
        Residency(65, 8).learn(first.learned())


def test_optimum_is_the_best_there_is():
    """Belady's against every possible sequence of decisions, on short traces."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        requests = rng.integers(0, 4, (7, 1))
        assert cache._optimum(requests, 2) * 7 == _best(requests.ravel().tolist(), 2)


def _best(requests, places: int) -> int:
    states = {frozenset(): 0}
    for expert in requests:
        after: dict = {}
        for held, hits in states.items():
            options = [held] if expert in held else [held, *_with(held, expert, places)]
            for option in options:
                after[option] = max(after.get(option, 0), hits + (expert in held))
        states = after
    return max(states.values())


def _with(held: frozenset, expert: int, places: int):
    if len(held) < places:
        return [held | {expert}]
    return [frozenset(rest) | {expert} for rest in itertools.combinations(held, places - 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_better_than_lru_on_every_kind(kind):
    trace = synthetic(300, n_layers=6, **KINDS[kind])
    hits = cache.replay(trace, trace.total // 10)
    assert hits["lru"] < hits["v4"] < hits["optimum"]


def test_trace_files(tmp_path):
    trace = synthetic(5, 3, 16, 2)
    trace.save(tmp_path / "t.npz")
    again = Trace.load(tmp_path / "t.npz")
    assert (again.experts == trace.experts).all() and again.n_experts == 16
    assert (again.scores == trace.scores).all()
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    with pytest.raises(UsageError, match=r"bad\.npz"):
        Trace.load(tmp_path / "bad.npz")
    with pytest.raises(UsageError, match="slots"):
        list(cache.rows("t", trace, ["0"]))


def test_routing_of_nanos_text(monkeypatch):
    monkeypatch.setattr(nano_routing, "TRAINING", 1500)
    trace = nano_routing.nano_routing(100)
    assert trace.experts.shape == (100, 6, 6) and trace.scores.shape == (100, 6, 256)
    uses = np.bincount(trace.requests().ravel(), minlength=trace.total)
    assert np.count_nonzero(uses) > 600, "many experts are used"
    after = [len(set(a) & set(b)) for a, b in itertools.pairwise(trace.requests().tolist())]
    assert np.mean(after) > 3 * 36 * 6 / 256, "tokens use again what the one before did, more often than by chance"
    chosen = np.take_along_axis(trace.scores, trace.experts.astype(int), axis=2)
    assert (chosen.min(axis=2) >= np.sort(trace.scores, axis=2)[:, :, -6]).all()


def test_kinds_have_places_of_their_own():
    kind = np.arange(12) % 3
    policy = Divided([2, 1, 0], kind)
    policy.used(np.arange(12), np.arange(1, 13))  # the higher its number, the likelier
    admitted = [policy.admit(expert) for expert in range(12)]
    assert admitted == [None, None, 2, None, 4, 5, 6, 7, 8, 9, 10, 11], "what this step uses stays"
    policy.end_step()
    policy.used(np.array([6, 8, 10]), np.ones(3))
    assert [policy.admit(expert) for expert in (6, 8, 10)] == [0, 8, 1], "of its kind the least likely goes"
    assert set(np.flatnonzero(policy.resident)) == {3, 6, 10} and policy.residents_of == [2, 1, 0]
    policy.drop(6)
    assert policy.residents_of == [1, 1, 0] and policy.n_resident == 2
    policy.forget_step()
    assert sorted(policy.best().tolist()) == [6, 9, 10]
