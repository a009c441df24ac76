"""Experts in tiers under the GPU's op table: tokens and logits are the CPU's wherever experts lie."""

from dataclasses import replace

import numpy as np
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import gpu_models
from v4kernels.cpu import CpuOps
from v4kernels.triton.ops import TritonOps

from v4cli.engine.engine import Engine
from v4cli.engine.on_card import rooms_of
from v4cli.errors import ModelError
from v4cli.experts.device import DeviceSlots, parts_of, pools_of
from v4cli.experts.passing import Rates
from v4cli.experts.split import Split
from v4cli.experts.tiers import InRam
from v4cli.model.v4 import V4

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
RNG = np.random.default_rng(11)
LONG = 600.0  # seconds; kernels are compiled within
EVERYTHING = Rates(link=1e30, ram=1.0, pair_s=1.0)  # all that is not in a slot passes through
NOTHING = Rates(link=1.0, ram=1e30, pair_s=0.0)


@pytest.fixture(scope="module")
def nano():
    return gpu_models.nano()


@pytest.fixture
def made(nano):
    """Models on both backends, that of the GPU with so many slots; closed in the end."""
    (config, tree), banks = nano, []

    def made(n_slots, spare=0, rates=None, timeout_s=LONG):
        device = gpu_models.Recorder()
        bare = [replace(layer, ffn=replace(layer.ffn, experts=[])) for layer in tree.layers]
        ops = TritonOps(replace(tree, layers=bare), device, gpu_models.MOST_TOKENS)
        tier = InRam(tree.layers)
        kind = tier.kind.reshape(len(tree.layers), config.n_routed_experts)
        slots = DeviceSlots(device, kind, pools_of(tier.examples, tier.kind, n_slots), tier.expert, spare)
        device.freeze()
        rooms, passing = rooms_of(tier.examples, slots)
        alone = ops.step_experts(rooms, kind, timeout_s)
        hashed = [layer.ffn.tid2eid is not None for layer in tree.layers]
        of_device = ops.slot_experts(rooms, passing)
        banks.append(Split(of_device, slots, tier, alone.ring, hashed, timeout_s, alone, rates))
        return gpu_models.Both(config, V4(config, CpuOps(tree)), V4(config, ops, banks[-1]), device)

    yield made
    for bank in banks:
        bank.close()


def prompt(n: int) -> list[int]:
    return RNG.integers(0, 1024, n).tolist()


IN_LONG_RUNS = (pytest.param(n, marks=pytest.mark.slow) for n in (1, "all"))


@pytest.mark.parametrize("n_slots", [0, 7, *IN_LONG_RUNS])
def test_tokens_and_logits_do_not_depend_on_slots(made, nano, n_slots):
    """One token after the other: computed, recorded, played."""
    config, _ = nano
    n = config.n_routed_experts * config.num_hidden_layers if n_slots == "all" else n_slots
    model = made(n)
    states, bank = model.states(), model.gpu.bank
    for token in (7, 7, 7):
        model.same([([token], states)])
    assert set(model.gpu.ops._graphs) == {1} and model.device.recordings == 1
    held = int((bank.slots.table >= 0).sum())
    assert held <= n and (held > 0) == (n > 0)
    assert (bank.counts.hits > 0) == (n > 0) and bank.counts.misses > 0 and bank.counts.wait_s > 0
    uses = 3 * config.num_hidden_layers * config.num_experts_per_tok
    assert bank.counts.hits + bank.counts.misses == uses


@pytest.mark.slow
def test_experts_of_many_rows_lie_in_slots_pass_through_or_stay_in_ram(made, nano):
    """And what passes through is copied once for its layer."""
    model = made(7, spare=4, rates=EVERYTHING)
    states, bank = model.states(), model.gpu.bank
    for _ in range(2):
        model.same([(prompt(9), states)])
    passed = bank.counts.misses * sum(n_bytes for _, n_bytes in parts_of(bank.tier.examples[0]))
    assert bank.counts.hits > 0 and bank.slots.bytes_passed == passed
    bank.rates = NOTHING
    model.same([(prompt(9), states)])
    assert bank.slots.bytes_passed == passed


def test_a_step_whose_experts_do_not_come_is_told_and_leaves_the_session_as_it_was(made, monkeypatch):
    model = made(0)
    bank, cpu = model.gpu.bank, model.cpu.new_state()
    session = Engine(model.gpu, gpu_models.NANO, 0.0).session()
    session.feed([7, 8])
    missing = [bank.tier.expert(e) for e in range(bank.slots.table.shape[1])]

    def fetch(job):
        raise ModelError("the disk is gone")

    monkeypatch.setattr(bank.tier, "fetch", fetch)
    for number in range(len(missing)):
        bank.tier.layers[0].experts.put(number, None)
    with pytest.raises(ModelError, match="the disk is gone"):
        session.feed([9])
    assert session.state.n_tokens == 2
    for number, expert in enumerate(missing):
        bank.tier.layers[0].experts.put(number, expert)
    session.feed([10])
    hidden = [model.cpu.forward([(ids, cpu)]) for ids in ([7, 8], [10])][-1]
    assert np.array_equal(session.logits, model.cpu.logits(hidden)[-1])
