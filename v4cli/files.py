"""Reading files that others made, within bounds; writing files so that readers, and whoever comes after a crash, see
the old or the new one and never a part."""

import codecs
import contextlib
import os
import re
import stat
import tempfile
from pathlib import Path

from v4cli.errors import ModelError, UsageError, V4Error

_HALVES = re.compile("[\udc80-\udcff]")  # what Python makes of bytes that are no text in the locale's encoding


def contents(path: Path, limit: int, error: type[V4Error] = ModelError) -> bytes:
    """All bytes of a regular file of at most `limit` bytes; never waits for a pipe or reads a device.

    `error`, naming the file, if it is missing, larger, no regular file or cannot be read.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise error(f"{path}: not a regular file")
            if about.st_size > limit or len(data := file.read(limit + 1)) > limit:
                raise error(f"{path}: larger than {limit >> 20} MiB, not a file of this kind")
            return data
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror})") from None


def decoded(data: bytes, what: str, error: type[V4Error] = UsageError) -> str:
    """UTF-8 text, without a byte order mark; `error`, naming `what`, for anything else."""
    others = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE  # UTF-32 LE begins like UTF-16 LE
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        if data.startswith(others):
            raise error(f"{what}: UTF-16 or UTF-32 text", "save it as UTF-8") from None
        raise error(f"{what}: not UTF-8 text (byte {problem.start})") from None


def argument(text: str, what: str) -> str:
    """Text from the command line or a variable, which is UTF-8 whatever the locale says. UsageError if it is not."""
    return text if text.isascii() or not _HALVES.search(text) else decoded(os.fsencode(text), what)


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Temporary file beside it, fsync, rename, fsync of the folder. OSError, and nothing is left, without room."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(handle, mode)
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
