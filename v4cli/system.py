"""What Linux, macOS and Windows do differently with files, processes and users. Modules that only one of them has are
imported here and nowhere else; what the kernels need of systems is in v4kernels/system.py."""

import contextlib
import errno
import io
import os
import platform
import re
import select
import shutil
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
    import _winapi
    import msvcrt

WINDOWS = sys.platform == "win32"
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows ends a process whichever it is told
LOCKED_AT = 1 << 40  # where Windows locks a byte of a file: behind all that is in it, as a lock hinders reading there
BUSY_S = 2.0  # how long Windows may refuse to replace a file that somebody has open
LOOK_S = 0.01  # between looks at whether something has come
LONGEST = 240  # characters of a path that Windows takes as it is: of a folder 12 less than of a file
DEVICE = re.compile(r"(?is)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\..*)?")
NOT_IN_NAMES = re.compile(r'[<>:"|?*\\\0-\x1f]')
ESCAPES = 4  # ENABLE_VIRTUAL_TERMINAL_PROCESSING
ENDS_INPUT = "Ctrl-Z and Enter" if WINDOWS else "Ctrl-D"
APART = (  # for subprocess.Popen: a program that does not hear the Ctrl-C of this terminal
    {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)} if WINDOWS else {"start_new_session": True}
)
NEEDED = ("ComSpec", "PATH", "PATHEXT", "SystemDrive", "SystemRoot", "windir")  # variables, for Windows to run much
_place = threading.Lock()  # where reading moves the one place that a file has


def open_file(path: str | Path, flags: int, mode: int = 0o600, follow: bool = True) -> int:
    """As os.open: of bytes, not for children, and never waiting for the other end of a pipe. OSError; of ELOOP if the
    file is a link that is not to be followed."""
    if not follow and not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return os.open(extended(path), flags | flags_here(follow), mode)


def flags_here(follow: bool = True) -> int:
    """Flags of os.open for bytes, not for children, and never waiting; as far as the system has them."""
    names = "O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOINHERIT", *(() if follow else ("O_NOFOLLOW",))
    return sum(getattr(os, name, 0) for name in names)


def extended(path: str | Path) -> str | Path:
    """The path as Windows takes it although it is long; elsewhere as it is."""
    if not WINDOWS or str(path).startswith("\\\\?\\") or len(text := os.path.abspath(path)) < LONGEST:
        return path
    return "\\\\?\\UNC" + text[1:] if text.startswith("\\\\") else "\\\\?\\" + text


def unusable(name: str) -> str:
    """Why a file cannot have this name here, or would be something else; empty if it can. Windows takes some names for
    devices, whatever their ending, drops dots and spaces at the end, and has other streams behind a colon."""
    if not WINDOWS:
        return ""
    if DEVICE.fullmatch(name):
        return "Windows takes this name for a device"
    if NOT_IN_NAMES.search(name):
        return 'Windows allows none of < > : " | ? * in a name'
    return "Windows drops a dot or a space at the end of a name" if name.rstrip(". ") != name else ""


