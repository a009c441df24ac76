"""Memory for what grows with the context: room for all of it is reserved, pages come when they are first written.

Reserving costs address space only, so rows never move and growing copies nothing. In RAM the pages are anonymous; in a
folder (`--kv-dir`) they belong to a file there that has no name and goes with the process: the system then keeps in RAM
what is used and leaves the rest on the disk, so a context may be larger than what is free.
"""

import contextlib
import mmap
import os
import tempfile
from pathlib import Path
from typing import IO

import numpy as np

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
STEP = 4 << 20  # bytes of disk taken at a time
HUGE_PAGE, HUGE_FROM = 2 << 20, 8 << 20  # rows of so many bytes get huge pages: fewer faults, at most a quarter more


class Memory:
    """Hands out rows of bytes, in RAM or in one file in `folder`."""

    def __init__(self, folder: Path | None = None):
        """MemoryError if a file cannot be made in `folder`."""
        self.file: IO[bytes] | None = None
        self.end = 0
        if folder is not None:
            try:
                self.file = tempfile.TemporaryFile(dir=folder, prefix="v4-kv-")
            except OSError as error:
                raise MemoryError(f"{folder}: cannot hold the KV cache ({error.strerror})") from None

    def rows(self, most: int, width: int) -> "Rows":
        """Room for up to `most` rows of `width` bytes, none in use. MemoryError without the address space."""
        most = max(most, 1)
        size = _pages(most * width)
        try:
            if self.file is None:
                room = mmap.mmap(-1, size, flags=PRIVATE)
                return Rows(room, most, width, None, 0)
            os.ftruncate(self.file.fileno(), self.end + size)
            room = mmap.mmap(self.file.fileno(), size, offset=self.end)
        except OSError as error:
            raise MemoryError(f"no room for a context of this size ({error.strerror})") from None
        rows = Rows(room, most, width, self.file, self.end)
        self.end += size
        return rows


class Rows:
    """Rows of bytes: `data` uint8 (most, width), of which the first `used` have been asked for."""

    def __init__(self, room: mmap.mmap, most: int, width: int, file: IO[bytes] | None, offset: int):
        self.data = np.frombuffer(room, np.uint8, most * width).reshape(most, width)
        self.used = 0
        self._room, self._file, self._offset = room, file, offset
        self._backed = 0 if file is not None else len(room)  # bytes that can be written
        self._page = mmap.PAGESIZE

    def reserve(self, n: int) -> None:
        """The first n rows may be written. MemoryError if the disk is full: nothing is lost then."""
        if n <= self.used:
            return
        if n > len(self.data):
            raise MemoryError(f"the context is full: {n} entries, there is room for {len(self.data)}")
        end = n * self.data.shape[1]
        if self._file is not None and end > self._backed:
            end = min((end + STEP - 1) // STEP * STEP, len(self._room))
            try:
                os.posix_fallocate(self._file.fileno(), self._offset + self._backed, end - self._backed)
            except OSError as error:
                raise MemoryError(f"the KV cache cannot grow to {n} entries ({error.strerror})") from None
            self._backed = end
        elif end >= HUGE_FROM and self._file is None and self._page != HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                self._room.madvise(mmap.MADV_HUGEPAGE)
                self._page = HUGE_PAGE
        self.used = n

    def trim(self, n: int) -> None:
        """Give back the pages behind the first n rows."""
        if n >= self.used:
            return
        first, last = (_pages(rows * self.data.shape[1], self._page) for rows in (n, self.used))
        last = min(last, len(self._room))
        self.used = n
        if last > first and self._file is None:  # of a file the room stays taken
            with contextlib.suppress(OSError):
                self._room.madvise(mmap.MADV_DONTNEED, first, last - first)

    @property
    def nbytes(self) -> int:
        """Bytes of pages in use."""
        return min(_pages(self.used * self.data.shape[1], self._page), len(self._room))


def in_pages(used: int, most: int, width: int) -> int:
    """Bytes of memory that the first `used` of `most` rows of `width` bytes take in RAM, as `Rows.nbytes` says."""
    huge = used * width >= HUGE_FROM and hasattr(mmap, "MADV_HUGEPAGE")
    return min(_pages(used * width, HUGE_PAGE if huge else mmap.PAGESIZE), _pages(max(most, 1) * width))


def _pages(n_bytes: int, page: int = mmap.PAGESIZE) -> int:
    """Rounded up to whole pages."""
    return (n_bytes + page - 1) // page * page
