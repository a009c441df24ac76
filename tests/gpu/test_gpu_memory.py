"""What is planned of a card's memory is what is taken of it, of Flash and at its size: nothing is computed."""

from dataclasses import replace

import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
from sized import Sized, Zeros
from v4kernels.triton.ops import TritonOps
from v4kernels.triton.weights import SlotKind

from v4cli.bench.synthetic import shape
from v4cli.engine.on_card import rooms_of
from v4cli.experts.device import DeviceSlots, pools_of, slot_bytes
from v4cli.experts.rehearsal import Rehearsal
from v4cli.experts.split import Split
from v4cli.experts.tiers import InRam
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.plan import cost, memory
from v4cli.store.parts import layout

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
FLASH = shape("flash", 5)  # a layer of every kind


@pytest.fixture(scope="module")
def tree():
    return build(FLASH, Zeros(FLASH, "native"))


@pytest.mark.parametrize(("chunk", "n_tokens"), [(memory.CHUNK, 5_000), (2048, 1 << 20), (memory.MOST_CHUNK, 100_000)])
def test_a_prefill_works_in_what_was_planned(tree, chunk, n_tokens):
    device = Sized()
    bare = [replace(layer, ffn=replace(layer.ffn, experts=())) for layer in tree.layers]
    ops = TritonOps(replace(tree, layers=bare), device, 1 << 20, chunk=chunk, budget=memory.TILES)
    tier = InRam(tree.layers)
    kind = tier.kind.reshape(len(tree.layers), FLASH.n_routed_experts)
    slots = DeviceSlots(device, kind, pools_of(tier.examples, tier.kind, 4), tier.expert, 2)
    rooms, passing = rooms_of(tier.examples, slots)
    alone = ops.step_experts(rooms, kind)
    bank = Split(ops.slot_experts(rooms, passing), slots, tier, alone.ring, [False] * 5, alone=alone)
    model = V4(FLASH, ops, Rehearsal(bank))
    try:
        state = model.new_state()
        state.reserve(n_tokens)
        state.n_tokens = n_tokens - chunk
        held = ops.uploads.nbytes + slots.nbytes + state.nbytes
        for ids in ([0] * chunk, [0]):
            state.n_tokens = n_tokens - len(ids)
            model.logits(ops.rows(model.forward([(ids, state)]), [0]))
        planned = memory.card_work_bytes(FLASH, chunk, n_tokens)
        needs = cost.needs(FLASH, cost.stored_tensors(layout(FLASH, "native", False)))
        assert ops.uploads.nbytes == pytest.approx(sum(use.held for use in needs.dense) + needs.head, rel=0.02)
        assert state.nbytes <= cost.at_context(needs, FLASH, n_tokens).kv.held
        assert 0.85 * planned < device.peak - held <= planned
        assert sum(device.hosted.values()) <= memory.pinned_bytes(FLASH) + memory.record_bytes(FLASH, chunk)
    finally:
        bank.close()


@pytest.mark.parametrize("quant", ["native", "q3", "mix", "q2"])
def test_slots_are_as_large_as_planned(quant):
    """Of every kind of experts that a recipe makes."""
    config = replace(shape("flash", 12), n_routed_experts=2)
    kinds = InRam(build(config, Zeros(config, quant)).layers).examples
    planned = cost.needs(config, cost.stored_tensors(layout(config, quant, False))).kinds
    assert sorted(map(slot_bytes, kinds)) == sorted(SlotKind.of(kind).n_bytes for kind in kinds) == sorted(planned)
    assert len(planned) == (2 if quant == "mix" else 1)
