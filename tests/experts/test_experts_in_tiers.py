"""Experts in slots of a device, in RAM and on the SSD: the same bits wherever they lie, and errors that leave all
usable."""

import errno
import threading
import time

import numpy as np
import pytest
import tiny
from devices import NumpyDevice, split
from guessing import guess
from test_streaming import Faulty
from v4kernels import backend, native

from v4cli.engine.engine import Engine
from v4cli.engine.loading import model_of
from v4cli.engine.sampler import Sampling
from v4cli.errors import ModelError, ResourceError
from v4cli.experts.device import parts_of
from v4cli.experts.files import ExpertFiles
from v4cli.experts.passing import Rates
from v4cli.experts.policy import RATES
from v4cli.experts.slots import ExpertStream
from v4cli.experts.tiers import InRam, OnDemand
from v4cli.paths import NANO
from v4cli.store.store import Store

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the kernel library")
N_EXPERTS = tiny.STORE_LIKE["n_routed_experts"]
ALL = N_EXPERTS * tiny.STORE_LIKE["num_hidden_layers"]
SPARE = 2  # slots of a stream for experts on their way
PROMPT = np.random.default_rng(0).integers(0, tiny.STORE_LIKE["vocab_size"], 200).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("tiers")
    return tiny.make_store(tiny.random_checkpoint(home / "source", tiny.STORE_LIKE), home / "store")


def answer(engine) -> tuple:
    session = engine.session()
    session.sync(PROMPT)
    steps = list(session.generate(Sampling(temperature=0.0), 24))
    return [step.token for step in steps], [step.logprob for step in steps], session.logits.tobytes()


def copied(streams):
    """As a device gives them to the host."""
    return streams.array().copy()


@pytest.fixture(scope="module")
def expected(folder):
    return answer(Engine.open(folder, "cpu"))


@pytest.fixture
def opened(folder):
    """Engines with `n_slots` experts in slots and, if told so, `ram` others in RAM; closed in the end."""
    engines = []

    def opened(n_slots, ram=None, folder=folder, **options):
        store, stream = Store.open(folder), None
        if ram is not None:
            stream = ExpertStream(ExpertFiles(store, Faulty), ram + SPARE, SPARE)
        model = model_of(store, backend("cpu"), stream)
        tier = InRam(model.ops.tree.layers) if stream is None else OnDemand(model.bank, copied)
        model.bank = split(model.ops, tier, n_slots, N_EXPERTS, **options)
        engines.append(Engine(model, folder, 0.0, stream=stream))
        return engines[-1]

    yield opened
    for engine in engines:
        engine.model.bank.close()
        if engine.stream is not None:
            engine.stream.close()


@pytest.mark.parametrize("ram", [None, 3, 12], ids=["in RAM", "3 in RAM", "12 in RAM"])
@pytest.mark.parametrize("n_slots", [0, 1, 7, ALL])
def test_same_bits_wherever_experts_lie(opened, expected, n_slots, ram):
    engine = opened(n_slots, ram)
    assert answer(engine) == expected
    assert answer(engine) == expected, "with whatever the first answer left in slots"
    bank = engine.model.bank
    held = int((bank.slots.table >= 0).sum())
    assert held <= n_slots and (held > 0) == (n_slots > 0) == (bank.device.pairs > 0)
    if n_slots == ALL and ram is None:
        assert held == len({int(e) for e in np.flatnonzero(bank.slots.policy.features[0])}), "all that was ever used"


@pytest.mark.parametrize("pairs, n_jobs", [(1, 1), (3, 4), (1000, 2)])
def test_same_bits_whatever_the_ring_holds(opened, expected, pairs, n_jobs):
    assert answer(opened(7, pairs=pairs, n_jobs=n_jobs)) == expected
    assert answer(opened(7, ram=3, pairs=pairs, n_jobs=n_jobs)) == expected


@pytest.mark.parametrize("ram", [None, 5])
def test_single_steps_are_a_prefill(opened, expected, ram):
    engine = opened(7, ram, device=NumpyDevice(late=True))
    session = engine.session()
    for token in PROMPT:
        session.feed([token])
        engine.model.bank.slots.device.complete(2)
    assert [step.token for step in session.generate(Sampling(temperature=0.0), 24)] == expected[0]
    assert engine.model.bank.device.pairs > 0


