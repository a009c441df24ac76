"""Experts in tiers under the GPU's op table: tokens and logits are the CPU's wherever experts lie."""

from dataclasses import replace

import numpy as np
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import gpu_models
from v4kernels.cpu import CpuOps
from v4kernels.triton.ops import TritonOps
from v4kernels.triton.weights import SlotKind

from v4cli.experts.device import DeviceSlots, slot_bytes
from v4cli.experts.passing import Rates
from v4cli.experts.split import Split
from v4cli.experts.tiers import InRam
from v4cli.model.v4 import V4

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
RNG = np.random.default_rng(11)
EVERYTHING = Rates(link=1e30, ram=1.0, pair_s=1.0)  # all that is not in a slot passes through


@pytest.fixture(scope="module")
def nano():
    return gpu_models.nano()


@pytest.fixture
def made(nano):
    """Models on both backends, that of the GPU with so many slots; closed in the end."""
    (config, tree), banks = nano, []

    def made(n_slots, spare=0, rates=None, timeout_s=60.0):
        device = gpu_models.Recorder()
        bare = [replace(layer, ffn=replace(layer.ffn, experts=[])) for layer in tree.layers]
        ops = TritonOps(replace(tree, layers=bare), device, gpu_models.MOST_TOKENS)
        tier = InRam(tree.layers)
        shape = len(tree.layers), config.n_routed_experts
        slots = DeviceSlots(device, shape, n_slots, slot_bytes(tier.largest), tier.expert, spare)
        device.freeze()
        kind = SlotKind.of(tier.largest)
        alone = ops.step_experts(kind, slots.at, timeout_s)
        hashed = [layer.ffn.tid2eid is not None for layer in tree.layers]
        of_device = ops.slot_experts(kind, slots.at)
        banks.append(Split(of_device, slots, tier, alone.ring, hashed, timeout_s, alone, rates))
        return gpu_models.Both(config, V4(config, CpuOps(tree)), V4(config, ops, banks[-1]), device)

    yield made
    for bank in banks:
        bank.close()


def prompt(n: int) -> list[int]:
    return RNG.integers(0, 1024, n).tolist()


@pytest.mark.parametrize("n_slots", [0, 1, 7, "all"])
def test_tokens_and_logits_do_not_depend_on_slots(made, nano, n_slots):
    config, _ = nano
    n = config.n_routed_experts * config.num_hidden_layers if n_slots == "all" else n_slots
    model = made(n)
    states, ids, bank = model.states(), prompt(12), model.gpu.bank
    for _ in range(10):
        logits = model.same([(ids, states)])
        ids = [int(logits[-1].argmax())] * 2
    assert set(model.gpu.ops._graphs) == {2} and model.device.recordings == 1
    held = int((bank.slots.table >= 0).sum())
    assert held <= n and (held > 0) == (n > 0)
    assert (bank.counts.hits > 0) == (n > 0) and bank.counts.misses > 0
