"""A model on a GPU: dense weights and KV in its memory, experts in its slots, those that have none in RAM.

plan/placement.py says what goes where, and this does it. Where all experts have a slot nothing of a step is asked of
the host; else the thread of experts/split.py computes the others, and a step of few rows still drives itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from v4kernels.cpu import CpuOps
from v4kernels.triton import check
from v4kernels.triton.batch import TritonBatch
from v4kernels.triton.device import Device, DeviceError
from v4kernels.triton.memory import Buffer
from v4kernels.triton.ops import TritonOps
from v4kernels.triton.slots import Pairs
from v4kernels.triton.weights import SlotKind

from v4cli import paths
from v4cli.engine.gpu import CHECK, Check, OnCard
from v4cli.errors import ResourceError, UsageError
from v4cli.experts.device import DeviceSlots
from v4cli.experts.passing import Rates
from v4cli.experts.split import Split
from v4cli.experts.tiers import InRam
from v4cli.model.schema import TensorSpec
from v4cli.model.state import State
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.plan import cost, memory
from v4cli.plan.budget import CONTEXT
from v4cli.plan.cards import Card
from v4cli.plan.machines import DESKTOP
from v4cli.plan.placement import VRAM_STAGING, Budget, Needs, Plan, card_shortage, make_plan, shortage
from v4cli.plan.speed import CPU_ROWS, CPU_SHARE
from v4cli.store.sources import Model, PackedSource
from v4cli.store.store import Part, Store, layout, open_model


@dataclass(frozen=True)
class Placed:
    """A model on a card: the plan it was put there by, its slots and their bank, unless all experts lie there for
    good."""

    model: V4
    plan: Plan
    slots: DeviceSlots | None = None
    bank: Split[Buffer, TritonBatch, Pairs] | None = None


def plan_for(checkpoint: Model, vram: int, ram: int, on_card: OnCard) -> tuple[Needs, Plan]:
    """What goes where in so many bytes that are free. ResourceError, with what would help, where it does not fit."""
    config = checkpoint.config
    parts = checkpoint.trunk if isinstance(checkpoint, Store) else layout(config, "native", False)
    needs = cost.needs(config, _as_nf4(parts) if on_card.nf4 else cost.stored_tensors(parts))
    needs = cost.at_context(needs, config, min(CONTEXT, config.max_position_embeddings))
    chunk = on_card.chunk or memory.card_chunk(config, vram)
    budget = Budget(ram, vram, 1.0, 1.0, 1.0, on_card.kv_host, memory.card_work_bytes(config, chunk))
    missing = card_shortage(needs, budget)
    if missing > 0:
        least = -(-(vram + missing) >> 20)
        raise ResourceError(
            f"the model needs {least} MiB of VRAM without any experts, {vram >> 20} MiB may be used",
            "--backend cpu, a store of --quant q4, or another --vram",
        )
    lacking = shortage(needs, budget)
    plan = make_plan(needs, budget) if lacking <= 0 else None
    if plan is None or plan.resident < 1:
        raise ResourceError(
            "the experts fit neither into the VRAM nor into what is free of the RAM",
            "--backend cpu reads them on demand",
        )
    return needs, plan


def _as_nf4(parts: Mapping[str, Part]) -> dict[str, TensorSpec]:
    """The tensors of a store's parts as they lie on a card in that format: codes and scales of a matrix are one."""
    from v4kernels.triton import nf4

    tensors = cost.stored_tensors(parts)
    for name, tensor in [item for part in parts.values() for item in part.tensors.items()]:
        if name.endswith(".weight") and nf4.about(name, tensor.format):
            n_values = math.prod(tensor.spec.shape) * (2 if tensor.format == "int4" else 1)
            tensors[name] = TensorSpec("U8", (nf4.n_bytes(n_values),))
            del tensors[name.removesuffix("weight") + "scale"]
    return tensors


def put(checkpoint: Model, device: Device, card: Card, vram: int, ram: int, on_card: OnCard) -> Placed:
    """Put a model on a card of whose memory `vram` bytes may be used. ResourceError, UsageError, ModelError."""
    if on_card.nf4:
        _bitsandbytes()
    needs, plan = plan_for(checkpoint, vram, ram, on_card)
    config, whole = checkpoint.config, plan.slots == needs.n_experts
    source = PackedSource(checkpoint, check=False)
    chunk = on_card.chunk or memory.card_chunk(config, vram)
    try:
        tree = build(config, source, experts=whole)
        most = config.max_position_embeddings
        ops = TritonOps(tree, device, most, chunk=chunk, kv_host=on_card.kv_host, budget=memory.TILES, nf4=on_card.nf4)
        if whole:
            return Placed(V4(config, ops), plan)
        tier = InRam(build(config, source).layers)
        kind = _kind(tier)
        spare = 2 * max(1, VRAM_STAGING // kind.n_bytes // 2)
        shape = config.num_hidden_layers, config.n_routed_experts
        slots = DeviceSlots(device, shape, plan.slots, kind.n_bytes, tier.expert, spare)
        step = ops.step_experts(kind, slots.at)
        hashed = [layer.ffn.tid2eid is not None for layer in tree.layers]
        rates = Rates(card.link, CPU_SHARE * DESKTOP, 2 * 3 * kind.dim * kind.inner / CPU_ROWS)
        bank: Split[Buffer, TritonBatch, Pairs] = Split(
            ops.slot_experts(kind, slots.at), slots, tier, step.ring, hashed, alone=step, rates=rates
        )
    except MemoryError as error:
        raise ResourceError(f"no memory on the GPU ({error})", "a smaller --vram, or --backend cpu") from None
    except ValueError as error:
        raise UsageError(str(error), "--backend cpu, or --backend reference, which takes any size") from None
    except DeviceError as error:
        raise UsageError(str(error), CHECK) from None
    return Placed(V4(config, ops, bank), plan, slots, bank)


def _bitsandbytes() -> None:
    """UsageError where it is not installed."""
    from v4kernels.triton import nf4

    try:
        nf4.library()
    except ValueError as error:
        raise UsageError(f"--dense {error}", "drop --dense") from None


def _kind(tier: InRam) -> SlotKind:
    """What all experts have in common. ValueError if they differ."""
    kinds = {SlotKind.of(expert) for expert in tier.experts}
    if len(kinds) > 1:
        raise ValueError("experts of several formats do not share slots of a GPU yet")
    return kinds.pop()


def checks() -> dict[str, Check]:
    """What a card has to pass, in the order of what is to blame if it does not."""
    return {"quantization": check.quantizing, "FP4 products": check.multiplying, "a step of nano": same_step}


def same_step(device: Device, folder: Path = paths.NANO, ids: Sequence[int] = (0, 11, 22, 33, 44)) -> str:
    """Whether a device computes the logits that the CPU computes, to the bit: what differs, or nothing."""
    checkpoint = open_model(folder)
    tree = build(checkpoint.config, PackedSource(checkpoint, check=False))
    most = min(checkpoint.config.max_position_embeddings, CONTEXT)
    found = []
    for ops in (CpuOps(tree), TritonOps(tree, device, most)):
        model: V4 = V4(checkpoint.config, ops)
        state = State(partial(ops.new_state, most))
        found.append(np.asarray(model.logits(model.forward([(ids, state)]))).copy())
    wrong = int((found[0].view(np.uint32) != found[1].view(np.uint32)).sum())
    return f"{wrong:,} of {found[0].size:,} logits are not the CPU's" if wrong else ""