class Some(Rates):
    """Copies those that are used most, a share of them."""

    def worth_a_copy(self, uses, n_bytes):
        return np.arange(len(uses)) < self.link * len(uses)


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("spare, ram", [(2, None), (6, None), (4, 5)])
def test_same_bits_for_experts_that_pass_through(opened, expected, spare, ram, share):
    engine = opened(3, ram, spare=spare, rates=Some(share, 1.0, 1.0))
    assert answer(engine) == expected
    assert engine.model.bank.slots.bytes_passed > 0


def test_an_expert_that_passes_through_is_copied_once_a_layer_and_no_other_is(opened):
    engine = opened(7, spare=4, rates=Some(1.0, 1.0, 1.0))
    session, bank = engine.session(), engine.model.bank
    session.feed(PROMPT)
    counts, slots, device = bank.counts, bank.slots, bank.slots.device
    assert counts.hits == 0 and counts.misses > 0
    each = sum(n_bytes for _, n_bytes in parts_of(bank.tier.examples[0]))
    assert slots.bytes_passed == counts.misses * each
    resident = len(slots._slot) * each
    assert device.copied == slots.bytes_passed + resident


@pytest.mark.parametrize("ram", [None, 5])
def test_sessions_in_turns(folder, opened, ram):
    prompts = [np.random.default_rng(seed).integers(0, tiny.STORE_LIKE["vocab_size"], 40).tolist() for seed in range(3)]

    def logits(engine):
        sessions = [engine.session() for _ in prompts]
        out = []
        for start in range(0, 40, 8):
            for session, prompt in zip(sessions, prompts):
                session.feed(prompt[start : start + 8])
                out.append(session.logits.tobytes())
        return out

    assert logits(opened(7, ram)) == logits(Engine.open(folder, "cpu"))


@pytest.mark.parametrize("ram", [None, 5])
def test_rows_of_several_sessions_in_a_step(folder, opened, ram):
    def hidden(model):
        states = [model.new_state() for _ in range(3)]
        out = []
        for n in (9, 1, 4, 1, 1):
            feeds = [(PROMPT[i : i + n], state) for i, state in enumerate(states)]
            out.append(model.forward(feeds).array().tobytes())
        return out

    assert hidden(opened(7, ram).model) == hidden(Engine.open(folder, "cpu").model)


@pytest.fixture(scope="module")
def mixed(source, tmp_path_factory):
    """A store whose experts differ in formats from layer to layer and within one, from matrix to matrix."""
    return tiny.make_store(source, tmp_path_factory.mktemp("mixed") / "m", "own", recipe=tiny.MIXED)


