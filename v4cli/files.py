"""Reading files that others made, within bounds; writing files so that readers, and whoever comes after a crash, see
the old or the new one and never a part."""

import contextlib
import os
import stat
from pathlib import Path

from v4cli.errors import ModelError, V4Error


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


def size(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def write_atomically(path: Path, data: bytes, mode: int = 0o644, keep: bool = False) -> None:
    """Temporary file beside it, fsync, rename, fsync of the folder. OSError, and nothing is left, without room.

    `mode` is that of a new file, less what the umask forbids. With `keep`, a file that is there passes on its
    permissions, and as far as that is allowed its owner and extended attributes.
    """
    temporary = path.with_name(f"{os.fsdecode(os.fsencode(path.name)[:200])}.{os.urandom(4).hex()}.tmp")
    before = path.lstat() if keep and path.is_file() and not path.is_symlink() else None
    first_mode = mode if before is None else before.st_mode & 0o600
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, first_mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if before is not None:
                _pass_on(path, before, handle)
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def _pass_on(path: Path, before: os.stat_result, handle: int) -> None:
    """Give what a file has besides its content to the one that replaces it; never rights to become someone else."""
    with contextlib.suppress(PermissionError):
        os.fchown(handle, before.st_uid, before.st_gid)
    os.fchmod(handle, stat.S_IMODE(before.st_mode) & 0o777)
    with contextlib.suppress(OSError):  # there are file systems without attributes
        for name in os.listxattr(path, follow_symlinks=False):
            if name.startswith("user.") or name == "system.posix_acl_access":
                os.setxattr(handle, name, os.getxattr(path, name, follow_symlinks=False))


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
