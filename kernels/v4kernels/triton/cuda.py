"""A real GPU: torch has the memory, the streams and the graphs, Triton loads kernels and launches them.

The same for AMD: what torch calls cuda is HIP there.
"""

import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from v4kernels.triton import launch
from v4kernels.triton.device import ALIGN, Call, DeviceError, Launch, Move, Node, Recorded, Recording, in_order


class Cuda(Recording):
    """See device.Device. One GPU a process: Triton loads a kernel to the first that it is launched on."""

    def __init__(self, number: int = 0):
        """DeviceError if there is no such GPU."""
        super().__init__()
        self.number = checked(number)
        self.device = torch.device("cuda", number)
        with explained("it does not start"):
            found = torch.cuda.get_device_properties(self.device)
            self.stream, self.copies = torch.cuda.Stream(self.device), torch.cuda.Stream(self.device)
        self.gpu = target_name(found)
        self.name, self.total_bytes = found.name, found.total_memory
        self._addresses: list[int] = []  # of what is allocated, ascending
        self._memory: dict[int, torch.Tensor] = {}  # uint8, by address

    @property
    def free_bytes(self) -> int:
        """Of the card, as the driver counts: other programs have theirs."""
        return torch.cuda.mem_get_info(self.device)[0]

    # -- memory -------------------------------------------------------------------------------------------------------

    def alloc(self, n_bytes: int) -> int:
        self.only_now("alloc")
        with torch.cuda.stream(self.stream), allocating(f"{n_bytes} bytes on {self.name}"):
            return self._keep(torch.zeros(max(n_bytes, 1), dtype=torch.uint8, device=self.device))

    def mapped(self, n_bytes: int) -> tuple[np.ndarray, int]:
        self.only_now("mapped")
        with torch.cuda.stream(self.stream), allocating(f"{n_bytes} pinned bytes"):
            memory = torch.zeros(max(n_bytes, 1), dtype=torch.uint8, pin_memory=True)
        return memory.numpy()[:n_bytes], self._keep(memory)  # an address of both, where addresses are unified

    def _keep(self, memory: torch.Tensor) -> int:
        address = memory.data_ptr()
        if address % ALIGN:
            raise DeviceError(f"memory at {address:#x}, no multiple of {ALIGN}")
        bisect.insort(self._addresses, address)
        self._memory[address] = memory
        return address

    def free(self, address: int) -> None:
        self.only_now("free")
        if address not in self._memory:
            raise ValueError(f"nothing was allocated at {address:#x}")
        self.synchronize()
        self._addresses.remove(address)
        del self._memory[address]

    def _bytes(self, address: int, n_bytes: int) -> torch.Tensor:
        """A view. ValueError if they are not within what was allocated at once."""
        i = bisect.bisect_right(self._addresses, address) - 1
        if i >= 0:
            start = address - self._addresses[i]
            memory = self._memory[self._addresses[i]]
            if start + n_bytes <= len(memory):
                return memory[start : start + n_bytes]
        raise ValueError(f"{n_bytes} bytes at {address:#x} are not allocated")

    def write(self, address: int, data: np.ndarray) -> None:
        self.only_now("write")
        given = torch.from_numpy(flat(data))
        with torch.cuda.stream(self.stream), explained("a copy to it failed"):
            self._bytes(address, len(given)).copy_(given)
            self.stream.synchronize()  # `data` was read; mapped memory is written in its turn

    def read(self, address: int, n_bytes: int) -> np.ndarray:
        self.synchronize()
        with torch.cuda.stream(self.stream), explained("a copy from it failed"):
            return self._bytes(address, n_bytes).cpu().numpy().copy()

    def synchronize(self) -> None:
        self.only_now("synchronize")
        with explained("what was launched failed"):
            torch.cuda.synchronize(self.device)

    # -- launches -----------------------------------------------------------------------------------------------------

    def tensor(self, address: int, n_bytes: int) -> torch.Tensor:
        return self._bytes(address, n_bytes)

    def prepare(self, node: Node) -> None:
        if isinstance(node, Call):
            return
        if isinstance(node, Move):
            self._bytes(node.to, node.n_bytes), self._bytes(node.source, node.n_bytes)
            return
        in_order(node.kernel, node.arguments, node.constants)
        with torch.cuda.stream(self.stream), explained(f"{node.kernel.fn.__name__} cannot be loaded"):
            self._compiled(node).run  # noqa: B018  # as an attribute, it loads the kernel

    def run(self, node: Node) -> None:
        with torch.cuda.stream(self.stream):
            if isinstance(node, Call):
                with explained("work of torch failed"):
                    node.work()
                return
            if isinstance(node, Move):
                to, source = self._bytes(node.to, node.n_bytes), self._bytes(node.source, node.n_bytes)
                to.copy_(source, non_blocking=True)
                return
            made = self._compiled(node)
            values = in_order(node.kernel, node.arguments, node.constants)
            x, y, z = (*node.grid, 1, 1)[:3]
            hooks = None, None, None  # metadata for them, before a launch, behind it
            with explained(f"{node.kernel.fn.__name__} was not launched"):
                made.run(x, y, z, self.stream.cuda_stream, made.function, made.packed_metadata, *hooks, *values)

    def _compiled(self, node: Launch) -> Any:
        return launch.compiled(node.kernel, node.constants, self.gpu, node.warps, node.stages)

    def graph(self) -> "Captured":
        return Captured(self)

    # -- copies beside launches ---------------------------------------------------------------------------------------

    def copy(self, parts: Sequence[tuple[int, np.ndarray]]) -> torch.cuda.Event:
        self.only_now("copy")
        given = [(self._bytes(address, data.nbytes), flat(data)) for address, data in parts]
        with torch.cuda.stream(self.copies), explained("a copy to it failed"):
            for to, data in given:
                with allocating(f"{len(data)} pinned bytes"):
                    staged = torch.empty(len(data), dtype=torch.uint8, pin_memory=True)  # torch keeps it for the copy
                staged.numpy()[:] = data
                to.copy_(staged, non_blocking=True)
            ticket = torch.cuda.Event()
            ticket.record()
        return ticket

    def completed(self, ticket: torch.cuda.Event) -> bool:
        self.only_now("completed")
        with explained("a copy to it failed"):
            return ticket.query()


