"""What Linux, macOS and Windows do differently with files, processes and users. Modules that only one of them has are
imported here and nowhere else; what the kernels need of systems is in v4kernels/system.py."""

import contextlib
import errno
import os
import platform
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

try:
    import fcntl
    import pwd
    import resource
except ImportError:  # Windows
    import msvcrt

WINDOWS = sys.platform == "win32"
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows ends a process whichever it is told
LOCKED_AT = 1 << 40  # where Windows locks a byte of a file: behind all that is in it, as a lock hinders reading there
BUSY_S = 2.0  # how long Windows may refuse to replace a file that somebody has open
_place = threading.Lock()  # where reading moves the one place that a file has


def open_file(path: str | Path, flags: int, mode: int = 0o600, follow: bool = True) -> int:
    """As os.open: of bytes, not for children, and never waiting for the other end of a pipe. OSError; of ELOOP if the
    file is a link that is not to be followed."""
    if not follow and not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOINHERIT", *(() if follow else ("O_NOFOLLOW",))):
        flags |= getattr(os, name, 0)
    return os.open(path, flags, mode)


def path_of(folder: int) -> str:
    """A path of an open folder. On Linux it leads there whatever is moved meanwhile; elsewhere to where it is now."""
    if sys.platform == "darwin":
        return os.fsdecode(fcntl.fcntl(folder, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
    return f"/proc/self/fd/{folder}"


def set_mode(handle: int, mode: int) -> None:
    """Permissions of an open file. Windows keeps them by folder: those of a user's own are closed to others."""
    if hasattr(os, "fchmod"):
        os.fchmod(handle, mode)


def pass_on(path: Path, before: os.stat_result, handle: int) -> None:
    """Give what a file has besides its content to the one that replaces it; never rights to become someone else."""
    if hasattr(os, "fchown"):
        with contextlib.suppress(PermissionError):
            os.fchown(handle, before.st_uid, before.st_gid)
    set_mode(handle, before.st_mode & 0o777)
    if hasattr(os, "listxattr"):
        with contextlib.suppress(OSError):  # there are file systems without attributes
            for name in os.listxattr(path, follow_symlinks=False):
                if name.startswith("user.") or name == "system.posix_acl_access":
                    os.setxattr(handle, name, os.getxattr(path, name, follow_symlinks=False))


def replace(old: str | Path, new: str | Path) -> None:
    """As os.replace. Windows refuses it while somebody reads `new`: that is waited for. OSError."""
    end = time.monotonic() + BUSY_S
    while True:
        try:
            return os.replace(old, new)
        except PermissionError:
            if not WINDOWS or time.monotonic() > end:
                raise
            time.sleep(0.01)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where folders can be opened."""
    if WINDOWS:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(handle: int) -> None:
    """Wait until nobody else has this file locked, and lock it until it is closed. OSError."""
    if not WINDOWS:
        return fcntl.flock(handle, fcntl.LOCK_EX)
    at = os.lseek(handle, 0, os.SEEK_CUR)
    os.lseek(handle, LOCKED_AT, os.SEEK_SET)
    try:
        msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
    finally:
        os.lseek(handle, at, os.SEEK_SET)


def read_at(handle: int, target: bytearray | memoryview, offset: int) -> int:
    """One read at an offset, which may be short: its bytes. OSError."""
    if hasattr(os, "preadv"):
        return os.preadv(handle, [target], offset)
    with _place:
        before = os.lseek(handle, 0, os.SEEK_CUR)
        os.lseek(handle, offset, os.SEEK_SET)
        data = os.read(handle, len(target))
        os.lseek(handle, before, os.SEEK_SET)
    memoryview(target)[: len(data)] = data
    return len(data)


def can_read(handle: int, seconds: float | None = None) -> bool:
    """Whether there is something to read, or the end, within so many seconds. Windows knows that of sockets only: there
    reading is what waits."""
    return WINDOWS or bool(select.select([handle], [], [], seconds)[0])


def can_write(handle: int, seconds: float | None = None) -> bool:
    """Whether something can be written within so many seconds. On Windows writing is what waits."""
    return WINDOWS or bool(select.select([], [handle], [], seconds)[1])


def kill_group(leader: int, number: int) -> None:
    """Signal a program that was started in a session of its own, and all that it started there; on Windows itself only.
    ProcessLookupError, PermissionError."""
    (os.kill if WINDOWS else os.killpg)(leader, number)


def home_of(user: int | str) -> str:
    """Home folder of a user by number, as the system's list of users has it. KeyError, ValueError."""
    if WINDOWS:
        raise KeyError(user)
    return pwd.getpwuid(int(user)).pw_dir


def processor() -> str:
    """The processor's name as macOS and Windows tell it; elsewhere its architecture."""
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far."""
    if WINDOWS:
        import psutil

        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def uncached(handle: int, n_bytes: int) -> None:
    """Have a sequential read of the first bytes come from the disk: drop them from the system's cache, where it can,
    and ask for generous reading ahead. Windows offers neither for a file that is open."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, 0, n_bytes, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(handle, 0, n_bytes, os.POSIX_FADV_SEQUENTIAL)
    elif not WINDOWS:
        fcntl.fcntl(handle, fcntl.F_NOCACHE, 1)
