"""Models larger than their memory budget: the same tokens whatever fits, errors that leave the session usable."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny
from apart import apart
from v4kernels import native

from v4cli import hardware
from v4cli.bench.fill import fill
from v4cli.engine.engine import Engine
from v4cli.engine.sampler import Sampling
from v4cli.errors import ModelError, ResourceError, UsageError
from v4cli.plan import cost
from v4cli.plan.budget import CONTEXT, SHARE, residence
from v4cli.plan.memory import POINTS
from v4cli.plan.placement import LEAST_POINTS, Budget, shortage
from v4cli.store.store import Store

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the kernel library")
PROMPT = np.random.default_rng(0).integers(0, tiny.STORE_LIKE["vocab_size"], 200).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("ram")
    return tiny.make_store(tiny.random_checkpoint(home / "source", tiny.STORE_LIKE), home / "store")


def budget(folder, n_experts: int) -> int:
    """Bytes of RAM that hold the least, all rewind points of a session and so many experts."""
    needs = needs_of(folder)
    more = (POINTS + 1 - LEAST_POINTS) * needs.point + n_experts * needs.slot
    return shortage(needs, Budget(0, 0, 1, 1, 1)) + more


def needs_of(folder):
    store = Store.open(folder)
    needs = cost.needs(store.config, cost.stored_tensors(store.trunk))
    return cost.at_context(needs, store.config, CONTEXT)


def answer(engine) -> tuple:
    session = engine.session()
    session.sync(PROMPT)
    steps = list(session.generate(Sampling(temperature=0.0), 24))
    return [step.token for step in steps], [step.logprob for step in steps], session.logits.tobytes()


@pytest.fixture(scope="module")
def expected(folder):
    return answer(Engine.open(folder, "cpu"))


@pytest.mark.parametrize("n_experts", [0, 1, 3, 10, 20])
def test_same_bits_under_every_budget(folder, expected, n_experts):
    engine = Engine.open(folder, "cpu", ram=budget(folder, n_experts))
    assert engine.place.ledger.slots == n_experts + engine.place.ledger.spare
    assert answer(engine) == expected
    assert answer(engine) == expected, "with whatever the first answer left in memory"
    assert engine.stream.counts.misses > 0


def test_single_steps_are_a_prefill(folder, expected):
    engine = Engine.open(folder, "cpu", ram=budget(folder, 5))
    session = engine.session()
    for token in PROMPT:
        session.feed([token])
    assert [step.token for step in session.generate(Sampling(temperature=0.0), 24)] == expected[0]


def test_a_prompt_reads_what_it_needs_once(folder):
    engine = Engine.open(folder, "cpu", ram=budget(folder, 5))
    session = engine.session()
    session.sync(PROMPT)
    read = session.stats.prefill_experts
    assert read["hits"] == 0 and read["bytes_read"] <= 1.05 * read["bytes_used"]


def test_a_context_that_grows_takes_from_experts_then_from_rewind_points_then_is_refused(folder, expected):
    apart(a_context_that_grows, folder, expected)


def a_context_that_grows(folder, expected):
    engine = Engine.open(folder, "cpu", ram=budget(folder, 10))
    session, ledger, seen = engine.session(), engine.place.ledger, []
    for n_tokens in range(600, 1200, 100):  # points of a prefill
        session.sync((PROMPT * 6)[:n_tokens])
    with pytest.raises(ResourceError, match=r"no memory for [0-9,]+ tokens of context within") as caught:
        for n_tokens in range(CONTEXT, 1 << 20, 1 << 10):
            fill(session, n_tokens)
            session.feed([1])
            held = engine.held
            assert held.held <= held.budget and held.slots == engine.stream.n_slots
            seen.append((held.slots, len(session.points)))
    assert len(session.tokens) == n_tokens - (1 << 10) + 1 == session.state.n_tokens, "it is as it was"
    slots, points = zip(*seen)
    assert slots[0] == ledger.slots and slots[-1] == ledger.spare and len(set(slots)) > 5
    least = ledger.spare + -(-needs_of(folder).point // ledger.slot)  # what a point gives may be more than is asked for
    assert all(n == points[0] for n, left in zip(points, slots) if left > least)
    assert points[0] > 3 and points[-1] == 1 and len(set(points)) == points[0], "one after the other, the start stays"
    assert "--jobs" in caught.value.hint
    session.feed([2])
    session.sync(session.tokens[:1000])  # all is computed again
    fresh = Engine.open(folder, "cpu").session()
    fresh.sync((PROMPT * 6)[:1000])
    assert session.tokens == fresh.tokens and session.logits.tobytes() == fresh.logits.tobytes()
    assert answer(engine) == expected and engine.stream.n_slots == ledger.spare
    enough = int(caught.value.hint.split("M,")[0].removeprefix("--ram ")) << 20
    Engine.open(folder, "cpu", ram=enough).session().make_room(n_tokens)


def test_near_the_minimum_sessions_keep_one_rewind_point_and_compute_more(folder, expected):
    engine = Engine.open(folder, "cpu", ram=budget(folder, 0) - (POINTS - 1) * needs_of(folder).point)
    assert (engine.place.plan.points, engine.place.ledger.slots) == (1, engine.place.ledger.spare)
    assert answer(engine) == expected
    session = engine.session()
    for n_tokens in (100, 200, 300):
        session.sync((PROMPT * 2)[:n_tokens])
    assert [point.n_tokens for point in session.points] == [0, 300]
    session.sync(PROMPT)  # nothing to go back to: from the start
    assert session.stats.cached_tokens == 0 and session.logits.tobytes() == fresh_logits(folder)


def fresh_logits(folder) -> bytes:
    session = Engine.open(folder, "cpu").session()
    session.sync(PROMPT)
    return session.logits.tobytes()


def test_sessions_together_share_the_least_and_who_asks_for_too_much_is_refused_alone(folder, expected):
    apart(sessions_together, folder, expected)


def sessions_together(folder, expected):
    engine = Engine.open(folder, "cpu", ram=budget(folder, 3))

    def greedy():
        session = engine.session()
        session.sync(PROMPT)
        points = list(session.points)
        with pytest.raises(ResourceError, match="no memory for 900,000 tokens"):
            session.make_room(900_000)
        assert session.points == points, "what would not help is not given up"
        return session.tokens == PROMPT

    with ThreadPoolExecutor(4) as pool:
        one = pool.submit(greedy)
        others = [pool.submit(answer, engine) for _ in range(3)]
        assert one.result() and [other.result() for other in others] == [expected] * 3
    assert engine.held.held <= engine.held.budget


def test_where_not_even_an_empty_session_fits_there_is_none(folder):
    engine = Engine.open(folder, "cpu", ram=budget(folder, 0))
    sessions = []
    with pytest.raises(ResourceError, match=r"no memory for another session beside [0-9]+ other sessions"):
        while len(sessions) < 1000:
            sessions.append(engine.session())
    assert len(sessions) > 3 and len(engine.account.sessions) == len(sessions)
    sessions[0].sync(PROMPT[:1])


def test_all_fits(folder, expected):
    engine = Engine.open(folder, "cpu", ram=1 << 40)
    assert engine.stream is None and answer(engine) == expected


def test_a_store_that_does_not_fit_in_free_memory_is_streamed_unasked(folder, expected, monkeypatch):
    monkeypatch.setattr(Store, "nbytes", 1 << 40)  # of so small a one, working memory is the most
    monkeypatch.setattr(hardware, "usable_ram", lambda: int(budget(folder, 5) / SHARE) + 1)
    engine = Engine.open(folder, "cpu")
    assert engine.stream and answer(engine) == expected
    monkeypatch.undo()
    assert Engine.open(folder, "cpu").stream is None


@pytest.mark.parametrize(
    "files, usable",
    [
        ({}, 8 << 30),
        ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/memory.max": "1073741824\n"}, 1 << 30),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "max\n"}, 8 << 30),
        (
            {
                "/proc/self/cgroup": "5:cpu:/x\n3:memory:/x\n",
                "/sys/fs/cgroup/memory/x/memory.limit_in_bytes": "2147483648",
                "/sys/fs/cgroup/cpu/x/memory.limit_in_bytes": "1",
            },
            2 << 30,
        ),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": f"{1 << 50}\n"}, 8 << 30),
    ],
)
def test_usable_memory_is_what_the_control_group_leaves(files, usable, monkeypatch):
    monkeypatch.setattr(hardware, "ram", lambda: (16 << 30, 8 << 30))
    monkeypatch.setattr(hardware, "system_text", lambda path: files.get(path, ""))
    assert hardware.usable_ram() == usable


def test_too_small_a_budget_says_what_would_do(folder):
    with pytest.raises(ResourceError, match="MiB of RAM") as caught:
        Engine.open(folder, "cpu", ram=1 << 20)
    least = int(caught.value.hint.removeprefix("--ram ").removesuffix("M")) << 20
    store = Store.open(folder)
    assert residence(store.config, cost.stored_tensors(store.parts), least)


def test_official_checkpoints_and_the_reference_are_not_streamed(folder):
    source, store = folder.parent / "source", Store.open(folder)
    least = residence(store.config, cost.stored_tensors(store.trunk), 1 << 40)
    with pytest.raises(UsageError, match="stores only"):
        Engine.open(source, "cpu", ram=budget(folder, 2))
    with pytest.raises(ResourceError, match="MiB of RAM"):
        Engine.open(source, "cpu", ram=1 << 20)
    assert Engine.open(source, "cpu", ram=1 << 40).place.ledger.held == least.ledger.held
    with pytest.raises(UsageError, match="cpu backend"):
        Engine.open(folder, "reference", ram=1 << 20)


def test_a_file_that_changes_is_an_error_and_the_session_stays(folder, expected, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "store")
    engine = Engine.open(copy, "cpu", ram=budget(folder, 2))
    session = engine.session()
    session.sync(PROMPT)
    before = session.logits.tobytes()
    path = copy / "layer-002-experts.safetensors"
    stat, contents = path.stat(), path.read_bytes()
    path.write_bytes(contents[:-5000] + bytes(5000))
    with pytest.raises(ModelError, match=r"layer-002-experts.*changed while in use"):
        for token in range(50):
            session.feed([token])
    fed = session.tokens[len(PROMPT) :]
    assert fed == list(range(len(fed))) and session.state.n_tokens == len(session.tokens)
    path.write_bytes(contents)
    import os

    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    session.sync(session.tokens[: len(PROMPT)])
    assert session.sync(PROMPT) and session.logits.tobytes() == before
    assert [step.token for step in session.generate(Sampling(temperature=0.0), 24)] == expected[0]


def test_learned_use_survives(folder, tmp_path, expected):
    first = Engine.open(folder, "cpu", ram=budget(folder, 6), learned=tmp_path)
    answer(first)
    first.remember(tmp_path)
    second = Engine.open(folder, "cpu", ram=budget(folder, 6), learned=tmp_path)
    assert second.stream.policy.n_resident == 6
    assert answer(second) == expected
    for file in tmp_path.iterdir():
        file.write_bytes(b"PK damaged")
    assert answer(Engine.open(folder, "cpu", ram=budget(folder, 6), learned=tmp_path)) == expected
