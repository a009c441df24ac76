"""Device memory from launch to launch: buffers at made-up addresses, far from each other and never at zero, so that an
address that was computed wrong meets none of them; nor does one that was given back, for no address is used twice."""

import bisect

import numpy as np

from ptx.faults import OutOfBounds

GUARD = 1 << 20  # bytes at least between two buffers
FIRST_BUFFER = 0x7F00_0000_0000
ALIGN = 256  # bytes, of addresses on either side
WORD = 16  # bytes; whole words are held, so that they can be seen as numbers of any size


class Buffer:
    """Kernels cannot write to one that is `frozen`. One that is `hosted` is memory of the host that it may read and
    write while a kernel runs."""

    def __init__(self, name: str, address: int, size: int, hosted: bool = False):
        self.name, self.address, self.size, self.hosted = name, address, size, hosted
        room = np.zeros(-(-size // WORD) * WORD + ALIGN, np.uint8)
        self.data = room[-room.ctypes.data % ALIGN :][: len(room) - ALIGN]  # for the host too
        self.frozen = False

    @property
    def bytes(self) -> np.ndarray:
        return self.data[: self.size]


class DeviceMemory:
    def __init__(self) -> None:
        self.buffers: list[Buffer] = []  # by address
        self.starts: list[int] = []
        self.next, self.placed = FIRST_BUFFER, 0  # the address of the next one, and how many there were
        self.changed()

    def place(self, name: str, size: int, hosted: bool = False) -> Buffer:
        """A new one, of zeros."""
        buffer = Buffer(name, self.next, size, hosted)
        self.next = (self.next + size + 2 * GUARD - 1) // GUARD * GUARD
        self.placed += 1
        self.buffers.append(buffer)
        self.changed()
        return buffer

    def remove(self, buffer: Buffer) -> None:
        self.buffers.remove(buffer)
        self.changed()

    def changed(self) -> None:
        self.starts = [b.address for b in self.buffers]
        self.ends = [0] + [b.address + b.size for b in self.buffers]  # of none, in front of them all

    def freeze(self) -> None:
        for buffer in self.buffers:
            buffer.frozen = not buffer.hosted

    def at(self, address: int, size: int = 1) -> np.ndarray:
        """A view of bytes there. OutOfBounds if they are not within one buffer."""
        i = bisect.bisect_right(self.starts, address)
        if not i or address + size > self.ends[i]:
            raise OutOfBounds(self.where(address))
        offset = address - self.starts[i - 1]
        return self.buffers[i - 1].data[offset : offset + size]

    def where(self, address: int) -> str:
        if not self.buffers or address < FIRST_BUFFER - GUARD:
            return f"address {address:#x}, near no buffer"
        near = min(self.buffers, key=lambda b: max(b.address - address, address - b.address - b.size))
        return f"byte {address - near.address} of {near.name}, which has {near.size}"
