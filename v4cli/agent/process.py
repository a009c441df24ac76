"""Runs a program within limits, watching all that it starts, until nothing of it is left."""

import codecs
import contextlib
import errno
import mmap
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from v4cli import system
from v4cli.agent.tree import Growth
from v4cli.interrupts import killing

POLL_S = 0.05
END_S = 60.0  # for what has been killed to be gone
MARK = "V4_RUN"  # names a run in the environment of all that it starts
PAGE_BYTES = mmap.PAGESIZE
SHARED_BYTES = 16 << 20  # of files in memory that need no look
FREE_BYTES = 1 << 30  # of memory and of disk that a run must leave to others; half of what is free, if that is less


@dataclass(frozen=True)
class Limits:
    """What a run may use. The kernel holds each process to them, and all of them together are watched."""

    seconds: float = 120.0  # wall-clock time
    cpu_seconds: int = 600  # of one process
    memory_bytes: int = 4 << 30  # memfds and temporary folders in memory count
    processes: int = 1024  # threads count
    file_bytes: int = 1 << 30  # of one file
    tmp_bytes: int = 1 << 30  # of each temporary folder
    open_files: int = 1024  # of one process
    new_files: int = 200_000  # in the workspace, folders included
    output_bytes: int = 4 << 20


STANDARD = Limits()


@dataclass(frozen=True)
class Finished:
    """What a run printed, and how it ended. `status`: the exit status, or 128 + the signal that ended it."""

    text: str
    status: int
    stopped: str = ""  # the limit that ended it, in words
    note: str = ""  # what became of what it left, for the model and the user


def limited(argv: Sequence[str], limits: Limits, *more: str) -> list[str]:
    """The command that runs argv under the kernel's limits on a process; `more`: options of prlimit."""
    of_kernel = [f"--cpu={limits.cpu_seconds}", f"--data={limits.memory_bytes}", f"--fsize={limits.file_bytes}"]
    return ["prlimit", "--core=0", *of_kernel, f"--nofile={limits.open_files}", *more, "--", *argv]


def run(
    argv: Sequence[str],
    folder: Path,
    environment: dict[str, str],
    limits: Limits,
    output: Callable[[str], None],
    cancelled: Callable[[], bool],
    growth: Growth | None = None,
    temporary: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> Finished:
    """Run argv in `folder`, without input, and kill what it leaves behind. `output` is given what it prints, as it
    comes; `growth` tells how many files it makes; `temporary`: folders that are in memory, as it sees them. OSError if
    it cannot be started, and on systems other than Linux."""
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "commands run on Linux only: elsewhere nothing watches what they use")
    process = subprocess.Popen(
        argv,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=pass_fds,
    )
    reader = _Reader(process.stdout.fileno(), output)
    watch = _Watch(process.pid, folder, limits, growth, temporary)
    with _ahead():
        try:
            with killing(lambda: _kill_all(process)):
                stopped = _follow(process, reader, watch, limits, cancelled)
        finally:
            _end(process)
    reader.read_rest(limits.output_bytes)
    process.stdout.close()
    status = process.returncode
    return Finished(reader.text, 128 - status if status < 0 else status, stopped)


@contextlib.contextmanager
def _ahead() -> Iterator[None]:
    """This thread comes before all that a run starts, where that is allowed: to root, whose processes the kernel does
    not count. A watcher that takes turns with a thousand processes sees the next thousand too late."""
    try:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except (OSError, AttributeError):
        before = None
    try:
        yield
    finally:
        if before:
            os.sched_setscheduler(0, *before)


def _follow(process, reader: "_Reader", watch: "_Watch", limits: Limits, cancelled: Callable[[], bool]) -> str:
    """Read until the process has ended, or has to; why it has to."""
    end, check = time.monotonic() + limits.seconds, 0.0
    while process.poll() is None:
        if not reader.wait(POLL_S):
            _wait(process, POLL_S)  # it has closed its output
        if reader.n_bytes > limits.output_bytes:
            return f"it printed more than {limits.output_bytes >> 10} KiB"
        now = time.monotonic()
        if now > end:
            return f"it ran longer than {limits.seconds:g} seconds"
        if cancelled():
            return "the user interrupted it"
        if now >= check:
            if trouble := watch.trouble():
                return trouble
            check = now + POLL_S
    return ""


