"""Reading files that others made, within bounds; writing files so that readers, and whoever comes after a crash, see
the old or the new one and never a part."""

import codecs
import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from v4cli import system
from v4cli.errors import ModelError, UsageError, V4Error

_HALVES = re.compile("[\udc80-\udcff]")  # what Python makes of bytes that are no text in the locale's encoding


def open_regular(path: Path, error: type[V4Error] = ModelError, follow: bool = True) -> BufferedReader:
    """A regular file to read; never waits for a pipe or reads a device. `follow`: whether it may be a link to one.

    `error`, naming the file, if it is missing, no regular file or cannot be opened.
    """
    try:
        file = open(system.open_file(path, os.O_RDONLY, follow=follow), "rb")
    except OSError as problem:
        why = "a link" if problem.errno == errno.ELOOP and not follow else problem.strerror
        raise error(f"{path}: cannot be read ({why})") from None
    except ValueError:  # a NUL in the name
        raise error(f"{path}: no such file") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise error(f"{path}: not a regular file")
    return file


def open_own(path: Path, mode: int = 0o600, error: type[V4Error] = UsageError) -> BinaryIO:
    """A regular file to write anew, with these permissions at most, though it was there; no link is followed to it, and
    nothing but a file written over. `error`, naming the file, if that cannot be."""
    try:
        file = open(system.open_file(path, os.O_WRONLY | os.O_CREAT, mode, follow=False), "wb")
        its_mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(its_mode):
            file.close()
            raise error(f"{path}: not a regular file", "give another name")
        system.set_mode(file.fileno(), stat.S_IMODE(its_mode) & mode)
        file.truncate(0)
    except OSError as problem:
        why = "a link" if problem.errno == errno.ELOOP else problem.strerror
        raise error(f"{path}: cannot be written ({why})", "give another name") from None
    return file


def size(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def contents(path: Path, limit: int, error: type[V4Error] = ModelError, follow: bool = True) -> bytes:
    """All bytes of a regular file of at most `limit` bytes. `error`, naming the file, also if it is larger."""
    with open_regular(path, error, follow) as file:
        try:
            if os.fstat(file.fileno()).st_size > limit or len(data := file.read(limit + 1)) > limit:
                most = f"{limit >> 20} MiB" if limit >> 20 else f"{limit >> 10} KiB"
                raise error(f"{path}: larger than {most}, not a file of this kind")
        except OSError as problem:
            raise error(f"{path}: cannot be read ({problem.strerror})") from None
        return data


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


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o644, keep: bool = False) -> Iterator[BinaryIO]:
    """A file to write that is `path` afterwards, or nothing: temporary and new beside it (so no link is followed),
    fsync, rename, fsync of the folder. OSError, and nothing is left, without room; a device is never replaced.

    `mode` is that of a new file, less what the umask forbids. With `keep`, a file that is there passes on its
    permissions, and as far as that is allowed its owner and extended attributes.
    """
    temporary = path.with_name(f"{os.fsdecode(os.fsencode(path.name)[:200])}.{os.urandom(4).hex()}.tmp")
    there = os.lstat(system.extended(path)) if os.path.lexists(system.extended(path)) else None
    if there is not None and stat.S_IFMT(there.st_mode) in (stat.S_IFCHR, stat.S_IFBLK):
        raise OSError(errno.EINVAL, "it is a device", str(path))
    before = there if keep and there is not None and stat.S_ISREG(there.st_mode) else None
    first_mode = mode if before is None else before.st_mode & 0o600
    handle = system.open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, first_mode, follow=False)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if before is not None:
                system.pass_on(path, before, handle)
            os.fsync(handle)
        system.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(system.extended(temporary))
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # what writing says on its own names no file
        raise
    system.sync_folder(path.parent)


def write_atomically(path: Path, data: bytes | bytearray, mode: int = 0o644, keep: bool = False) -> None:
    """The file whole, or nothing of it, as `replacing` makes it. OSError without room."""
    with replacing(path, mode, keep) as file:
        file.write(data)
