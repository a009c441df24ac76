"""Runs a program within limits, watching all that it starts, until nothing of it is left."""

import codecs
import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from v4cli import system
from v4cli.agent.started import LINUX, Family
from v4cli.agent.tree import Growth
from v4cli.interrupts import killing

POLL_S = 0.05
FREE_BYTES = 1 << 30  # of memory and of disk that a run must leave to others; half of what is free, if that is less


@dataclass(frozen=True)
class Limits:
    """What a run may use. Linux holds each process to them, macOS to fewer, Windows to none; all of them together are
    watched everywhere."""

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
    """The command that runs argv under the system's limits on a process; `more`: options of Linux's prlimit."""
    if system.WINDOWS:
        return list(argv)
    if not LINUX:
        of_each = {"-c": 0, "-t": limits.cpu_seconds, "-f": limits.file_bytes >> 9, "-n": limits.open_files}
        words = " && ".join(f"ulimit {name} {most}" for name, most in of_each.items())
        return ["/bin/sh", "-c", f'{words} && exec "$@"', "sh", *argv]
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
    it cannot be started."""
    process = subprocess.Popen(
        argv,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=pass_fds,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # nor a console of its own, on Windows
    )
    family = Family(process.pid)
    reader = _Reader(process.stdout.fileno(), output)
    watch = _Watch(family, folder, limits, growth, temporary)
    with _ahead():
        try:
            with killing(lambda: _kill_all(process, family)):
                stopped = _follow(process, reader, watch, limits, cancelled)
        finally:
            _kill_all(process, family)
            process.wait()
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
        if not system.WINDOWS:
            os.set_blocking(pipe, False)

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def wait(self, seconds: float) -> bool:
        """Take what comes within this time; False once there is nothing to come."""
        if self.open and system.can_read(self.pipe, seconds):
            data = os.read(self.pipe, 1 << 16)
            self.open = bool(data)
            self._take(data)
        return self.open

    def read_rest(self, limit: int) -> None:
        """Take what is in the pipe of a process that has ended."""
        while self.open and self.n_bytes <= limit and system.can_read(self.pipe, 0):
            self.wait(0)
        self._take(b"", final=True)

    def _take(self, data: bytes, final: bool = False) -> None:
        self.n_bytes += len(data)
        if text := self.decoder.decode(data, final):
            self.parts.append(text)
            self.output(text)


class _Watch:
    """What the kernel does not limit: a process and its descendants together, and what is left for others."""

    def __init__(self, family: Family, folder: Path, limits: Limits, growth: Growth | None, temporary: Sequence[str]):
        self.family, self.folder, self.limits = family, folder, limits
        self.growth, self.temporary = growth, temporary
        self.least_memory = min(FREE_BYTES, psutil.virtual_memory().available // 2)
        self.least_disk = min(FREE_BYTES, psutil.disk_usage(str(folder)).free // 2)

    def trouble(self) -> str:
        """The limit that is exceeded, in words."""
        n_tasks, pids = 1, [self.family.pid]
        for pid, n in self.family.descendants():
            pids.append(pid)
            n_tasks += n
            if n_tasks > self.limits.processes:
                return f"it had more than {self.limits.processes} processes and threads"
        if self.family.memory(pids, self.limits.memory_bytes, self.temporary) > self.limits.memory_bytes:
            return f"it used more than {self.limits.memory_bytes >> 20} MiB of memory"
        if psutil.virtual_memory().available < self.least_memory:
            return "the machine was running out of memory"
        if psutil.disk_usage(str(self.folder)).free < self.least_disk:
            return "the disk was getting full"
        if self.growth and self.growth.step(POLL_S / 5) > self.limits.new_files:
            return f"it made more than {self.limits.new_files:,} files"
        return ""


def _kill_all(process: subprocess.Popen, family: Family) -> None:
    """Kill it and its descendants."""
    family.kill()
    process.kill()