class Captured(Recorded):
    """One CUDA graph of all nodes; kernels were loaded when they were recorded."""

    device: Cuda

    def finish(self) -> None:
        self.captured = torch.cuda.CUDAGraph()
        stream = self.device.stream
        with (
            explained("launches were not recorded"),
            torch.cuda.graph(self.captured, stream=stream, capture_error_mode="thread_local"),
        ):
            for node in self.nodes:
                self.device.run(node)

    def replay(self) -> None:
        self.device.only_now("replay")
        with torch.cuda.stream(self.device.stream), explained("recorded launches failed"):
            self.captured.replay()


def checked(number: int) -> int:
    """The number of a GPU that is there. DeviceError."""
    if torch.version.cuda is None and torch.version.hip is None:
        raise DeviceError("this torch is built for the CPU alone")
    if not torch.cuda.is_available():
        raise DeviceError("no GPU that torch can use, or no driver for it")
    count = torch.cuda.device_count()
    if not 0 <= number < count:
        raise DeviceError(f"no GPU {number}: there {'is 1' if count == 1 else f'are {count}'}, numbered from 0")
    return number


def target_name(properties: Any) -> str:
    """As launch.target has it, of what torch says of a card."""
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def flat(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)


@contextmanager
def allocating(what: str) -> Iterator[None]:
    """MemoryError instead of torch's; pinned memory that the system refuses is another RuntimeError there."""
    try:
        yield
    except RuntimeError as error:
        raise MemoryError(f"no memory for {what}: {first_line(error)}") from None


@contextmanager
def explained(what: str) -> Iterator[None]:
    """DeviceError instead of the many errors of torch and Triton."""
    try:
        yield
    except (DeviceError, MemoryError, ValueError, TypeError):
        raise
    except Exception as error:
        raise DeviceError(f"the GPU: {what}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
