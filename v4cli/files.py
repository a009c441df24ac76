"""Reading files that others made, within bounds; writing files so that readers, and whoever comes after a crash, see
the old or the new one and never a part."""

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from v4cli.errors import ModelError, V4Error


def open_regular(path: Path, error: type[V4Error] = ModelError, follow: bool = True) -> BinaryIO:
    """A regular file to read; never waits for a pipe or reads a device. `follow`: whether it may be a link to one.

    `error`, naming the file, if it is missing, no regular file or cannot be opened.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        file = open(os.open(path, flags), "rb")
    except OSError as problem:
        why = "a link" if problem.errno == errno.ELOOP and not follow else problem.strerror
        raise error(f"{path}: cannot be read ({why})") from None
    except ValueError:  # a NUL in the name
        raise error(f"{path}: no such file") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise error(f"{path}: not a regular file")
    return file


def contents(path: Path, limit: int, error: type[V4Error] = ModelError, follow: bool = True) -> bytes:
    """All bytes of a regular file of at most `limit` bytes. `error`, naming the file, also if it is larger."""
    with open_regular(path, error, follow) as file:
        try:
            if os.fstat(file.fileno()).st_size > limit or len(data := file.read(limit + 1)) > limit:
                raise error(f"{path}: larger than {limit >> 20} MiB, not a file of this kind")
        except OSError as problem:
            raise error(f"{path}: cannot be read ({problem.strerror})") from None
        return data


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A file to write that is `path` afterwards, or nothing: temporary and new beside it (so no link is followed),
    fsync, rename, fsync of the folder. OSError without room."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fchmod(handle, mode)
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """The file whole, or nothing of it. OSError without room."""
    with replacing(path, mode) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
