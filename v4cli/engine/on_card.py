"""A model on a GPU: dense weights and KV in its memory, experts in its slots, those that have none in RAM, and what
does not fit there either on the SSD.

plan/placement.py says what goes where, and this does it. Where all experts have a slot nothing of a step is asked of
the host; else the thread of experts/split.py computes the others. A step of few rows still drives itself where these
are all in RAM; where some are on the SSD, the host asks for them layer by layer.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from v4kernels.api import DeviceError
from v4kernels.cpu import CpuOps, PackedWeight, default_threads
from v4kernels.cpu.serve import Ring, job_dtype
from v4kernels.formats import FORMATS
from v4kernels.tree import OVERLAPPED, Expert
from v4kernels.triton import check, nf4
from v4kernels.triton.batch import TritonBatch
from v4kernels.triton.device import Device
from v4kernels.triton.memory import Buffer
from v4kernels.triton.ops import TritonOps
from v4kernels.triton.slots import Pairs, Room, StepExperts
from v4kernels.triton.state import DeviceLayer
from v4kernels.triton.weights import SlotKind

from v4cli import paths
from v4cli.engine import loading
from v4cli.engine.gpu import CHECK, INSTALL, Check, OnCard
from v4cli.errors import ResourceError, UsageError
from v4cli.experts.bank import Streamed
from v4cli.experts.device import DeviceSlots, pools_of
from v4cli.experts.passing import Rates
from v4cli.experts.rehearsal import Rehearsal
from v4cli.experts.slots import ExpertStream
from v4cli.experts.split import Split
from v4cli.experts.tiers import InRam, OnDemand
from v4cli.model.config import V4Config
from v4cli.model.schema import TensorSpec
from v4cli.model.state import State
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.plan import cost, memory
from v4cli.plan.budget import CONTEXT, Residence, ledger_of
from v4cli.plan.cards import Card
from v4cli.plan.machines import DESKTOP
from v4cli.plan.placement import VRAM_STAGING, Budget, Needs, Plan, card_shortage, make_plan, shortage
from v4cli.plan.speed import CPU_ROWS, CPU_SHARE
from v4cli.store.parts import Part, layout
from v4cli.store.sources import Model, PackedSource
from v4cli.store.store import Store, open_model

RING_JOBS = 2  # of experts on demand: one is computed while the next is filled


@dataclass(frozen=True)
class Placed:
    """A model on a card: where everything is by plan, bytes of an expert, its slots and their bank, unless all experts
    lie there for good, and what reads experts from the SSD, if any are there; `weights`: bytes of others in RAM."""

    model: V4
    place: Residence
    expert: int
    slots: DeviceSlots | None = None
    bank: Split[Buffer, TritonBatch, Pairs] | None = None
    stream: ExpertStream | None = None
    weights: dict[str, int] | None = None

    @property
    def plan(self) -> Plan:
        return self.place.plan

    def vram(self, states: Sequence[State]) -> dict[str, tuple[int, int]]:
        """Bytes of the card, planned and held, by item; the runtime's are as planned."""
        holds, ops = self.plan.vram.holds, self._ops
        alone = self.bank.alone if self.bank else None
        work = ops.dense.nbytes + ops.record_nbytes + (alone.nbytes if isinstance(alone, StepExperts) else 0)
        passing = self.slots.spare * self.slots.spare_bytes if self.slots else 0
        weights = holds["dense"] + holds["head"] + (0 if self.slots else holds.get("experts", 0))
        experts = (holds.get("experts", 0), self.slots.nbytes - passing) if self.slots else (0, 0)
        kv = sum(state.nbytes - hosted_bytes(state) for state in states)
        return {
            "runtime": (holds["runtime"], holds["runtime"]),
            "weights": (weights, ops.uploads.nbytes),
            "experts": experts,
            "staging": (holds["staging"], passing),
            "work": (holds["work"], work),
            "KV": (holds["KV"], kv),
        }

    @property
    def pinned(self) -> int:
        """Bytes of RAM that card and host both see, KV left out."""
        return self._ops.record_nbytes + (self.bank.ring.nbytes if self.bank else 0)

    @property
    def _ops(self) -> TritonOps:
        assert isinstance(self.model.ops, TritonOps)
        return self.model.ops

    @property
    def working(self) -> int:
        """Bytes of RAM that the CPU's experts work in."""
        tier = self.bank.tier if self.bank else None
        return tier.bank.nbytes + tier.bank.ops.nbytes if isinstance(tier, OnDemand) else 0


