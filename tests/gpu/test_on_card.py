"""A model opened for a GPU by its plan, the GPU being one whose kernels run in the PTX machine."""

import sys
from pathlib import Path

import numpy as np
import pytest
from v4kernels import backend

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
from emulated import Emulated
from tiny import make_store
from v4kernels.triton import dense, launch
from v4kernels.triton.device import DeviceError

from v4cli import hardware
from v4cli.engine import gpu, on_card
from v4cli.engine.engine import Engine, identity_of
from v4cli.engine.gpu import Finding, OnCard
from v4cli.errors import ResourceError, UsageError
from v4cli.hardware import Gpu
from v4cli.plan import memory
from v4cli.plan.memory import POINTS
from v4cli.plan.placement import Budget, card_shortage, shortage
from v4cli.prefixes.prefixes import Prefixes
from v4cli.store.recipe import RECIPES, Rule
from v4cli.store.store import open_model

GIB, PAGE = 1 << 30, 4096
PROMPT = [0, 5, 9]


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A GPU that has passed its checks."""
    monkeypatch.setenv("V4_HOME", str(tmp_path))
    found = Gpu(0, "NVIDIA GeForce RTX 4090", "GPU-1", "580.1", "8.9", 24 * GIB, 23 * GIB)
    monkeypatch.setattr(hardware, "gpus", lambda: [found])
    monkeypatch.setattr(gpu, "lack", lambda number=None: None)
    monkeypatch.setattr(gpu, "device", lambda number=0: Emulated())
    gpu.remember(found, Finding(found.name, gpu.versions(found)))
    return found


def test_plans_know_how_many_rows_are_few():
    assert memory.FEW_ROWS == dense.FEW


def work_of(config) -> int:
    return memory.card_work_bytes(config, 64, min(memory.CONTEXT, config.max_position_embeddings))


def least(folder) -> tuple[int, int]:
    """Bytes of VRAM that a model needs without any expert, and those of an expert's slot."""
    checkpoint = open_model(folder)
    needs, _ = on_card.plan_for(checkpoint, 64 * GIB, 64 * GIB, OnCard(chunk=64))
    budget = Budget(0, 0, 1, 1, 1, work=work_of(checkpoint.config))
    return card_shortage(needs, budget), needs.slot


def answer(engine, session=None, n=2) -> list[int]:
    session = session or engine.session()
    session.sync(PROMPT)
    return [token for token, _ in zip(greedy(session), range(n))]


def greedy(session):
    while True:
        token = int(session.logits.argmax())
        yield token
        session.feed([token])


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    """A store of each recipe."""
    folder = tmp_path_factory.mktemp("on_card")
    return {quant: make_store(source, folder / quant, quant) for quant in ("native", "q4")}


@pytest.mark.parametrize(("quant", "experts"), [("native", 5), pytest.param("q4", None, marks=pytest.mark.slow)])
def test_the_default_is_the_card_and_its_tokens_are_those_of_the_cpu(card, made, quant, experts):
    made = made[quant]
    if experts is not None:
        without, slot = least(made)
        engine = Engine.open(made, on_card=OnCard(vram=without + experts * slot, chunk=64))
        assert engine.placed.slots.n_slots == experts
    else:
        engine = Engine.open(made, on_card=OnCard(chunk=64))
        assert engine.placed.slots is None
    holds, ops = engine.placed.plan.vram.holds, engine.model.ops
    planned = holds["dense"] + holds["head"] + (holds["experts"] if experts is None else 0)
    assert ops.uploads.nbytes == pytest.approx(planned, rel=0.01)
    assert experts is None or 0 <= holds["experts"] - experts * engine.placed.slots.spare_bytes < experts * PAGE
    cpu = Engine.open(made, "cpu")
    assert engine.model.ops.name == "triton" and engine.identity == cpu.identity
    session, expected = engine.session(), answer(cpu)
    engine.warm()
    compiled = launch._compiled.cache_info().misses
    assert answer(engine, session) == expected
    assert launch._compiled.cache_info().misses == compiled, "nothing is compiled in the middle of an answer"
    counts, read = engine.counts(), session.stats.prefill_experts
    if experts is None:
        assert counts is None and read is None
    else:
        assert read["hits"] > read["on_card"] and read["misses"] == 0 and 0 <= read["hit_rate"] <= 1
        assert counts.hits > read["hits"] and counts.on_card > 0 and counts.wait_s > 0


