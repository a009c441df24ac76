"""Memory of a device for as long as something holds it, and buffers that ops use again.

What is let go is freed by the thread that computes, when it next takes memory: a device serves one thread at a time,
and the end of an object may come in any.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from v4kernels.triton.device import ALIGN, Device


class Block:
    """Bytes of device memory, or of the host's that both see (`host`, uint8), given back with this object."""

    __slots__ = ("_free", "at", "host", "n_bytes")

    def __init__(self, at: int, n_bytes: int, free: "deque[int]", host: np.ndarray | None = None):
        self.at, self.n_bytes, self.host, self._free = at, n_bytes, host, free

    def __del__(self) -> None:
        self.host = None
        self._free.append(self.at)


class Memory:
    """A device's. Threads that use the device hold `lock` meanwhile."""

    def __init__(self, device: Device):
        self.device, self.lock = device, threading.RLock()
        self._let_go: deque[int] = deque()

    def take(self, n_bytes: int, hosted: bool = False) -> Block:
        """Zeros, at least one byte of them. MemoryError."""
        self.settle()
        n_bytes = max(n_bytes, 1)
        if hosted:
            array, at = self.device.mapped(n_bytes)
            return Block(at, n_bytes, self._let_go, array)
        return Block(self.device.alloc(n_bytes), n_bytes, self._let_go)

    def put(self, array: np.ndarray) -> Block:
        """A copy of an array."""
        block = self.take(array.nbytes)
        self.device.write(block.at, array)
        return block

    def read(self, block: Block, first: int, n_bytes: int) -> np.ndarray:
        """A copy of n_bytes from byte `first` on, after all that was launched."""
        if block.host is not None:
            self.device.synchronize()
            return block.host[first : first + n_bytes].copy()
        return self.device.read(block.at + first, n_bytes) if n_bytes else np.empty(0, np.uint8)

    def write(self, block: Block, first: int, array: np.ndarray) -> None:
        """An array to where byte `first` is, after all that was launched."""
        if block.host is not None:
            self.device.synchronize()
            block.host[first : first + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        elif array.nbytes:
            self.device.write(block.at + first, array)

    def settle(self) -> None:
        """Free what was let go."""
        while self._let_go:
            self.device.free(self._let_go.popleft())


@dataclass(frozen=True, slots=True)
class Quantized:
    """Rows of codes int8 and of scales fp32, one for each 32."""

    codes: "Buffer"
    scale: "Buffer"

    def part(self, first: int, rows: int) -> "Quantized":
        """Some of the rows."""
        return Quantized(self.codes.part(first, rows), self.scale.part(first, rows))


@dataclass(frozen=True, slots=True)
class Buffer:
    """`rows` rows of `width` numbers in device memory, one behind the other; and the same quantized, if whoever made
    them made that too."""

    at: int
    rows: int
    width: int
    dtype: type = np.float32
    quantized: Quantized | None = None

    @property
    def row_bytes(self) -> int:
        return self.width * np.dtype(self.dtype).itemsize

    def part(self, first: int, rows: int) -> "Buffer":
        """Some of its rows."""
        q = self.quantized and self.quantized.part(first, rows)
        return Buffer(self.at + first * self.row_bytes, rows, self.width, self.dtype, q)


@dataclass(frozen=True, slots=True)
class Back:
    """Addresses of the streams that a sublayer's result goes back into, how many they are, and of the mix for it."""

    mix: int
    streams: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Later(Buffer):
    """A sublayer's result that is not computed yet: `compute` stores its rows, or has them go back into streams."""

    compute: Callable[[Back | None], None]


def made(array: Buffer) -> Buffer:
    """Its rows are computed, now if they are not yet."""
    if not isinstance(array, Later):
        return array
    array.compute(None)
    return Buffer(array.at, array.rows, array.width, array.dtype)


@dataclass(slots=True)
class Work:
    """Memory that ops use again for each of their results, by name and width of a row: room for `least` rows, and for
    more, a multiple of that, once they were asked for. What a graph names must not be asked for with more."""

    memory: Memory
    least: int
    _blocks: dict[tuple[str, int], Block] = field(default_factory=dict)

    def take(self, name: str, rows: int, width: int, dtype: type = np.float32) -> Buffer:
        """Room for a result; what was held before is gone. MemoryError."""
        row_bytes = width * np.dtype(dtype).itemsize
        block = self._blocks.get((name, row_bytes))
        if block is None or block.n_bytes < rows * row_bytes:
            self._blocks.pop((name, row_bytes), None)
            del block
            block = self._blocks[name, row_bytes] = self.memory.take(-(-rows // self.least) * self.least * row_bytes)
        return Buffer(block.at, rows, width, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(aligned(block.n_bytes) for block in self._blocks.values())


def aligned(n_bytes: int) -> int:
    """Rounded up to where the next allocation may begin."""
    return -(-n_bytes // ALIGN) * ALIGN
