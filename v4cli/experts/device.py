"""Experts in the memory of a device: a fixed number of slots, given to those most likely to be used (policy.py).

Experts of one kind of formats have slots of their size, in a pool of their own. Which expert lies in which slot is a
table that a step sees unchanged. Between steps an expert that is worth it is given
a slot, of one that leaves the table at once, and copied there; it enters the table of the first step that begins when
its copy is complete. So no step reads a slot whose bytes are not those of the expert that the table names.
"""

import ctypes
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from v4kernels.cpu import PackedWeight
from v4kernels.formats import FORMATS
from v4kernels.tree import Expert

from v4cli.errors import ResourceError
from v4cli.experts.policy import Divided, Residency
from v4cli.experts.slots import divided
from v4cli.experts.uses import Uses

ALIGN = 256  # of the parts of an expert in a slot, bytes
COPIES = 8  # on their way at a time: about 5 ms of PCIe at Flash's size, less than a token takes
MOST_SLOTS = np.iinfo(np.int16).max


class Device(Protocol):
    """Memory of a device, and copies into it that it does by itself."""

    def alloc(self, n_bytes: int) -> int:
        """Address, there, of so many new bytes, aligned to ALIGN. MemoryError."""

    def copy(self, parts: Sequence[tuple[int, np.ndarray]]) -> Any:
        """Start to copy arrays of bytes to addresses there: a ticket. The arrays may change when this returns."""

    def completed(self, ticket: Any) -> bool:
        """Whether that copy is complete, so that what is launched now sees it."""

    def synchronize(self) -> None:
        """Wait for all that was launched."""


def parts_of(expert: Expert[PackedWeight]) -> list[tuple[int, int]]:
    """Address and bytes of an expert's codes and scales, in the order in which they lie in a slot."""
    parts: list[tuple[int, int]] = []
    for w in (expert.w1, expert.w3, expert.w2):
        parts += zip((w.matrix.codes, w.matrix.scale), FORMATS[w.form].n_bytes(w.matrix.rows, w.matrix.cols))
    return parts


def slot_bytes(expert: Expert[PackedWeight]) -> int:
    """Bytes of a slot for an expert of this size."""
    return sum(_aligned(n_bytes) for _, n_bytes in parts_of(expert))


@dataclass(frozen=True, slots=True)
class Pool:
    """Slots for experts of one kind: how many, and bytes of each, a multiple of ALIGN."""

    n_slots: int
    n_bytes: int


def pools_of(examples: Sequence[Expert[PackedWeight]], kind: np.ndarray, n_slots: int) -> list[Pool]:
    """So many slots divided among kinds, one of each given, as the experts are, whose kinds these are: (n_experts,)."""
    counts = np.bincount(kind, minlength=len(examples)).tolist()
    return [Pool(n, slot_bytes(example)) for n, example in zip(divided(n_slots, counts), examples)]


