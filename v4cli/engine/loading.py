"""How a model is loaded: mapped files, dense tensors, or, within a memory budget, experts on demand."""

import contextlib
import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np
import psutil
from v4kernels.api import Backend
from v4kernels.cpu import CpuOps
from v4kernels.cpu.draft import CpuDrafts

from v4cli import hardware
from v4cli.errors import ResourceError, SnapshotError, UsageError
from v4cli.experts.bank import Streamed
from v4cli.experts.device import DeviceSlots
from v4cli.experts.files import ExpertFiles, into_memory
from v4cli.experts.slots import ExpertStream
from v4cli.files import write_atomically
from v4cli.model.draft import DraftModel
from v4cli.model.schema import expected_tensors
from v4cli.model.v4 import V4
from v4cli.model.weights import build, build_draft
from v4cli.plan import cost
from v4cli.plan.budget import DRAFTS, SHARE, Residence, residence
from v4cli.prefixes import kvfile
from v4cli.store.parts import layout
from v4cli.store.sources import DenseSource, Model, PackedSource
from v4cli.store.store import Store

ALLOCATOR = {-8: 1, -3: 1 << 17, -1: 1 << 20}  # glibc's M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD (malloc.h)
MEMORY_SHARE = 0.6  # of what is free: a larger model is not read as a whole at load


def model_of(checkpoint: Model, backend: Backend, stream: ExpertStream | None = None, with_head: bool = False) -> V4:
    """The model over an opened checkpoint, its routed experts from `stream` if there is one; with its draft model, if
    there is one that the backend runs. UsageError, ModelError."""
    config, room = checkpoint.config, MEMORY_SHARE * psutil.virtual_memory().available
    try:
        if backend.name == "cpu":
            source = PackedSource(checkpoint, check=stream is not None or checkpoint.nbytes < room)
            ops = CpuOps(build(config, source, experts=stream is None))
            head = _head(checkpoint, source, ops) if with_head else None
            return V4(config, ops, Streamed(ops, stream) if stream else None, head)
        values = sum(spec.n_values for spec in expected_tensors(config, False).values())
        return V4(config, backend.bind(build(config, DenseSource(checkpoint, lazy=4 * values > room))))
    except ValueError as error:
        raise UsageError(str(error), "--backend reference takes any size") from None


def _head(checkpoint: Model, source: PackedSource, trunk: CpuOps) -> DraftModel | None:
    """The draft model of a checkpoint that has one of a size that the kernels take. ModelError."""
    if not checkpoint.has_drafts:
        return None
    config = checkpoint.config
    draft = build_draft(config, source, trunk.tree)
    try:
        return DraftModel(draft, CpuDrafts(draft), config.num_hidden_layers - 1)
    except ValueError:
        return None


def residence_in(checkpoint: Model, ram: int | None, drafts: str = "off") -> Residence | None:
    """What a budget means for a model; None where nothing is bounded: without `ram`, if all fits or the checkpoint is
    an official one.

    `ram`: bytes; by default SHARE of what is free. `drafts`: by the draft model (model), for which experts make room;
    where it fits beside them all (auto), or without it. ResourceError if the least does not fit, UsageError for an
    official checkpoint that would have to be streamed.
    """
    allowed, is_store = int(SHARE * hardware.usable_ram()) if ram is None else ram, isinstance(checkpoint, Store)
    if ram is None and (not is_store or checkpoint.nbytes < allowed):
        return None
    tensors, head = _in_memory(checkpoint)
    head = head if drafts in ("auto", "model") else 0
    if drafts == "auto" and (head >= allowed or residence(checkpoint.config, tensors, allowed).ledger.free < head):
        head = 0
    place = residence(checkpoint.config, tensors, allowed, head)
    if place.ledger.spare and not is_store:
        raise UsageError(
            f"{checkpoint.path} is larger than --ram, and experts are read on demand from stores only",
            f"v4 quantize {checkpoint.path} DST makes one",
        )
    return place if place.ledger.spare or ram is not None else None


def _in_memory(checkpoint: Model) -> tuple[dict, int]:
    """What is in memory of a checkpoint: the tensors of its trunk, and bytes of draft models. Of an official one, what
    its native store has."""
    if isinstance(checkpoint, Store):
        head = sum(part.n_bytes for name, part in checkpoint.parts.items() if name not in checkpoint.trunk)
        return cost.stored_tensors(checkpoint.trunk), head
    trunk, whole = (
        cost.stored_tensors(layout(checkpoint.config, "native", with_mtp=drafts)) for drafts in (False, True)
    )
    head = cost.payload_bytes(whole).total - cost.payload_bytes(trunk).total
    return trunk, head if checkpoint.has_drafts else 0


def streamed(store: Store, place: Residence) -> tuple[ExpertStream, dict[str, int]]:
    """Experts on demand; everything else that is to be in RAM is read into memory: bytes of that, by component.
    ModelError, ResourceError."""
    held: dict[str, int] = {}
    for name, part in store.parts.items():
        path = store.path / part.file
        if name in place.plan.ssd.holds:
            store.hold(path, _rows_of(path))
        elif not name.endswith("-experts") or name not in store.trunk:
            what = name if name in ("embed", "head") else "dense" if name in store.trunk else DRAFTS
            if what not in place.ledger.weights:  # a card's, or on disk
                continue
            memory = into_memory(path, part.n_bytes)
            store.hold(path, memory.data[: part.n_bytes])
            held[what] = held.get(what, 0) + len(memory)
    slots = place.ledger.slots
    try:
        return ExpertStream(ExpertFiles(store), slots, place.ledger.spare), held
    except MemoryError:
        raise ResourceError(f"no memory for {slots} experts", "a smaller --ram") from None


def give_back_what_is_freed() -> None:
    """Have the allocator keep little of what is freed: by default it keeps as much for every thread that computed as
    that needed at most, which no ledger knows. Elsewhere than on glibc it is as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ALLOCATOR.items():
            mallopt(option, value)


def _rows_of(path: Path) -> np.ndarray:
    """A file mapped so that reading a row reads no more than its pages."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, np.uint8)


def learn(holder: ExpertStream | DeviceSlots, path: Path) -> None:
    """What an earlier run learned about the use of experts, if there is such a file."""
    with contextlib.suppress(SnapshotError, ValueError):
        holder.learn(kvfile.read(path)[1])


def remember(holder: ExpertStream | DeviceSlots, path: Path) -> None:
    """Write what was learned about the use of experts. OSError."""
    learned = {name: array.astype(np.float32) for name, array in holder.policy.learned().items()}
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, kvfile.encoded(learned, {}), 0o600)