def test_experts_of_several_formats_have_slots_of_their_own(opened, mixed):
    want = answer(Engine.open(mixed, "cpu"))
    for options in ({}, {"ram": 16}, {"spare": 4, "rates": Some(0.5, 1.0, 1.0)}):
        engine = opened(ALL // 2, folder=mixed, **options)
        assert answer(engine) == want, options
        slots = engine.model.bank.slots
        held = np.bincount(slots.kind[slots.table >= 0], minlength=len(slots.pools)).tolist()
        assert len(slots.pools) > 2 and all(0 < n <= pool.n_slots for n, pool in zip(held, slots.pools)), options
        assert (slots.bytes_passed > 0) == ("spare" in options)


def test_nano_in_slots():
    want = answer(Engine.open(NANO, "cpu"))
    engine = Engine.open(NANO, "cpu")
    ops = engine.model.ops
    engine.model.bank = split(ops, InRam(ops.tree.layers), 5, engine.config.n_routed_experts)
    assert answer(engine) == want
    assert engine.model.bank.device.pairs > 0
    engine.model.bank.close()


def test_what_the_device_holds_is_not_in_ram_too(opened):
    engine = opened(7, ram=12)
    answer(engine)
    bank = engine.model.bank
    counts = engine.stream.counts
    assert counts.hits > 0 and counts.misses > 0
    on_device = set(np.flatnonzero(bank.slots.table.ravel() >= 0).tolist())
    assert on_device and not on_device.intersection(bank.tier.stream._slot)


@pytest.mark.parametrize("pairs", [16, 1000])
@pytest.mark.parametrize("n_slots", [0, 7])
def test_every_use_is_counted_once_in_each_tier(opened, n_slots, pairs):
    """By whatever way an expert was computed: both policies know the rates of use that a bank in RAM alone learns."""
    alone, engine = opened(0, ram=8), opened(n_slots, ram=8, pairs=pairs)
    split_bank = alone.model.bank
    alone.model.bank = split_bank.tier.bank
    for each in (alone, engine):
        answer(each)
    alone.model.bank = split_bank
    want, bank = alone.stream.policy.features[RATES], engine.model.bank
    assert np.array_equal(engine.stream.policy.features[RATES], want)
    assert np.array_equal(bank.slots.policy.features[RATES], want)
    if pairs < 1000:
        return  # experts cut into several jobs are counted in each
    used = [counts.hits + counts.misses for counts in (alone.stream.counts, engine.stream.counts)]
    assert used[1] == used[0] if n_slots == 0 else 0 < used[1] < used[0]


def test_a_stopped_thread_is_told_at_once(opened, expected):
    engine = opened(1)
    session = engine.session()
    session.feed([1, 2, 3])
    engine.model.bank.close()
    start = time.monotonic()
    with pytest.raises(ResourceError, match="was stopped"):
        session.feed([4])
    assert time.monotonic() - start < 30, "long before the time is over"
    assert session.state.n_tokens == 3, "the session is as it was"


def test_a_disk_error_is_told_and_what_follows_is_right(opened, expected, monkeypatch):
    engine = opened(1, ram=3)
    session = engine.session()
    session.feed(list(range(20)))
    monkeypatch.setattr(Faulty, "fail", errno.EIO)
    with pytest.raises(ModelError, match=r"layer-00\d-experts.*Input/output error"):
        session.feed(list(range(20, 40)))
    monkeypatch.setattr(Faulty, "fail", None)
    assert session.state.n_tokens == 20
    assert answer(engine) == expected


def test_a_disk_that_hangs_is_told_and_what_follows_is_right(opened, expected, monkeypatch):
    engine = opened(1, ram=3, timeout_s=0.5)
    session = engine.session()
    monkeypatch.setattr(Faulty, "slow", 2.0)
    with pytest.raises(ResourceError, match=r"not computed within 0\.5 s"):
        session.feed(list(range(20)))
    monkeypatch.setattr(Faulty, "slow", 0.0)
    assert session.state.n_tokens == 0
    deadline = time.monotonic() + 60
    while True:
        try:
            session.feed([1])
            break
        except ResourceError:  # the thread is still in the read
            assert time.monotonic() < deadline
    engine.model.bank.close()
    engine.model.bank = split(engine.model.ops, engine.model.bank.tier, 1, N_EXPERTS)
    assert answer(engine) == expected


def test_a_stream_may_shrink_once_a_step_that_failed_is_at_rest(opened, expected, monkeypatch):
    engine = opened(1, ram=12)
    session, ops, bank = engine.session(), engine.model.ops, engine.model.bank
    began, going, fetch = threading.Event(), [], bank.tier.fetch

    def fetched(job):
        going.append(job)
        began.set()
        time.sleep(0.2)
        try:
            fetch(job)
        finally:
            going.remove(job)

    def interrupted(layer, x):
        assert began.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(bank.tier, "fetch", fetched)
    monkeypatch.setattr(ops, "shared_expert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.feed(PROMPT[:20])
    bank.rest()
    assert began.is_set() and not going, "the thread uses the stream no more"
    monkeypatch.undo()
    engine.stream.shrink(3 + SPARE)
    assert engine.stream.n_slots == 3 + SPARE and answer(engine) == expected


def test_a_step_that_failed_elsewhere_leaves_no_job_behind(opened, expected, monkeypatch):
    engine = opened(3)
    session, ops = engine.session(), engine.model.ops
    session.feed([1, 2, 3])

    def interrupted(layer, x):
        raise KeyboardInterrupt

    monkeypatch.setattr(ops, "shared_expert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.feed([4, 5, 6])
    monkeypatch.undo()
    assert session.state.n_tokens == 3
    assert answer(engine) == expected


@pytest.mark.parametrize("ram", [pytest.param(None, marks=pytest.mark.slow), 8])
def test_drafts_change_neither_answers_nor_what_policies_learn(opened, ram):
    told, truth = [], []
    for right in (None, 0.6):
        engine = opened(6, ram)
        engine.drafts = "off" if right is None else "auto"
        session = engine.session()
        session.sync(PROMPT[:120])
        if right is not None:
            guess(session, PROMPT[:120] + truth, right, seed=2)
        truth = [step.token for step in session.generate(Sampling(0.0), 24)]
        engine.scheduler.settle()
        bank = engine.model.bank
        policies = [bank.slots.policy, *bank.tier.policies]
        learned = [{name: a.tobytes() for name, a in policy.learned().items()} for policy in policies]
        told.append((truth, session.logits.tobytes(), learned))
    assert told[0] == told[1] and len(told[0][2]) == 1 + (ram is not None)
    assert session.drafting.done.accepted > 3 < session.drafting.done.verified - session.drafting.done.accepted
