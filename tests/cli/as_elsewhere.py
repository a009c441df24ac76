"""Runs `v4` as Python on another system would find it: what that lacks is hidden. `python as_elsewhere.py SYSTEM ARGS`,
SYSTEM windows or macos; of ARGS `modules` instead imports every module, and `pytest` runs tests. What other packages
need is imported before, they know their systems."""

import collections
import errno
import importlib
import io
import os
import pkgutil
import select
import shutil
import signal
import subprocess
import sys
import types

import filelock
import httpx2
import huggingface_hub
import mcp.client.stdio
import prompt_toolkit.shortcuts
import psutil
import pytest
import rich.console
import starlette.applications
import torch
import typer
import uvicorn.main

IMPORTED = (filelock, httpx2, huggingface_hub, mcp, prompt_toolkit, psutil, rich, starlette, torch, typer, uvicorn)
NEITHER = (  # what only Linux has
    "copy_file_range", "eventfd", "getxattr", "listxattr", "memfd_create", "pidfd_open", "pipe2", "posix_fadvise",
    "posix_fallocate", "removexattr", "sched_getaffinity", "sched_getparam", "sched_getscheduler", "sched_param",
    "sched_setaffinity", "sched_setparam", "sched_setscheduler", "setns", "setxattr", "splice", "unshare",
    "O_DIRECT", "O_NOATIME", "O_PATH",
)  # fmt: skip
WINDOWS = (
    "chown", "fchmod", "fchown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getpgid", "getpgrp", "getuid",
    "killpg", "lchown", "mkfifo", "mknod", "openpty", "pread", "preadv", "pwrite", "pwritev", "setsid", "setpgid",
    "statvfs", "sysconf", "tcgetpgrp", "uname",
    "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK",
)  # fmt: skip
WINDOWS_MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")
WINDOWS_SIGNALS = (
    "ALRM", "BUS", "CHLD", "CONT", "HUP", "IO", "KILL", "PIPE", "PROF", "QUIT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
)  # fmt: skip
NEITHER_SIGNALS = ("CLD", "POLL", "PWR", "RTMAX", "RTMIN", "STKFLT")
F_NOCACHE, F_GETPATH = 48, 50
DISK = collections.namedtuple("DISK", "total used free")


class Process(psutil.Process):
    """With the one field more that Windows tells of memory, and without its signals, which are hidden."""

    def memory_info(self):
        return types.SimpleNamespace(**super().memory_info()._asdict(), peak_wset=1 << 20)

    def kill(self):
        os.kill(self.pid, 9)


def hide(module, names) -> None:
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def become_neither() -> None:
    """No longer Linux."""
    hide(os, NEITHER)
    hide(signal, [f"SIG{name}" for name in NEITHER_SIGNALS])
    hide(select, ["epoll"])
    sys.modules["triton"] = None
    sys.addaudithook(no_proc)


def no_proc(event: str, arguments: tuple) -> None:
    """There is no /proc, for anyone but psutil, which stands for the one of another system."""
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith("/proc"):
        frame = sys._getframe(1)
        while frame and not frame.f_globals.get("__name__", "").startswith("psutil"):
            frame = frame.f_back
        if frame is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), arguments[0])


def unless_open(change):
    """A function of os that refuses files that this process has open or mapped."""

    def call(*paths, dir_fd=None, **more):
        process = psutil.Process()
        held = {file.path for file in process.open_files()} | {place.path for place in process.memory_maps()}
        for path in map(os.fsdecode, paths):
            if dir_fd is None and os.path.abspath(path) in held:
                raise PermissionError(errno.EACCES, "used by another process", path)
        return change(*paths, **more) if dir_fd is None else change(*paths, dir_fd=dir_fd, **more)

    return call


def keep_for(package: str) -> None:
    """A package that chose its code for Linux when it was imported keeps what that needs."""
    theirs = types.SimpleNamespace(**vars(os))
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == package and getattr(module, "os", None) is os:
            module.os = theirs


def become_windows() -> None:
    import fcntl
    import termios

    def peek(handle, size):
        data = bytearray(4)
        fcntl.ioctl(handle, termios.FIONREAD, data)
        n_bytes = int.from_bytes(data, sys.byteorder)
        if not n_bytes and may_be_read([handle], [], [], 0)[0]:
            raise BrokenPipeError(errno.EPIPE, "The pipe has been ended")
        return n_bytes, n_bytes

    def no_select(*_):
        raise OSError(10038, "An operation was attempted on something that is not a socket")

    may_be_read, statvfs, killing = select.select, os.statvfs, signal.SIGKILL
    subprocess.Popen.kill = lambda process: process.send_signal(killing)
    sys.modules |= dict.fromkeys(WINDOWS_MODULES)
    sys.modules["_winapi"] = types.SimpleNamespace(PeekNamedPipe=peek)
    sys.modules["msvcrt"] = types.SimpleNamespace(
        LK_LOCK=1, locking=lambda handle, mode, n: None, get_osfhandle=lambda handle: handle
    )
    hide(os, WINDOWS)
    hide(signal, [f"SIG{name}" for name in WINDOWS_SIGNALS])
    os.supports_dir_fd, os.supports_fd = set(), set()
    for name in ("unlink", "remove", "replace", "rename"):
        setattr(os, name, unless_open(getattr(os, name)))
    shutil._use_fd_functions = False
    shutil.disk_usage = lambda path: DISK(*(n * statvfs(path).f_frsize for n in (1 << 30, 0, 1 << 28)))
    psutil.disk_usage = shutil.disk_usage
    select.select = no_select
    psutil.Process = Process
    sys.platform = "win32"
    io._WindowsConsoleIO = io.StringIO  # which pytest asks for
    os.O_BINARY, os.O_NOINHERIT = 0, os.O_RDONLY  # names that it has; what they stand for is Linux's


def become_macos() -> None:
    import fcntl

    real = fcntl.fcntl

    def as_there(handle, command, argument=0):
        if command == F_GETPATH:
            return os.fsencode(os.readlink(f"/proc/self/fd/{handle}")).ljust(1024, b"\0")
        return 0 if command == F_NOCACHE else real(handle, command, argument)

    fcntl.fcntl, fcntl.F_GETPATH, fcntl.F_NOCACHE = as_there, F_GETPATH, F_NOCACHE
    import resource

    hide(resource, ["prlimit"])
    sys.platform = "darwin"


def import_all() -> None:
    import v4kernels

    import v4cli

    for package in (v4cli, v4kernels):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith(("__main__", "libv4k")):
                continue
            try:
                importlib.import_module(module.name)
            except ImportError as error:
                if not str(error.name).startswith("triton"):  # GPUs: Linux only
                    raise


def main() -> None:
    system = sys.argv.pop(1)
    keep_for("filelock")
    become_neither()
    become_windows() if system == "windows" else become_macos()
    if sys.argv[1:] == ["modules"]:
        return import_all()
    from v4kernels import native

    if library := os.environ.get("V4_TEST_LIBRARY"):
        from pathlib import Path

        loaded = native.load(Path(library))
        native._loaded = lambda: loaded
    if program := os.environ.get("V4_TEST_SANDBOX"):
        from v4cli.agent import seatbelt

        seatbelt.PROGRAM = program
    if sys.argv[1] == "pytest":
        sys.exit(pytest.main(sys.argv[2:]))
    from v4cli.cli.start import main as v4

    v4()


main()
