"""Memory for what grows with the context: room for all of it is reserved, pages come when they are first written.

Reserving costs address space only, so rows never move and growing copies nothing. In RAM the pages are private; in a
folder (`--kv-dir`) they belong to a file there that has no name and goes with the process: the system then keeps in RAM
what is used and leaves the rest on the disk, so a context may be larger than what is free.
"""

import errno
import mmap
import os
import sys
import tempfile
from pathlib import Path
from typing import IO

import numpy as np

from v4kernels.system import Room

STEP = 4 << 20  # bytes of memory or disk taken at a time
HUGE_PAGE, HUGE_FROM = 2 << 20, 8 << 20  # rows of so many bytes get huge pages: fewer faults, at most a quarter more


class Memory:
    """Hands out rows of bytes, in RAM or in one file in `folder`."""

    def __init__(self, folder: Path | None = None):
        """MemoryError if a file cannot be made in `folder`."""
        self.file: IO[bytes] | None = None
        self.end = 0
        if folder is not None:
            try:
                self.file = tempfile.TemporaryFile(dir=folder, prefix="v4-kv-", buffering=0)
            except OSError as error:
                raise MemoryError(f"{folder}: cannot hold the KV cache ({error.strerror})") from None

    def rows(self, most: int, width: int) -> "Rows":
        """Room for up to `most` rows of `width` bytes, none in use. MemoryError without the address space."""
        most = max(most, 1)
        if self.file is None:
            return RamRows(most, width)
        size = _pages(most * width, mmap.ALLOCATIONGRANULARITY)
        try:
            rows = FileRows(self.file, self.end, size, most, width)
        except OSError as error:
            raise MemoryError(f"no room for a context of this size ({error.strerror})") from None
        self.end += size
        return rows


class Rows:
    """Rows of bytes: `data` uint8 (most, width), of which the first `used` have been asked for."""

    def __init__(self, data: np.ndarray, size: int):
        self.data, self.used = data, 0
        self._size = size  # bytes of whole pages
        self._taken = 0  # of these, from the system
        self._page = mmap.PAGESIZE

    def reserve(self, n: int) -> None:
        """The first n rows may be written. MemoryError without memory, or on a full disk: nothing is lost then."""
        if n <= self.used:
            return
        if n > len(self.data):
            raise MemoryError(f"the context is full: {n} entries, there is room for {len(self.data)}")
        end = min(_pages(n * self.data.shape[1], STEP), self._size)
        if end > self._taken:
            try:
                self._take(end)
            except OSError as error:
                raise MemoryError(f"the KV cache cannot grow to {n} entries ({error.strerror})") from None
            self._taken = end
        self.used = n

    def trim(self, n: int) -> None:
        """Give back the pages behind the first n rows."""
        if n < self.used:
            self.used = n
            self._give_back(_pages(n * self.data.shape[1], self._page))

    @property
    def nbytes(self) -> int:
        """Bytes of pages in use."""
        return min(_pages(self.used * self.data.shape[1], self._page), self._size)

    def _take(self, end: int) -> None:
        """Bytes from those taken up to `end` may be written. OSError, MemoryError."""
        raise NotImplementedError

    def _give_back(self, first: int) -> None:
        """Bytes from `first` on are not in use any more."""
        raise NotImplementedError


class RamRows(Rows):
    """In private memory."""

    def __init__(self, most: int, width: int):
        """MemoryError without the address space."""
        try:
            self._room = Room(_pages(most * width))
        except MemoryError:
            raise MemoryError("no room for a context of this size") from None
        super().__init__(self._room.data[: most * width].reshape(most, width), len(self._room))

    def reserve(self, n: int) -> None:
        super().reserve(n)
        if self._page != HUGE_PAGE and n * self.data.shape[1] >= HUGE_FROM and self._room.large_pages():
            self._page = HUGE_PAGE

    def _take(self, end: int) -> None:
        self._room.commit(self._taken, end)

    def _give_back(self, first: int) -> None:
        if first < self._taken:
            self._room.discard(first, self._taken)
            self._taken = first


class FileRows(Rows):
    """In pages of a file. Its room on the disk is kept."""

    def __init__(self, file: IO[bytes], offset: int, size: int, most: int, width: int):
        """OSError without room for it."""
        if sys.platform != "win32":  # there a mapping makes its file longer
            os.ftruncate(file.fileno(), offset + size)
        mapped = mmap.mmap(file.fileno(), size, offset=offset)
        super().__init__(np.frombuffer(mapped, np.uint8, most * width).reshape(most, width), size)
        self._file, self._offset = file, offset

    def _take(self, end: int) -> None:
        """A page of the file that the disk has no room for would end the process when it is written."""
        start, n_bytes = self._offset + self._taken, end - self._taken
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), start, n_bytes)
        else:
            self._file.seek(start)
            if self._file.write(bytes(n_bytes)) < n_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _give_back(self, first: int) -> None:
        pass


def in_pages(used: int, most: int, width: int) -> int:
    """Bytes of memory that the first `used` of `most` rows of `width` bytes take in RAM, as `Rows.nbytes` says."""
    huge = used * width >= HUGE_FROM and hasattr(mmap, "MADV_HUGEPAGE")
    return min(_pages(used * width, HUGE_PAGE if huge else mmap.PAGESIZE), _pages(max(most, 1) * width))


def _pages(n_bytes: int, page: int = mmap.PAGESIZE) -> int:
    """Rounded up to whole pages."""
    return (n_bytes + page - 1) // page * page
