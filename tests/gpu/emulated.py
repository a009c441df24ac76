"""A device whose kernels run in the PTX machine. Import behind `pytest.importorskip("triton")`."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import ptx
import torch
from v4kernels.triton import launch
from v4kernels.triton.device import Call, Launch, Move, Node, Recording, in_order

NULL = 0  # for what Triton adds to a kernel's parameters: scratch memory, which none of them has


class Emulated(Recording):
    """See device.Device. Every allocation is a buffer of its own: an access beyond it is a fault, and so is any to one
    that was given back. Launches run at once; copies arrive when `completed` is asked about them, or, of a device that
    is `late`, when `arrive` is called."""

    def __init__(self, gpu: str = "sm_89", room: int = 1 << 32, late: bool = False):
        """`room`: bytes of device memory."""
        super().__init__()
        self.gpu, self.room, self.late = gpu, room, late
        self.memory = ptx.DeviceMemory()
        self.launches = 0  # so far
        self.coming: list[tuple[object, list[tuple[int, np.ndarray]]]] = []

    # -- memory -------------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that are allocated."""
        return sum(buffer.size for buffer in self.memory.buffers if not buffer.hosted)

    def alloc(self, n_bytes: int) -> int:
        self.only_now("alloc")
        if self.nbytes + n_bytes > self.room:
            raise MemoryError(f"no memory for {n_bytes} bytes on the device")
        return self._place("allocation", n_bytes).address

    def mapped(self, n_bytes: int) -> tuple[np.ndarray, int]:
        self.only_now("mapped")
        buffer = self._place("mapped memory", n_bytes, hosted=True)
        return buffer.bytes, buffer.address

    def free(self, address: int) -> None:
        self.only_now("free")
        found = [buffer for buffer in self.memory.buffers if buffer.address == address]
        if not found:
            raise ValueError(f"nothing was allocated at {address:#x}")
        self.memory.remove(found[0])

    def freeze(self) -> None:
        """Kernels may read what is allocated now and not write to it."""
        self.memory.freeze()

    def write(self, address: int, data: np.ndarray) -> None:
        self.only_now("write")
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self.memory.at(address, len(flat))[:] = flat

    def read(self, address: int, n_bytes: int) -> np.ndarray:
        self.only_now("read")
        return self.memory.at(address, n_bytes).copy()

    def synchronize(self) -> None:
        self.only_now("synchronize")

    def _place(self, what: str, n_bytes: int, hosted: bool = False) -> ptx.Buffer:
        name = f"{what} {self.memory.placed} of {n_bytes} bytes"
        return self.memory.place(name, n_bytes, hosted)

    # -- launches -----------------------------------------------------------------------------------------------------

    def tensor(self, address: int, n_bytes: int) -> torch.Tensor:
        return torch.from_numpy(self.memory.at(address, n_bytes))

    def prepare(self, node: Node) -> None:
        if isinstance(node, Launch):
            in_order(node.kernel, node.arguments, node.constants)
            program(node.kernel, self.gpu, node.warps, node.stages, **node.constants)

    def run(self, node: Node) -> None:
        if isinstance(node, Move):
            self._move(node)
            return
        if isinstance(node, Call):
            node.work()
            return
        self.launches += 1
        made = program(node.kernel, self.gpu, node.warps, node.stages, **node.constants)
        extra = [NULL] * (len(made.parameters) - len(node.arguments))
        ptx.launch_in(self.memory, made, node.grid, [*node.arguments, *extra])

    def _move(self, node: Move) -> None:
        to, source = self.memory.at(node.to, node.n_bytes), self.memory.at(node.source, node.n_bytes)
        if np.shares_memory(to, source):
            raise ValueError("a move between bytes that overlap")
        to[:] = source

    # -- copies beside launches ---------------------------------------------------------------------------------------

    def copy(self, parts: Sequence[tuple[int, np.ndarray]]) -> object:
        self.only_now("copy")
        ticket = object()
        taken = [(at, np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy()) for at, array in parts]
        for at, array in taken:
            self.memory.at(at, len(array))[:] = 0xAA
        self.coming.append((ticket, taken))
        return ticket

    def arrive(self, count: int | None = None) -> None:
        """So many copies are complete, by default all, the oldest first."""
        for _, parts in self.coming[:count]:
            for at, array in parts:
                self.memory.at(at, len(array))[:] = array
        del self.coming[:count]

    def completed(self, ticket: object) -> bool:
        self.only_now("completed")
        under_way = [other for other, _ in self.coming]
        if ticket in under_way and not self.late:
            self.arrive(under_way.index(ticket) + 1)
            return True
        return ticket not in under_way


@functools.cache
def program(kernel: Any, gpu: str, warps: int = 4, stages: int = 1, **constants: Any) -> ptx.Program:
    made = launch.compiled(kernel, constants, gpu, warps, stages)
    return ptx.load(made.asm["ptx"], made.metadata.shared)
