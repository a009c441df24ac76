"""Weights in device memory: matrices one by one, experts in slots."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from v4kernels.cpu.bound import PackedWeight
from v4kernels.formats import FORMATS
from v4kernels.tree import Expert
from v4kernels.triton.memory import Block, Memory, aligned

if TYPE_CHECKING:
    from v4kernels.triton.nf4 import Nf4

READ = ("fp4", "int8", "int4", "bf16", "f32", "q3", "q2")  # formats, by the kernels for GPUs
MATRICES = ("w1", "w3", "w2")  # in the order in which they lie in a slot, each with its scales behind it


@dataclass(frozen=True, slots=True)
class DeviceWeight:
    """A matrix (rows, cols) as stored: addresses of its codes and scales, these 0 where the format has none."""

    form: str
    codes: int
    scale: int
    rows: int
    cols: int

    @property
    def quantized(self) -> bool:
        return bool(FORMATS[self.form].scale)


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """A quantized matrix whose outputs fall into `groups`, `rows` each, that see inputs of their own (cols): groups lie
    in slots, each its codes and, from `scale_place` on, its scales."""

    form: str
    at: int
    slot_bytes: int
    scale_place: int
    rows: int
    cols: int
    groups: int


def stored(w: PackedWeight) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of a matrix of the host as uint8, without a copy; no scales where the format has none.
    ValueError for a format that no kernel here reads."""
    if w.form not in READ:
        raise ValueError(f"no kernel for GPUs reads {w.form} weights")
    codes, scale = FORMATS[w.form].n_bytes(w.matrix.rows, w.matrix.cols)
    return _bytes(w.matrix.codes, codes), _bytes(w.matrix.scale, scale)


def _bytes(address: int | None, n_bytes: int) -> np.ndarray:
    if not address or not n_bytes:
        return np.empty(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(address))


@dataclass(frozen=True, slots=True)
class SlotKind:
    """What experts have in common that one launch can compute: formats of w1, w3, w2, and where their parts lie in a
    slot of `n_bytes`."""

    forms: tuple[str, str, str]
    dim: int  # D
    inner: int  # I
    places: tuple[int, ...]  # of codes and scales of each matrix
    n_bytes: int

    @classmethod
    def of(cls, expert: Expert[PackedWeight]) -> "SlotKind":
        """The kind of an expert, its parts one behind the other."""
        places, end = [], 0
        for name in MATRICES:
            for part in stored(getattr(expert, name)):
                places.append(end)
                end += aligned(part.nbytes)
        forms = expert.w1.form, expert.w3.form, expert.w2.form
        return cls(forms, expert.w1.matrix.cols, expert.w1.matrix.rows, tuple(places), end)

    def constants(self, *matrices: str) -> dict[str, int | str]:
        """Of kernels that read these matrices of slots (experts.py)."""
        found: dict[str, int | str] = {"SLOT": self.n_bytes}
        for name in matrices:
            i = MATRICES.index(name)
            found[name.upper()], found[f"{name.upper()}_SCALE"] = self.places[2 * i], self.places[2 * i + 1]
            found[f"{name.upper()}_FORMAT"] = self.forms[i]
        return found

    def grouped(self, name: str) -> dict[str, int | str]:
        """Of gemm_experts, for one matrix."""
        i = MATRICES.index(name)
        codes, scale = self.places[2 * i : 2 * i + 2]
        return {"W": codes, "W_SCALE": scale, "SLOT": self.n_bytes, "FORMAT": self.forms[i]}

    def parts(self, expert: Expert[PackedWeight]) -> list[tuple[int, np.ndarray]]:
        """Where in a slot the bytes of an expert of this kind go."""
        arrays = [part for name in MATRICES for part in stored(getattr(expert, name))]
        return list(zip(self.places, arrays))


@dataclass(frozen=True, slots=True)
class Slots:
    """Experts of one layer and kind: memory of slots, and a table int16 [experts] of where each has its own, -1 for
    those that have none."""

    kind: SlotKind
    memory_at: int
    table_at: int
    numbers: np.ndarray  # the table, on the host


class Uploads:
    """Puts weights into device memory, where they stay as long as this object. `nf4`: quantized matrices, but for those
    of experts, as 4-bit normal floats."""

    def __init__(self, memory: Memory, nf4: bool = False):
        self.memory, self.nf4 = memory, nf4
        self.blocks: list[Block] = []
        self.held: list[Nf4] = []

    def array(self, array: np.ndarray | None, dtype: type = np.float32) -> int:
        """Address of a copy; 0 of None."""
        if array is None:
            return 0
        self.blocks.append(self.memory.put(np.ascontiguousarray(array, dtype)))
        return self.blocks[-1].at

    def weight(self, w: PackedWeight) -> "DeviceWeight | Nf4":
        if self.nf4 and FORMATS[w.form].packed:
            return self._nf4(w, 1)
        codes, scale = stored(w)
        at = [self.array(part, np.uint8) if part.nbytes else 0 for part in (codes, scale)]
        return DeviceWeight(w.form, at[0], at[1], w.matrix.rows, w.matrix.cols)

    def _nf4(self, w: PackedWeight, groups: int) -> "Nf4":
        from v4kernels.triton import nf4

        self.held.append(nf4.upload(self.memory, w, groups))
        return self.held[-1]

    def grouped(self, w: PackedWeight, groups: int) -> "DeviceWeight | GroupedWeight | Nf4":
        """A matrix whose outputs fall into groups; those of formats without scales lie as they are."""
        if self.nf4 and FORMATS[w.form].packed:
            return self._nf4(w, groups)
        if not FORMATS[w.form].scale:
            return self.weight(w)
        codes, scale = (part.reshape(groups, -1) for part in stored(w))
        place = aligned(codes.shape[1])
        slots = np.zeros((groups, place + aligned(scale.shape[1])), np.uint8)
        slots[:, : codes.shape[1]], slots[:, place : place + scale.shape[1]] = codes, scale
        at, rows, cols = self.array(slots, np.uint8), w.matrix.rows // groups, w.matrix.cols
        return GroupedWeight(w.form, at, slots.shape[1], place, rows, cols, groups)

    def slots(self, experts: Sequence[Expert[PackedWeight]]) -> list[Slots]:
        """All experts of a layer, a slot for each; by kind."""
        kinds: dict[SlotKind, list[int]] = {}
        for number, expert in enumerate(experts):
            kinds.setdefault(SlotKind.of(expert), []).append(number)
        found = []
        for kind, numbers in kinds.items():
            block, table = self.memory.take(len(numbers) * kind.n_bytes), np.full(len(experts), -1, np.int16)
            self.blocks.append(block)
            for slot, number in enumerate(numbers):
                table[number] = slot
                for place, part in kind.parts(experts[number]):
                    if part.nbytes:
                        self.memory.device.write(block.at + slot * kind.n_bytes + place, part)
            found.append(Slots(kind, block.at, self.array(table, np.int16), table))
        return found

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(aligned(block.n_bytes) for block in self.blocks) + sum(held.nbytes for held in self.held)