def path_of(folder: int) -> str:
    """A path of an open folder. On Linux it leads there whatever is moved meanwhile; elsewhere to where it is now."""
    if sys.platform == "darwin":
        return os.fsdecode(fcntl.fcntl(folder, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
    return f"/proc/self/fd/{folder}"


def real(folder: Path) -> Path:
    """The folder without links, and on macOS with the letters that its names have on the disk, whatever was typed."""
    if sys.platform != "darwin":
        return folder.resolve()
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return folder.resolve()
    try:
        return Path(path_of(handle))
    finally:
        os.close(handle)


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
            return os.replace(extended(old), extended(new))
        except PermissionError:
            if not WINDOWS or time.monotonic() > end:
                raise
            time.sleep(0.01)


def remove(path: str | Path) -> None:
    """Delete a file, if it is there. On Windows one that somebody has open stays, for the next time. OSError."""
    with contextlib.suppress(FileNotFoundError, *([PermissionError] if WINDOWS else [])):
        os.unlink(extended(path))


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
        while not _locked(handle):
            pass
    finally:
        os.lseek(handle, at, os.SEEK_SET)


def _locked(handle: int) -> bool:
    """Whether the byte could be locked within the ten seconds that Windows waits."""
    try:
        msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
    except OSError as error:
        if error.errno != errno.EDEADLK:
            raise
        return False
    return True


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


def is_terminal(handle: int) -> bool:
    """Whether somebody sits there. Windows takes any device for that, NUL too, and knows better of consoles."""
    return os.isatty(handle) and (not WINDOWS or _console_mode(handle) is not None)


def console(handle: int, mode: str) -> io.RawIOBase | None:
    """A console of Windows to read or write in UTF-8: as bytes it has an old encoding. None for all else."""
    return io._WindowsConsoleIO(handle, mode, closefd=False) if WINDOWS and is_terminal(handle) else None


def read(handle: int, most: int) -> bytes:
    """As os.read; of a console a line in UTF-8. OSError."""
    keyboard = console(handle, "rb")
    return os.read(handle, most) if keyboard is None else keyboard.read(most) or b""


def can_read(handle: int, seconds: float | None = None) -> bool:
    """Whether there is something to read, or the end, within so many seconds. Windows is asked again and again; what
    it does not know of, such as a file, can be read."""
    if not WINDOWS:
        return bool(select.select([handle], [], [], seconds)[0])
    end = None if seconds is None else time.monotonic() + seconds
    while not _has_come(handle):
        if end is not None and time.monotonic() >= end:
            return False
        time.sleep(LOOK_S)
    return True


def _has_come(handle: int) -> bool:
    """Whether a pipe of Windows, or the console, has something now, or has ended."""
    if is_terminal(handle):
        return msvcrt.kbhit()
    try:
        return _winapi.PeekNamedPipe(msvcrt.get_osfhandle(handle), 0)[0] > 0
    except OSError:  # its other end is closed, or it is a file
        return True


def can_write(handle: int, seconds: float | None = None) -> bool:
    """Whether something can be written within so many seconds. On Windows writing is what waits."""
    return WINDOWS or bool(select.select([], [handle], [], seconds)[1])


def kill_group(leader: int, number: int) -> None:
    """Signal a program that was started in a session of its own, and all that it started there; on Windows end it and
    what has come from it. ProcessLookupError, PermissionError."""
    if not WINDOWS:
        return os.killpg(leader, number)
    import psutil

    try:
        first = psutil.Process(leader)
        for process in [*first.children(recursive=True), first]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    except psutil.NoSuchProcess:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
    except psutil.AccessDenied:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM)) from None


def kill(process: int, number: int) -> None:
    """As os.kill, also of a process that has ended on Windows. ProcessLookupError, PermissionError."""
    try:
        os.kill(process, number)
    except OSError as error:
        if WINDOWS and error.errno == errno.EINVAL:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
        raise


def program(name: str, path: str | None) -> str:
    """What a name means on a PATH: Windows itself finds .exe only, not what npm and others install."""
    return shutil.which(name, path=path) or name if WINDOWS else name


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


def understands_escapes(stream) -> bool:
    """Whether a terminal acts on escape sequences. A console of Windows is told to here; older ones cannot."""
    if not WINDOWS:
        return os.environ.get("TERM", "dumb") not in ("", "dumb")
    mode = _console_mode(stream.fileno())
    if mode is None:
        return False
    import ctypes

    handle = ctypes.c_void_p(msvcrt.get_osfhandle(stream.fileno()))
    return bool(ctypes.windll.kernel32.SetConsoleMode(handle, mode | ESCAPES))


def _console_mode(handle: int) -> int | None:
    """How a console of Windows is set; None for what is no console."""
    import ctypes

    mode = ctypes.c_ulong()
    try:
        place = ctypes.c_void_p(msvcrt.get_osfhandle(handle))
        return mode.value if ctypes.windll.kernel32.GetConsoleMode(place, ctypes.byref(mode)) else None
    except (OSError, ValueError, AttributeError):
        return None