def hosted_bytes(state: State) -> int:
    """Of a timeline on a card, bytes in RAM."""
    return sum(layer.hosted_nbytes for layer in state.layers if isinstance(layer, DeviceLayer))


def plan_for(checkpoint: Model, vram: int, ram: int, on_card: OnCard) -> tuple[Needs, Plan]:
    """What goes where in so many bytes that are free. ResourceError, with what would help, where it does not fit."""
    config = checkpoint.config
    parts = checkpoint.trunk if isinstance(checkpoint, Store) else layout(config, "native", False)
    tensors = cost.stored_tensors(parts)
    needs = cost.needs(config, _as_nf4(tensors, parts) if on_card.nf4 else tensors)
    n_tokens = min(CONTEXT, config.max_position_embeddings)
    needs = cost.at_context(needs, config, n_tokens)
    chunk = on_card.chunk or memory.card_chunk(config, vram)
    scratch = memory.scratch_bytes(config, chunk, n_tokens, default_threads())
    ring = RING_JOBS * job_dtype(_ring_pairs(config, chunk), config.hidden_size).itemsize
    pinned = needs.pinned + ring + memory.record_bytes(config, chunk)
    needs = replace(needs, scratch=max(needs.scratch, scratch), pinned=pinned)
    budget = Budget(ram, vram, 1.0, 1.0, 1.0, on_card.kv_host, memory.card_work_bytes(config, chunk, n_tokens))
    missing = card_shortage(needs, budget)
    if missing > 0:
        least = -(-(vram + missing) >> 20)
        raise ResourceError(
            f"the model needs {least} MiB of VRAM without any experts, {vram >> 20} MiB may be used",
            "--backend cpu, a store of --quant q4, or another --vram",
        )
    missing = shortage(needs, budget)
    if missing > 0:
        least = -(-(ram + missing) >> 20)
        raise ResourceError(
            f"beside a GPU the model needs {least} MiB of RAM with its experts on disk, {ram >> 20} MiB may be used",
            f"--ram {least}M",
        )
    plan = make_plan(needs, budget)
    if plan.resident < 1 and not isinstance(checkpoint, Store):
        raise ResourceError(
            f"{checkpoint.path}: VRAM and RAM do not hold all experts, which are read on demand from stores only",
            f"v4 quantize {checkpoint.path} DST makes one",
        )
    return needs, plan


def _ring_pairs(config: V4Config, chunk: int) -> int:
    """Of a job for experts on demand: most experts' rows of a chunk, so that few are read more than once for it."""
    return max(min(chunk, memory.CHUNK), memory.FEW_ROWS * config.num_experts_per_tok)


def _as_nf4(tensors: Mapping[str, TensorSpec], parts: Mapping[str, Part]) -> dict[str, TensorSpec]:
    """The tensors of parts, those that --dense nf4 is about in bytes of what they become."""
    made = dict(tensors)
    for name, place in ((name, place) for part in parts.values() for name, place in part.tensors.items()):
        if name.endswith(".weight") and nf4.about(name, place.format):
            n_values = FORMATS[place.format].cols(place.spec.shape[1]) * place.spec.shape[0]
            made[name] = TensorSpec("U8", (nf4.held_bytes(n_values),))
            made.pop(name.removesuffix("weight") + "scale", None)
    return made


def _need_bitsandbytes() -> None:
    """UsageError where it is missing."""
    try:
        nf4.library()
    except ValueError:
        raise UsageError("--dense nf4: bitsandbytes is not installed", INSTALL) from None