class DeviceSlots:
    """Slots for the experts of a model, these numbered layer by layer: a pool for each kind, and behind them `spare`
    ones, of an even number, for experts of any kind that only pass through (passing.py).

    Slot s of a kind lies at `memory_at[kind]` + s * bytes of its pool's, spare slot i, whose number is n_slots + i, at
    `passing_at` + i * `spare_bytes`."""

    def __init__(
        self,
        device: Device,
        kind: np.ndarray,
        pools: Sequence[Pool],
        source: Callable[[int], Expert[PackedWeight] | None],
        spare: int = 0,
    ):
        """`kind` (layers, E): of each expert, the number of its pool; `source`: an expert in RAM, None if it is not
        there. ResourceError without memory on the device, ValueError for more slots than a table can name."""
        n_slots = sum(pool.n_slots for pool in pools)
        if not 0 <= n_slots <= MOST_SLOTS or spare % 2:
            raise ValueError(f"{n_slots} slots; a table names up to {MOST_SLOTS}, and {spare} spare ones")
        self.device, self.kind, self.pools, self.source = device, kind, list(pools), source
        self.n_slots, self.spare, self.bytes_passed = n_slots, spare, 0
        self.spare_bytes = max(pool.n_bytes for pool in pools)
        self.table: np.ndarray = np.full(kind.shape, -1, np.int16)  # slots of experts, for the step that began last
        counts = [pool.n_slots for pool in pools]
        self.policy = Residency(kind.size, n_slots) if len(pools) == 1 else Divided(counts, kind.ravel())
        self.held: list[Expert[PackedWeight] | None] = [None] * (n_slots + spare)  # in a slot: addresses there
        try:
            self.at = device.alloc(self.nbytes) if n_slots + spare else 0
        except MemoryError:
            raise ResourceError(
                f"no memory on the device for {n_slots + spare} experts ({self.nbytes / 1e9:.1f} GB)",
                "fewer of them fit",
            ) from None
        self._lay_out()
        self._slot: dict[int, int] = {}  # of experts that are there or on their way
        self._copies: dict[int, Any] = {}  # tickets of those on their way
        self._used: list[np.ndarray] = []  # experts of this step
        self._hoped: list[int] = []  # learned to be likely, not seen in RAM yet

    def _lay_out(self) -> None:
        """The largest first, so that no pool's `memory_at` lies in front of all."""
        self._order = sorted(range(len(self.pools)), key=lambda number: -self.pools[number].n_bytes)
        self._firsts: list[int] = []  # slots, in that order
        self._free: list[list[int]] = [[] for _ in self.pools]
        self.first_of = [0] * len(self.pools)  # slots, by number of a pool
        self.memory_at, at, first = [0] * len(self.pools), self.at, 0
        for number in self._order:
            pool, self.first_of[number] = self.pools[number], first
            self._firsts.append(first)
            self._free[number] = list(range(first, first + pool.n_slots))[::-1]
            self.memory_at[number] = at - first * pool.n_bytes
            at, first = at + pool.n_slots * pool.n_bytes, first + pool.n_slots
        self.passing_at = at

    @property
    def nbytes(self) -> int:
        """Bytes taken of the device's memory, for good."""
        return sum(pool.n_slots * pool.n_bytes for pool in self.pools) + self.spare * self.spare_bytes

    def address(self, slot: int) -> int:
        """Where a slot begins."""
        if slot >= self.n_slots:
            return self.passing_at + (slot - self.n_slots) * self.spare_bytes
        number = self._order[bisect(self._firsts, slot) - 1]
        return self.memory_at[number] + slot * self.pools[number].n_bytes

    def parts_in(self, slot: int, expert: Expert[PackedWeight]) -> list[tuple[int, np.ndarray]]:
        """What to copy where, so that a slot holds this expert of RAM; it is `held` there from now on."""
        at, parts = self.address(slot), []
        self.held[slot] = _at(expert, at)
        for address, n_bytes in parts_of(expert):
            parts.append((at, np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(address))))
            at += _aligned(n_bytes)
        return parts

    # -- a step ---------------------------------------------------------------------------------------------------

    def begin_step(self) -> list[int]:
        """A step begins, the one before is over on the device too: the table is that of now. The experts new in it."""
        arrived = []
        for expert, ticket in list(self._copies.items()):
            try:
                completed = self.device.completed(ticket)
            except Exception:
                self._drop(expert)
                raise
            if completed:
                del self._copies[expert]
                self.table.flat[expert] = self._slot[expert]
                arrived.append(expert)
        return arrived

    def used(self, layer: int, uses: np.ndarray, near: np.ndarray | None, n_tokens: int) -> None:
        """This step of n tokens used each expert of a layer (E,) so many times; `near`: see policy.nearness."""
        first, experts = layer * self.table.shape[1], np.flatnonzero(uses)
        if near is not None:
            self.policy.scored(first, near)
        self.policy.used(experts + first, uses[experts], n_tokens)
        self._used.append(experts + first)

    def end_step(self, n_tokens: int, uses: Uses | None = None) -> None:
        """The step is over on the device: what is worth it is copied for those that follow, and the policy learns.
        `uses`: of a step with guesses."""
        used = np.concatenate(self._used) if self._used else np.zeros(0, np.int64)
        self._promote(used[np.argsort(-self.policy.chance[used], kind="stable")].tolist())
        if uses is None:
            self.policy.end_step(n_tokens)
        else:
            uses.learn(self.policy)
        self._used = []

    def abandon(self) -> None:
        """The step failed: nothing is learned from it."""
        self.policy.forget_step()
        self._used = []

    def _promote(self, experts: list[int]) -> None:
        """Give slots to those that are worth it and in RAM, the likeliest first."""
        self.policy.hold(list(self._copies))  # a slot that is written is not given away
        for expert in [*self._hoped, *experts]:
            if len(self._copies) >= COPIES or not self.n_slots:
                return
            found = None if self.policy.resident[expert] else self.source(expert)
            if found is not None:
                self._admit(expert, found)

    def _admit(self, expert: int, found: Expert[PackedWeight]) -> None:
        victim = self.policy.admit(expert)
        if expert in self._hoped:
            self._hoped.remove(expert)
        if victim == expert:
            return
        if victim is not None:
            self._drop(victim)
        slot = self._slot[expert] = self._free[self.kind.flat[expert]].pop()
        parts = self.parts_in(slot, found)
        self.policy.hold([expert])
        try:
            self._copies[expert] = self.device.copy(parts)
        except Exception:
            self._drop(expert)
            raise

    def _drop(self, expert: int) -> None:
        """Out of the table; its slot is free."""
        self.policy.drop(expert)
        self._copies.pop(expert, None)
        slot = self._slot.pop(expert)
        self.table.flat[expert] = -1
        self.held[slot] = None
        self._free[self.kind.flat[expert]].append(slot)

    # -- learned use ------------------------------------------------------------------------------------------------

    def learn(self, arrays: dict[str, np.ndarray]) -> None:
        """Between steps: begin with what `policy.learned()` gave in another run; the likeliest experts are copied, a
        few after each step, as they are in RAM. ValueError if it does not fit."""
        self.policy.learn(arrays)
        self._hoped = self.policy.best().tolist()
        self._promote([])


def _at(expert: Expert[PackedWeight], at: int) -> Expert[PackedWeight]:
    """The same expert in a slot at this address."""
    starts = []
    for _, n_bytes in parts_of(expert):
        starts.append(at)
        at += _aligned(n_bytes)

    def moved(w: PackedWeight, codes: int, scale: int) -> PackedWeight:
        return PackedWeight(codes, scale, w.matrix.rows, w.matrix.cols, w.form)

    return Expert(w1=moved(expert.w1, *starts[:2]), w3=moved(expert.w3, *starts[2:4]), w2=moved(expert.w2, *starts[4:]))


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGN) * ALIGN
