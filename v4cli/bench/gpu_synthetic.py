"""A model of random weights on a card, whose hits can be forced: dense weights there, of experts what fits, and in RAM
so many different ones that no cache holds them, each standing for several."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from v4kernels.cpu import PackedWeight
from v4kernels.triton.device import Device
from v4kernels.triton.ops import TritonOps
from v4kernels.triton.slots import Room
from v4kernels.triton.weights import SlotKind

from v4cli.bench.gpu_memory import repeat
from v4cli.bench.gpu_model import forced_table
from v4cli.bench.random_weights import RandomSource
from v4cli.engine.engine import Engine
from v4cli.engine.on_card import warm
from v4cli.experts.device import DeviceSlots, Pool
from v4cli.experts.split import Split
from v4cli.experts.tiers import InRam
from v4cli.model.config import V4Config
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.store.recipe import EXPERTS

DISTINCT = 640  # experts in RAM: 8.6 GB at Flash's size


class SharedExperts(RandomSource):
    """Random weights, of which `distinct` routed experts have memory of their own and are used again by the others."""

    def __init__(self, config: V4Config, quant: str, distinct: int = DISTINCT):
        super().__init__(config, quant)
        self.distinct = distinct
        self.made: dict[tuple[int, str], PackedWeight] = {}

    def weight(self, name: str) -> PackedWeight:
        at, experts, rest = name.partition(EXPERTS)
        if not experts:
            return super().weight(name)
        number, matrix = rest.split(".")[:2]
        layer = int(at.split(".")[1])
        key = (layer * self.config.n_routed_experts + int(number)) % self.distinct, matrix
        if key not in self.made:
            self.made[key] = super().weight(name)
        return self.made[key]


class ForcedSlots(DeviceSlots):
    """Slots in which nothing moves, with experts that stand for all others: see gpu_model.Forced."""

    def __init__(self, device: Device, shape: tuple[int, int], n_slots: int, n_bytes: int, experts: Sequence):
        """`experts`: different ones, for the first slots; those behind repeat them."""
        super().__init__(device, np.zeros(shape, np.int8), [Pool(n_slots, n_bytes)], lambda expert: None)
        self.rng = np.random.default_rng(0)
        for slot, expert in enumerate(experts[:n_slots]):
            for at, part in self.parts_in(slot, expert):
                device.write(at, part)
        repeat(device, self.at, min(len(experts), n_slots) * n_bytes, self.nbytes)
        self.asked = self.there = 0

    def force(self, share: float) -> None:
        self.table[:] = forced_table(self.table.shape, share, self.n_slots, self.rng)
        self.asked = self.there = 0

    def hits(self) -> float:
        return self.there / self.asked if self.asked else 0.0

    def used(self, layer: int, uses: np.ndarray, near: np.ndarray | None, n_tokens: int) -> None:
        self.asked += int(uses.sum())
        self.there += int(uses[self.table[layer] >= 0].sum())
        super().used(layer, uses, near, n_tokens)


def on_card(
    config: V4Config, device: Device, n_slots: int, chunk: int, distinct: int = DISTINCT, name: str = "random weights"
) -> tuple[Engine, ForcedSlots]:
    """The model, and its slots. MemoryError, ResourceError."""
    source = SharedExperts(config, "native", distinct)
    whole = build(config, source)
    bare = [replace(layer, ffn=replace(layer.ffn, experts=())) for layer in whole.layers]
    ops = TritonOps(replace(whole, layers=bare), device, config.max_position_embeddings, chunk=chunk)
    tier, shape = InRam(whole.layers), (config.num_hidden_layers, config.n_routed_experts)
    kind = SlotKind.of(tier.examples[0])
    slots = ForcedSlots(device, shape, n_slots, kind.n_bytes, tier.experts[:distinct])
    rooms = [Room(kind, slots.at)]
    step = ops.step_experts(rooms, slots.kind)
    hashed = [layer.ffn.tid2eid is not None for layer in whole.layers]
    bank = Split(ops.slot_experts(rooms), slots, tier, step.ring, hashed, alone=step)
    model: V4 = V4(config, ops, bank)
    warm(model)
    return Engine(model, name, 0.0), slots