def _wait(process, seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass


class _Reader:
    """Text that comes through a pipe, shown as it comes."""

    def __init__(self, pipe: int, output: Callable[[str], None]):
        self.pipe, self.output = pipe, output
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.parts: list[str] = []
        self.n_bytes = 0
        self.open = True
        os.set_blocking(pipe, False)

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def wait(self, seconds: float) -> bool:
        """Take what comes within this time; False once there is nothing to come."""
        if self.open and select.select([self.pipe], [], [], seconds)[0]:
            data = os.read(self.pipe, 1 << 16)
            self.open = bool(data)
            self._take(data)
        return self.open

    def read_rest(self, limit: int) -> None:
        """Take what is in the pipe of a process that has ended."""
        while self.open and self.n_bytes <= limit and select.select([self.pipe], [], [], 0)[0]:
            self.wait(0)
        self._take(b"", final=True)

    def _take(self, data: bytes, final: bool = False) -> None:
        self.n_bytes += len(data)
        if text := self.decoder.decode(data, final):
            self.parts.append(text)
            self.output(text)


class _Watch:
    """What the kernel does not limit: a process and its descendants together, and what is left for others."""

    def __init__(self, pid: int, folder: Path, limits: Limits, growth: Growth | None, temporary: Sequence[str]):
        self.pid, self.folder, self.limits, self.growth, self.temporary = pid, folder, limits, growth, temporary
        memory = psutil.virtual_memory()
        self.shared = memory.shared
        self.least_memory = min(FREE_BYTES, memory.available // 2)
        self.least_disk = min(FREE_BYTES, psutil.disk_usage(str(folder)).free // 2)

    def trouble(self) -> str:
        """The limit that is exceeded, in words."""
        n_tasks, pids = 1, [self.pid]
        for pid, n in descendants(self.pid):
            pids.append(pid)
            n_tasks += n
            if n_tasks > self.limits.processes:
                return f"it had more than {self.limits.processes} processes and threads"
        memory = psutil.virtual_memory()
        if self._memory(pids, memory.shared - self.shared) > self.limits.memory_bytes:
            return f"it used more than {self.limits.memory_bytes >> 20} MiB of memory"
        if memory.available < self.least_memory:
            return "the machine was running out of memory"
        if psutil.disk_usage(str(self.folder)).free < self.least_disk:
            return "the disk was getting full"
        if self.growth and self.growth.step(POLL_S / 5) > self.limits.new_files:
            return f"it made more than {self.limits.new_files:,} files"
        return ""

    def _memory(self, pids: list[int], n_shared: int) -> int:
        """Bytes of all, and of files in memory, which are looked for where the machine has got more of them; what
        processes share counts once, which takes longer to find out."""
        files = sum(_files_in_memory(pids, self.temporary)) if n_shared > SHARED_BYTES else 0
        resident = files + sum(_resident(pid) for pid in pids)
        return resident if resident <= self.limits.memory_bytes else files + sum(_proportional(pid) for pid in pids)


def descendants(pid: int) -> Iterator[tuple[int, int]]:
    """The processes that come from this one, and how many threads each has."""
    todo = [pid]
    while todo:
        parent = todo.pop()
        for task in _listed(f"/proc/{parent}/task"):
            for child in _read(f"/proc/{parent}/task/{task}/children").split():
                todo.append(int(child))
                yield int(child), len(_listed(f"/proc/{child.decode()}/task"))


def _end(process) -> None:
    _kill_all(process)
    process.wait()


def _kill_all(process) -> None:
    """Kill it and its descendants, the first process of a sandbox first, with which all of the sandbox dies."""
    for pid, _ in descendants(process.pid):
        _kill(pid)
    process.kill()


def await_end(pid: int) -> None:
    """Wait until a process that has to end, and is not ours to wait for, has ended."""
    end = time.monotonic() + END_S
    while _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[:1] not in ([], [b"Z"]) and time.monotonic() < end:
        time.sleep(0.001)


def end_marked(mark: str) -> None:
    """Kill what a run without a sandbox has left, whatever it has detached itself from. It is looked for a few times:
    while a process starts a program, its environment cannot be read."""
    end, n_clean = time.monotonic() + END_S, 0
    while n_clean < 3 and time.monotonic() < end:
        left = list(_marked(mark))
        for pid in left:
            _kill(pid)
        n_clean = 0 if left else n_clean + 1
        time.sleep(POLL_S / 5)


def _marked(mark: str) -> Iterator[int]:
    """Processes with the mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    for pid in filter(str.isdigit, _listed("/proc")):
        if wanted in _read(f"/proc/{pid}/environ").split(b"\0"):
            yield int(pid)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, system.KILL)
    except OSError:
        pass


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
    return int((_read(f"/proc/{pid}/statm").split() or [0, 0])[1]) * PAGE_BYTES


def _proportional(pid: int) -> int:
    """Memory of a process, with its share of what it has in common with others."""
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
