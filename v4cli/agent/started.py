"""What a run has started: its processes, what they use, and their end. Linux tells all of it in /proc. Elsewhere psutil
knows who started whom; processes whose parents have ended count if they were seen before."""

import contextlib
import mmap
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from v4cli import system

LINUX = sys.platform == "linux"
POLL_S = 0.01
END_S = 60.0  # for what has been killed to be gone
MARK = "V4_RUN"  # names a run in the environment of all that it starts
PAGE_BYTES = mmap.PAGESIZE
SHARED_BYTES = 16 << 20  # of files in memory that need no look


class Family:
    """A process and all that come from it."""

    def __init__(self, pid: int):
        self.pid = pid
        self._seen: list[psutil.Process] = []
        self._shared = _shared()
        if not LINUX:
            with contextlib.suppress(psutil.Error):
                self._seen = [psutil.Process(pid)]

    def descendants(self) -> Iterator[tuple[int, int]]:
        """The processes that come from it, and how many threads each has."""
        if LINUX:
            yield from _descendants(self.pid)
            return
        for process in self._living():
            if process.pid != self.pid:
                with contextlib.suppress(psutil.Error):
                    yield process.pid, process.num_threads()

    def memory(self, pids: list[int], limit: int, temporary: Sequence[str]) -> int:
        """Bytes of these processes, and of files in memory, which are looked for where the machine has got more of
        them; what processes share counts once, which takes longer to find out and is left out below the limit."""
        files = sum(_files_in_memory(pids, temporary)) if LINUX and _shared() - self._shared > SHARED_BYTES else 0
        resident = files + sum(_resident(pid) for pid in pids)
        return resident if resident <= limit else files + sum(_proportional(pid) for pid in pids)

    def kill(self) -> None:
        """End what comes from it; on Linux the first process of a sandbox first, with which all of the sandbox dies."""
        for pid, _ in self.descendants():
            _kill(pid)

    def _living(self) -> list[psutil.Process]:
        """It and all that come from it, as far as they were ever seen. psutil knows a number that another process has
        got since."""
        found: dict[psutil.Process, None] = {}
        for process in self._seen:
            with contextlib.suppress(psutil.Error):
                found |= dict.fromkeys([process, *process.children(recursive=True)])
        self._seen = [process for process in found if process.is_running()]
        return self._seen


def await_end(pid: int) -> None:
    """Wait until a process that has to end, and is not ours to wait for, has ended."""
    end = time.monotonic() + END_S
    while _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[:1] not in ([], [b"Z"]) and time.monotonic() < end:
        time.sleep(0.001)


def end_marked(mark: str) -> None:
    """Kill what a run without a sandbox of its own processes has left, whatever it has detached itself from. It is
    looked for a few times: while a process starts a program, its environment cannot be read."""
    end, n_clean = time.monotonic() + END_S, 0
    while n_clean < 3 and time.monotonic() < end:
        left = list(_marked(mark))
        for pid in left:
            _kill(pid)
        n_clean = 0 if left else n_clean + 1
        time.sleep(POLL_S)


def _marked(mark: str) -> Iterator[int]:
    """Processes with the mark in their environment, as far as the system shows it."""
    if LINUX:
        wanted = f"{MARK}={mark}".encode()
        for pid in filter(str.isdigit, _listed("/proc")):
            if wanted in _read(f"/proc/{pid}/environ").split(b"\0"):
                yield int(pid)
        return
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process.pid


def _descendants(pid: int) -> Iterator[tuple[int, int]]:
    todo = [pid]
    while todo:
        parent = todo.pop()
        for task in _listed(f"/proc/{parent}/task"):
            for child in _read(f"/proc/{parent}/task/{task}/children").split():
                todo.append(int(child))
                yield int(child), len(_listed(f"/proc/{child.decode()}/task"))


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, system.KILL)


def _shared() -> int:
    """Bytes of files in memory on this machine, where the system counts them."""
    return getattr(psutil.virtual_memory(), "shared", 0)


def _files_in_memory(pids: list[int], temporary: Sequence[str]) -> Iterator[int]:
    """Bytes of each memfd that the processes have open, and of the temporary folders that they see."""
    memfds, devices = set(), set()
    for pid in pids:
        for path in (f"/proc/{pid}/fd/{fd}" for fd in _listed(f"/proc/{pid}/fd")):
            with contextlib.suppress(OSError):
                if os.readlink(path).startswith("/memfd:") and (about := os.stat(path)).st_ino not in memfds:
                    memfds.add(about.st_ino)
                    yield about.st_blocks * 512
        for folder in temporary:
            with contextlib.suppress(OSError):
                its, ours = f"/proc/{pid}/root{folder}", os.stat(folder) if os.path.exists(folder) else None
                device = os.stat(its).st_dev
                if device not in devices and (ours is None or device != ours.st_dev):
                    devices.add(device)
                    about = os.statvfs(its)
                    yield (about.f_blocks - about.f_bfree) * about.f_frsize


def _resident(pid: int) -> int:
    if LINUX:
        return int((_read(f"/proc/{pid}/statm").split() or [0, 0])[1]) * PAGE_BYTES
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


def _proportional(pid: int) -> int:
    """Memory of a process, on Linux with its share of what it has in common with others, elsewhere without that."""
    if not LINUX:
        try:
            return psutil.Process(pid).memory_full_info().uss
        except (psutil.Error, OSError):
            return _resident(pid)
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) << 10
    return _resident(pid)


def _read(path: str) -> bytes:
    """A file of /proc; empty if its process is gone or not ours."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
