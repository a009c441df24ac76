"""What systems do differently, as the kernel library has it for each of them (include/v4k.h, "memory and files")."""

import ctypes
import os
import weakref
from pathlib import Path

import numpy as np

from v4kernels.native import library

EMEMORY = -2


class Room:
    """Private memory: address space at first, of which parts are committed before they are written.

    `data`: uint8 (n_bytes,). The memory lives as long as any array that was made of it.
    """

    def __init__(self, n_bytes: int):
        """MemoryError without the address space."""
        at = library().v4k_reserve(n_bytes)
        if not at:
            raise MemoryError(f"no room for {n_bytes >> 20} MiB")
        held = (ctypes.c_uint8 * n_bytes).from_address(at)
        weakref.finalize(held, library().v4k_release, at, n_bytes).atexit = False
        self.at = at
        self.data = np.ctypeslib.as_array(held)

    def __len__(self) -> int:
        return len(self.data)

    def commit(self, start: int, end: int) -> None:
        """These bytes, in whole pages, may be written. MemoryError where the system counts what it promises."""
        if library().v4k_commit(self.at + start, end - start):
            raise MemoryError(f"no memory for {(end - start) >> 10} KiB more")

    def discard(self, start: int, end: int) -> None:
        """Give these bytes back, in whole pages; they are committed again before they are used."""
        library().v4k_discard(self.at + start, end - start)

    def large_pages(self) -> bool:
        """Whether all of it comes in large pages from now on."""
        return library().v4k_large_pages(self.at, len(self.data)) == 0

    def populate(self, start: int, end: int) -> bool:
        """Have the pages of committed bytes provided now; False where the system does that at the first touch only."""
        return library().v4k_populate(self.at + start, end - start) == 0


def committed(n_bytes: int) -> Room:
    """Private zeros, all of which may be written. MemoryError."""
    room = Room(n_bytes)
    room.commit(0, n_bytes)
    return room


class RawFile:
    """A file to read, perhaps past the system's cache."""

    def __init__(self, path: Path, direct: bool):
        """OSError; of EINVAL where it cannot be read past the cache."""
        self._handle = library().v4k_file_open(os.fsencode(path), direct)
        if self._handle < 0:
            raise OSError(-self._handle, os.strerror(-self._handle), str(path))

    def read(self, target: memoryview, offset: int) -> int:
        """One read, which may be short: its bytes. OSError."""
        to = np.frombuffer(target, np.uint8)
        count = library().v4k_file_read(self._handle, to.ctypes.data, to.nbytes, offset)
        if count < 0:
            raise OSError(-count, os.strerror(-count))
        return count

    def identity(self) -> tuple[int, ...]:
        """What changes when the contents do."""
        numbers = (ctypes.c_int64 * 3)()
        library().v4k_file_identity(self._handle, numbers)
        return tuple(numbers)

    def forget(self, offset: int, n_bytes: int) -> None:
        """Have the cache drop what was read."""
        library().v4k_file_forget(self._handle, offset, n_bytes)

    def close(self) -> None:
        library().v4k_file_close(self._handle)