@pytest.mark.slow
def test_experts_of_several_formats_have_slots_of_their_own_and_the_tokens_of_the_cpu(card, source, tmp_path):
    """Hash layers whose experts are int8, and one such in each other layer."""
    recipe = (
        Rule("experts", "int8", layers=("0-1",)),
        Rule("experts", "int8", experts=("1",)),
        *RECIPES["native"].rules,
    )
    folder = make_store(source, tmp_path / "m", "own", recipe=recipe)
    checkpoint = open_model(folder)
    needs, _ = on_card.plan_for(checkpoint, 64 * GIB, 64 * GIB, OnCard(chunk=64))
    assert min(needs.kinds) < needs.slot < max(needs.kinds), "on average"
    without, _ = least(folder)
    engine = Engine.open(folder, on_card=OnCard(vram=without + needs.n_experts // 2 * needs.slot, chunk=64))
    slots, cpu = engine.placed.slots, Engine.open(folder, "cpu")
    holds = engine.placed.plan.vram.holds
    assert len(slots.pools) == 2 and all(pool.n_slots > 0 for pool in slots.pools)
    assert 0 <= holds["experts"] - (slots.nbytes - slots.spare * slots.spare_bytes) < 2 * needs.slot
    engine.warm()
    sessions = engine.session(), cpu.session()
    for ids in ([*range(12)], [3], [4]):  # by the host, who fills slots; by the device, walked and recorded
        got, want = (session.feed(ids).copy() for session in sessions)
        assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
    held = np.bincount(slots.kind[slots.table >= 0], minlength=2)
    assert engine.counts().on_card > 0 and held.min() > 0, "hits of both kinds"


@pytest.mark.slow
def test_experts_that_neither_vram_nor_ram_hold_are_read_from_the_ssd(card, made):
    """And what other sessions take of the RAM is that of experts."""
    made = made["native"]
    (without, slot), of_cpu = least(made), Engine.open(made, "cpu").session()
    expected = answer(of_cpu.engine, of_cpu, 3)
    vram, chosen = without + 5 * slot, OnCard(vram=without + 5 * slot, chunk=64)
    needs, _ = on_card.plan_for(open_model(made), vram, 64 * GIB, chosen)
    ram = shortage(needs, Budget(0, vram, 1, 1, 1, work=work_of(open_model(made).config)))
    with pytest.raises(ResourceError, match="MiB of RAM with its experts on disk") as told:
        Engine.open(made, "triton", ram=ram - 1, on_card=chosen)
    assert told.value.hint == f"--ram {-(-ram >> 20)}M"
    engine = Engine.open(made, ram=ram + (POINTS - 1) * needs.point + 20 * slot + slot // 2, on_card=chosen)
    stream, bank, plan = engine.stream, engine.placed.bank, engine.placed.plan
    assert engine.model.ops.name == "triton" and plan.slots == 5 and plan.resident < 1
    assert stream.n_slots == 20 + needs.spare and not {"dense", "head"} & set(plan.ram.holds)
    assert engine.account.points == plan.points, "as many rewind points as were planned"
    session = engine.session()
    assert answer(engine, session, 3) == expected
    assert np.array_equal(session.logits.view(np.uint32), of_cpu.logits.view(np.uint32))
    counts, read = engine.counts(), session.stats.prefill_experts
    assert not bank.repeatable and not engine.model.ops._graphs
    assert counts.on_card > 0 and counts.misses > 0 and counts.bytes_read > 0 and counts.hits > counts.on_card
    assert read["bytes_read"] > 0
    others, before = [], stream.n_slots
    with pytest.raises(ResourceError, match="no memory for another session") as told:
        for _ in range(99):
            others.append(engine.session())
    assert "--kv-dir" not in told.value.hint, "it is the CPU's"
    assert answer(engine, others[-1], 1) == expected[:1]
    assert needs.spare <= stream.n_slots < before
    bank.close()
    stream.close()


def test_dense_weights_as_nf4_take_what_is_planned_and_are_numerics_of_their_own(card, made):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is made for few systems only")
    made = made["native"]
    stored = on_card.plan_for(open_model(made), 64 * GIB, 64 * GIB, OnCard(chunk=64))[1].vram.holds
    engine = Engine.open(made, on_card=OnCard(chunk=64, nf4=True))
    holds = engine.placed.plan.vram.holds
    planned = holds["dense"] + holds["head"] + holds["experts"]
    assert engine.model.ops.uploads.nbytes == pytest.approx(planned, rel=0.01)
    assert holds["head"] < 0.6 * stored["head"] and holds["dense"] < stored["dense"]
    assert engine.identity["numerics"] == "nf4"
    of_cpu = identity_of(open_model(made), backend("cpu"))
    different = {name for name in of_cpu if engine.identity[name] != of_cpu[name]}
    assert different == {"numerics", "arithmetic"}
    folders = {Prefixes(Path("prefixes"), identity, 1, 1).folder for identity in (engine.identity, of_cpu)}
    assert len(folders) == 2, "its stored contexts are found by none of int8, nor theirs by it"


def test_without_bitsandbytes_one_line_says_what_to_install(card, made, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match="bitsandbytes is not installed") as told:
        Engine.open(made["native"], "triton", on_card=OnCard(chunk=64, nf4=True))
    assert told.value.hint == "pip install 'v4cli[gpu]'"


def test_a_model_that_does_not_fit_goes_to_the_cpu_unless_the_card_was_asked_for(card, made):
    made = made["native"]
    without, _ = least(made)
    small = OnCard(vram=without - 1, chunk=64)
    assert Engine.open(made, on_card=small).model.ops.name == "cpu"
    with pytest.raises(ResourceError, match="MiB of VRAM") as told:
        Engine.open(made, "triton", on_card=small)
    assert "--backend cpu" in told.value.hint


def test_a_step_is_checked_against_the_cpu(made):
    assert on_card.same_step(Emulated(), made["native"], PROMPT[:1]) == ""

    class Wrong(Emulated):
        def read(self, address, n_bytes):
            found = super().read(address, n_bytes)
            found[-1] ^= 1
            return found

    assert "logits are not" in on_card.same_step(Wrong(), made["native"], PROMPT[:1])


def test_a_card_that_cannot_be_used_is_said_and_left_to_the_cpu(card, made, monkeypatch):
    def busy(number=0):
        raise UsageError("GPU 0 cannot be used: it does not start", "v4 doctor")

    monkeypatch.setattr(gpu, "device", busy)
    engine = Engine.open(made["native"])
    assert engine.model.ops.name == "cpu" and "does not start" in engine.passed_over
    with pytest.raises(UsageError, match="does not start"):
        Engine.open(made["native"], "triton")


def test_a_card_that_fails_while_a_model_is_put_there_is_an_error_in_one_line(card, made, monkeypatch):
    def failing(number=0):
        device = Emulated()
        monkeypatch.setattr(device, "alloc", broken)
        return device

    def broken(n_bytes):
        raise DeviceError("the GPU: it failed")

    monkeypatch.setattr(gpu, "device", failing)
    assert Engine.open(made["native"], on_card=OnCard(chunk=64)).passed_over == "the GPU: it failed"
    with pytest.raises(UsageError, match="it failed"):
        Engine.open(made["native"], "triton", on_card=OnCard(chunk=64))
