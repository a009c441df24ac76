"""Runs `v4` as Python on Windows would find it: what only other systems have is hidden. `python as_windows.py ARGS`;
`modules` instead imports every module. What other packages need is imported before, they know their systems."""

import collections
import importlib
import os
import pkgutil
import shutil
import signal
import sys
import types

import filelock
import httpx2
import huggingface_hub
import mcp.client.stdio
import prompt_toolkit.shortcuts
import psutil
import rich.console
import starlette.applications
import torch
import typer
import uvicorn.main

MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "triton", "tty")
SIGNALS = ("ALRM", "CHLD", "CONT", "HUP", "KILL", "PIPE", "QUIT", "STOP", "TSTP", "USR1", "USR2", "WINCH")
OS = (
    "chown", "fchmod", "fchown", "fork", "getegid", "geteuid", "getgid", "getpgid", "getuid", "getxattr", "killpg",
    "listxattr", "mkfifo", "openpty", "posix_fadvise", "posix_fallocate", "pread", "preadv", "pwrite", "pwritev",
    "sched_getaffinity", "sched_setaffinity", "sched_getscheduler", "sched_setscheduler", "setsid", "setxattr",
    "statvfs", "sysconf", "uname", "O_CLOEXEC", "O_DIRECT", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK",
)  # fmt: skip
DISK = collections.namedtuple("DISK", "total used free")
IMPORTED = (filelock, httpx2, huggingface_hub, mcp, prompt_toolkit, psutil, rich, starlette, torch, typer, uvicorn)


class Process(psutil.Process):
    """With the one field more that Windows tells of memory."""

    def memory_info(self):
        return types.SimpleNamespace(**super().memory_info()._asdict(), peak_wset=1 << 20)


def no_select(*_):
    raise OSError(10038, "An operation was attempted on something that is not a socket")


def become_windows() -> None:
    for name in MODULES:
        sys.modules[name] = None
    for name in SIGNALS:
        delattr(signal, f"SIG{name}")
    statvfs = os.statvfs
    for name in OS:
        delattr(os, name)
    shutil.disk_usage = lambda path: DISK(*(n * statvfs(path).f_frsize for n in (1 << 30, 0, 1 << 28)))
    import select

    select.select = no_select
    psutil.Process = Process
    sys.modules["msvcrt"] = types.SimpleNamespace(LK_LOCK=1, locking=lambda handle, mode, n: None)
    sys.platform = "win32"
    os.O_BINARY, os.O_NOINHERIT = 0, os.O_RDONLY  # names that it has; what they stand for is Linux's


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
    become_windows()
    if sys.argv[1:] == ["modules"]:
        return import_all()
    from v4kernels import native

    library = os.environ.get("V4_TEST_LIBRARY")
    if library:
        from pathlib import Path

        loaded = native.load(Path(library))
        native._loaded = lambda: loaded
    from v4cli.cli.start import main as v4

    v4()


main()