def put(checkpoint: Model, device: Device, card: Card, vram: int, ram: int, on_card: OnCard) -> Placed:
    """Put a model on a card of whose memory `vram` bytes may be used, and `ram` of the host's. ResourceError,
    UsageError, ModelError."""
    if on_card.nf4:
        _need_bitsandbytes()
    needs, plan = plan_for(checkpoint, vram, ram, on_card)
    place = Residence(plan, ledger_of(plan, needs))
    chunk = on_card.chunk or memory.card_chunk(checkpoint.config, vram)
    with ExitStack() as failed:
        stream, weights = None, None
        if plan.resident < 1 and isinstance(checkpoint, Store):
            stream, weights = loading.streamed(checkpoint, place)
            failed.callback(stream.close)
        try:
            placed = _put(checkpoint, device, card, place, chunk, on_card, stream)
            placed = replace(placed, expert=needs.expert, weights=weights)
        except MemoryError as error:
            raise ResourceError(f"no memory on the GPU ({error})", "a smaller --vram, or --backend cpu") from None
        except ValueError as error:
            hint = "--backend cpu, or --backend reference, which takes any size"
            raise UsageError(str(error), hint) from None
        except DeviceError as error:
            raise UsageError(str(error), CHECK) from None
        failed.pop_all()
    return placed


def _put(
    checkpoint: Model,
    device: Device,
    card: Card,
    place: Residence,
    chunk: int,
    on_card: OnCard,
    stream: ExpertStream | None,
) -> Placed:
    """MemoryError, ValueError, ResourceError, ModelError."""
    config, most = checkpoint.config, checkpoint.config.max_position_embeddings
    whole = place.plan.slots == config.num_hidden_layers * config.n_routed_experts
    source = PackedSource(checkpoint, check=stream is not None)
    tree = build(config, source, experts=whole)
    ops = TritonOps(tree, device, most, chunk=chunk, kv_host=on_card.kv_host, budget=memory.TILES, nf4=on_card.nf4)
    if whole:
        return Placed(V4(config, ops), place, 0)
    tier: InRam | OnDemand
    if stream is None:
        tier = InRam(build(config, source).layers)
    else:
        tier = OnDemand(Streamed(CpuOps(tree), stream), ops.dense.values)
    pools = pools_of(tier.examples, tier.kind, place.plan.slots)
    spare = 2 * max(1, VRAM_STAGING // max(pool.n_bytes for pool in pools) // 2)
    kind = tier.kind.reshape(config.num_hidden_layers, config.n_routed_experts)
    slots = DeviceSlots(device, kind, pools, tier.expert, spare)
    rooms, passing = rooms_of(tier.examples, slots)
    step = ops.step_experts(rooms, kind) if stream is None else None
    ring = step.ring if step else Ring(RING_JOBS, _ring_pairs(config, chunk), config.hidden_size)
    hashed = [layer.ffn.tid2eid is not None for layer in tree.layers]
    per_pair = 2 * 3 * config.hidden_size * config.moe_intermediate_size  # operations
    rates = Rates(card.link, CPU_SHARE * DESKTOP, per_pair / CPU_ROWS)
    bank: Split[Buffer, TritonBatch, Pairs] = Split(
        ops.slot_experts(rooms, passing), slots, tier, ring, hashed, alone=step, rates=rates
    )
    return Placed(V4(config, ops, bank), place, 0, slots, bank, stream)


def rooms_of(examples: Sequence[Expert[PackedWeight]], slots: DeviceSlots) -> tuple[list[Room], list[Room]]:
    """Where kernels find experts, by number of the kind that an example is of: in slots of its pool, in spare ones."""
    kinds = [SlotKind.of(example) for example in examples]
    spare = [Room(replace(kind, n_bytes=slots.spare_bytes), slots.passing_at) for kind in kinds]
    return [Room(kind, at) for kind, at in zip(kinds, slots.memory_at)], spare


def warm(model: V4) -> None:
    """Have all kernels compiled and loaded that steps of a model on a card may launch: of few rows, which always choose
    among entries, and of more, before there is a choice and where there is one. ResourceError."""
    bank = Rehearsal(model.bank) if isinstance(model.bank, Split) else model.bank
    trial: V4 = V4(model.config, model.ops, bank)
    choosing = OVERLAPPED * (model.config.index_topk + 1)
    for start, rows in ((0, 1), (0, memory.FEW_ROWS + 1), (choosing, memory.FEW_ROWS + 1)):
        if start + rows <= model.config.max_position_embeddings:
            state = trial.new_state()
            state.reserve(start + rows)
            state.n_tokens = start
            trial.logits(trial.forward([([0] * rows, state)]))


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
