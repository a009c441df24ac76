"""A GPU as the backend sees it: memory, launches in order, recorded launches, copies beside them.

`Device` is what there is to use, cuda.py the real one. Addresses are numbers; whoever allocates keeps them. Work goes
to the device in the order of the calls and is done there later: only `read`, `synchronize` and `free` wait for it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from v4kernels.api import DeviceError as DeviceError
from v4kernels.triton.launch import ALIGNMENT

ALIGN = 256  # of what is allocated, bytes

Number = int | float
Grid = tuple[int, ...]  # one to three dimensions


class Graph(Protocol):
    """Launches and moves that were recorded. They keep the addresses and numbers of then; memory that they name must
    stay allocated."""

    def replay(self) -> None:
        """Have them run in their order, behind all that was launched before."""


class Device(Protocol):
    """One GPU. It serves one thread at a time. Between the begin and the end of `record` there are launches and moves
    only; anything else is a RuntimeError."""

    gpu: str  # sm_89, gfx942

    def alloc(self, n_bytes: int) -> int:
        """Address of so many new bytes, zeros, aligned to ALIGN. MemoryError."""

    def free(self, address: int) -> None:
        """Give back what `alloc` or `mapped` gave, after all that was launched. ValueError for another address."""

    def mapped(self, n_bytes: int) -> tuple[np.ndarray, int]:
        """Memory of the host, uint8 [n_bytes], zeros, and its address on the device: both see what the other writes,
        kernels that run meanwhile by loads that acquire and stores that release, at the scope of the system.
        MemoryError."""

    def write(self, address: int, data: np.ndarray) -> None:
        """Bytes of an array to memory of the device, behind what was launched before and in front of what comes. The
        array may change on return."""

    def read(self, address: int, n_bytes: int) -> np.ndarray:
        """uint8 [n_bytes] of memory of the device, after all that was launched."""

    def move(self, to: int, source: int, n_bytes: int) -> None:
        """Bytes between memory of the device, mapped or not, in the order of launches. They do not overlap."""

    def launch(
        self,
        kernel: Any,
        grid: Grid,
        arguments: Sequence[Number],
        constants: Mapping[str, Any],
        warps: int = 4,
        stages: int = 1,
    ) -> None:
        """Run a kernel (see launch.compiled). `arguments`: addresses and numbers for the parameters that are no
        `constants`, in their order. TypeError if they do not fit."""

    def tensor(self, address: int, n_bytes: int) -> Any:
        """A torch tensor, uint8 [n_bytes], of memory of the device. ValueError, or a fault of its own, for bytes that
        are not within what was allocated at once."""

    def call(self, work: Callable[[], None]) -> None:
        """Have a function launch work of its own by torch, in the order of launches. It may be recorded; what it did is
        repeated then, not the function."""

    def record(self) -> AbstractContextManager[Graph]:
        """Launches and moves within are recorded and not run. The graph can be replayed when the context has ended."""

    def synchronize(self) -> None:
        """Wait for all that was launched. DeviceError for what went wrong with it, here and in `read` and `free`."""

    def copy(self, parts: Sequence[tuple[int, np.ndarray]]) -> Any:
        """Begin to copy arrays of bytes to addresses on the device, beside what is launched: a ticket. The arrays may
        change on return."""

    def completed(self, ticket: Any) -> bool:
        """Whether that copy is complete, so that launches which come now see it."""


# -- what devices have in common --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Launch:
    kernel: Any
    grid: Grid
    arguments: tuple[Number, ...]
    constants: dict[str, Any]
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Move:
    to: int
    source: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Call:
    work: Callable[[], None]


Node = Launch | Move | Call


def in_order(kernel: Any, arguments: Sequence[Number], constants: Mapping[str, Any]) -> list[Any]:
    """A value for each parameter of a kernel, constants among them. TypeError if they do not fit, ValueError for an
    address that is not aligned as kernels are compiled to expect."""
    names = [p.name for p in kernel.params if p.is_constexpr]
    if sorted(constants) != sorted(names):
        raise TypeError(f"{kernel.fn.__name__} has the constants {', '.join(names)}, not {', '.join(constants)}")
    if len(arguments) != len(kernel.params) - len(names):
        raise TypeError(f"{kernel.fn.__name__} takes {len(kernel.params) - len(names)} arguments, not {len(arguments)}")
    pointers = [p.name for p in kernel.params if not p.is_constexpr and p.annotation.startswith("*")]
    plain = [p.name for p in kernel.params if not p.is_constexpr]
    for name, value in zip(plain, arguments):
        if name in pointers and value % ALIGNMENT:
            raise ValueError(f"{kernel.fn.__name__}: {name} at {value:#x}, no multiple of {ALIGNMENT}")
    rest = iter(arguments)
    return [constants[p.name] if p.is_constexpr else next(rest) for p in kernel.params]


@dataclass
class Recorded:
    """Nodes, replayed one by one."""

    device: "Recording"
    nodes: list[Node] = field(default_factory=list)

    def finish(self) -> None:
        """All are recorded."""

    def replay(self) -> None:
        self.device.only_now("replay")
        for node in self.nodes:
            self.device.run(node)


class Recording:
    """The part of a device that launches, now or later. Another class says how to `prepare` and `run` a node."""

    def __init__(self) -> None:
        self._into: Recorded | None = None

    def prepare(self, node: Node) -> None:
        """Whatever may not happen while a graph replays: compilation, checks."""
        raise NotImplementedError

    def run(self, node: Node) -> None:
        raise NotImplementedError

    def graph(self) -> Recorded:
        """An empty one."""
        return Recorded(self)

    def launch(
        self,
        kernel: Any,
        grid: Grid,
        arguments: Sequence[Number],
        constants: Mapping[str, Any],
        warps: int = 4,
        stages: int = 1,
    ) -> None:
        self._do(Launch(kernel, grid, tuple(arguments), dict(constants), warps, stages))

    def move(self, to: int, source: int, n_bytes: int) -> None:
        self._do(Move(to, source, n_bytes))

    def call(self, work: Callable[[], None]) -> None:
        self._do(Call(work))

    def _do(self, node: Node) -> None:
        self.prepare(node)
        if self._into is None:
            self.run(node)
        else:
            self._into.nodes.append(node)

    @contextmanager
    def record(self) -> Iterator[Recorded]:
        self.only_now("record")
        graph = self._into = self.graph()
        try:
            yield graph
        finally:
            self._into = None
        graph.finish()

    def only_now(self, what: str) -> None:
        """RuntimeError while something is recorded."""
        if self._into is not None:
            raise RuntimeError(f"{what} while launches are recorded")
