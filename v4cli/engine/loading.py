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

from v4cli import hardware
from v4cli.errors import ResourceError, SnapshotError, UsageError
from v4cli.experts.bank import Streamed
from v4cli.experts.files import ExpertFiles, into_memory
from v4cli.experts.slots import ExpertStream
from v4cli.files import write_atomically
from v4cli.model.schema import expected_tensors
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.plan import cost
from v4cli.plan.budget import SHARE, Residence, residence
from v4cli.prefixes import kvfile
from v4cli.store.sources import DenseSource, Model, PackedSource
from v4cli.store.store import Store

ALLOCATOR = {-8: 1, -3: 1 << 17, -1: 1 << 20}  # glibc's M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD (malloc.h)
MEMORY_SHARE = 0.6  # of what is free: a larger model is not read as a whole at load


def model_of(checkpoint: Model, backend: Backend, stream: ExpertStream | None = None) -> V4:
    """The model over an opened checkpoint, its routed experts from `stream` if there is one. UsageError, ModelError."""
    config, room = checkpoint.config, MEMORY_SHARE * psutil.virtual_memory().available
    try:
        if backend.name == "cpu":
            source = PackedSource(checkpoint, check=stream is not None or checkpoint.nbytes < room)
            ops = CpuOps(build(config, source, experts=stream is None))
            return V4(config, ops, Streamed(ops, stream) if stream else None)
        values = sum(spec.n_values for spec in expected_tensors(config, False).values())
        return V4(config, backend.bind(build(config, DenseSource(checkpoint, lazy=4 * values > room))))
    except ValueError as error:
        raise UsageError(str(error), "--backend reference takes any size") from None


def residence_in(checkpoint: Model, ram: int | None) -> Residence | None:
    """What a budget means for a model; None where nothing is bounded: without `ram` if all fits, and for official
    checkpoints.

    `ram`: bytes; by default SHARE of what is free. ResourceError if the least does not fit, UsageError for an official
    checkpoint that would have to be streamed.
    """
    allowed = int(SHARE * hardware.usable_ram()) if ram is None else ram
    if not isinstance(checkpoint, Store):
        if ram is not None and checkpoint.nbytes > ram:
            raise UsageError(
                f"{checkpoint.path} is larger than --ram, and experts are read on demand from stores only",
                f"v4 quantize {checkpoint.path} DST makes one",
            )
        return None
    if ram is None and checkpoint.nbytes < allowed:
        return None
    place = residence(checkpoint.config, cost.stored_tensors(checkpoint.trunk), allowed)
    return place if place.ledger.spare or ram is not None else None


def streamed(store: Store, place: Residence) -> tuple[ExpertStream, dict[str, int]]:
    """Experts on demand; everything else that is to be in RAM is read into memory: bytes of that, by component.
    ModelError, ResourceError."""
    held: dict[str, int] = {}
    for name, part in store.parts.items():
        path = store.path / part.file
        if name in place.plan.ssd.holds:
            store.hold(path, _rows_of(path))
        elif not (name.endswith("-experts") or name.startswith("mtp")):
            what = name if name in ("embed", "head") else "dense"
            if what not in place.plan.ram.holds:  # a card's
                continue
            memory = into_memory(path, part.n_bytes)
            store.hold(path, np.frombuffer(memory, np.uint8, part.n_bytes))
            held[what] = held.get(what, 0) + len(memory)
    slots = place.ledger.slots
    try:
        return ExpertStream(ExpertFiles(store), slots, place.ledger.spare), held
    except OSError as error:
        raise ResourceError(f"no memory for {slots} experts ({error.strerror})", "a smaller --ram") from None


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


def learn(stream: ExpertStream, path: Path) -> None:
    """What an earlier run learned about the use of experts, if there is such a file."""
    with contextlib.suppress(SnapshotError, ValueError):
        stream.learn(kvfile.read(path)[1])


def remember(stream: ExpertStream, path: Path) -> None:
    """Write what was learned about the use of experts. OSError."""
    learned = {name: array.astype(np.float32) for name, array in stream.policy.learned().items()}
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, kvfile.encoded(learned, {}), 0o600)
