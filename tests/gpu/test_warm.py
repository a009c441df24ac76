"""Kernels are compiled before the first answer: whatever a chat, a long prompt or drafts launch was launched when the
model was warmed. Nothing is compiled here, and nothing computed."""

import numpy as np
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
from sized import Noting
from tiny import make_store

from v4cli import hardware
from v4cli.engine import gpu, on_card
from v4cli.engine.engine import Engine
from v4cli.engine.gpu import OnCard
from v4cli.hardware import Gpu
from v4cli.plan import memory
from v4cli.plan.placement import Budget, card_shortage
from v4cli.store.recipe import RECIPES, Rule
from v4cli.store.store import open_model

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
GIB = 1 << 30
MIXED = (Rule("experts", "int8", layers=("0-1",)), Rule("experts", "int8", experts=("1",)), *RECIPES["native"].rules)
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def stores(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm")
    mixed = make_store(source, folder / "mixed", "own", recipe=MIXED)
    return {"native": make_store(source, folder / "native"), "mixed": mixed}


def work_of(config) -> int:
    return memory.card_work_bytes(config, 64, min(memory.CONTEXT, config.max_position_embeddings))


def opened(monkeypatch, folder, experts: float | None, ram: int | None) -> tuple[Engine, Noting]:
    """With slots for a part of the experts, None: for all, and RAM for so many besides, None: for all."""
    device, checkpoint = Noting(), open_model(folder)
    monkeypatch.setattr(hardware, "gpus", lambda: [Gpu(0, "RTX 4090", "GPU-1", "580.1", "8.9", 24 * GIB, 23 * GIB)])
    monkeypatch.setattr(gpu, "lack", lambda number=None: None)
    monkeypatch.setattr(gpu, "device", lambda number=0: device)
    vram, asked = 23 * GIB, OnCard(chunk=64)
    needs, _ = on_card.plan_for(checkpoint, vram, 64 * GIB, asked)
    if experts is not None:
        budget = Budget(0, 0, 1, 1, 1, work=work_of(checkpoint.config))
        vram = card_shortage(needs, budget) + int(experts * needs.n_experts) * needs.slot
    if ram is not None:
        with pytest.raises(Exception, match="MiB of RAM") as told:
            on_card.plan_for(checkpoint, vram, 1 << 20, asked)
        ram = (int(told.value.hint.removeprefix("--ram ").removesuffix("M")) << 20) + ram * needs.slot
    asked = OnCard(vram=vram, chunk=64)
    return Engine.open(folder, "triton", ram=ram, learned=folder / "use", on_card=asked), device


@pytest.mark.parametrize(
    "quant, experts, ram",
    [("native", 0.2, None), ("native", 0.0, None), ("native", 0.2, 4), ("native", None, None), ("mixed", 0.5, None)],
)
def test_whatever_an_answer_launches_was_launched_before(monkeypatch, stores, quant, experts, ram):
    engine, device = opened(monkeypatch, stores[quant], experts, ram)
    assert (engine.stream is not None) == (ram is not None) and (engine.placed.slots is None) == (experts is None)
    engine.warm()
    warmed = set(device.asked)
    assert engine.counts() is None or engine.counts().wait_s == engine.counts().hits == 0, "no expert was asked for"
    device.asked.clear()
    session = engine.session()
    session.sync(RNG.integers(0, engine.config.vocab_size, 300).tolist())
    for rows in (1, 1, 1, 2, 5, 8, 9, 64):
        session.feed([7] * rows, all_logits=rows > 1)
    session.feed([7])
    late = {name for name, *rest in device.asked if (name, *rest) not in warmed}
    assert late <= {"index_choice"}, "levels of a choice go by the length of the context"
    told = engine.vram()
    held = sum(n for _, n in told.values()) - told["runtime"][1]
    assert held == pytest.approx(device.nbytes, rel=0.01), "what is said to be held is what was allocated"
    assert all(n <= 1.01 * planned for planned, n in told.values()), told
    assert (engine.memory() is None) == (ram is None)
    if ram is not None:
        said = engine.memory()
        assert {"pinned", "experts", "rewind points"} <= said.keys() and not {"dense", "head"} & said.keys()
        assert sum(n for _, n in said.values()) <= sum(planned for planned, _ in said.values())
    bank = engine.placed.bank
    assert bank is None or ram is not None or (bank.slots.table >= 0).any() == (experts > 0)
    if bank:
        bank.close()


def test_the_next_start_begins_with_the_experts_that_were_used(monkeypatch, stores):
    engine, _ = opened(monkeypatch, stores["native"], 0.2, None)
    assert not engine.placed.slots._copies
    session = engine.session()
    for _ in range(3):
        session.feed([7] * 9)
    engine.remember(stores["native"] / "use")
    best = engine.placed.slots.policy.best().tolist()
    again, _ = opened(monkeypatch, stores["native"], 0.2, None)
    assert set(again.placed.slots._copies) == set(best[: len(again.placed.slots._copies)]) != set()
    for one in (engine, again):
        one.placed.bank.close()
