"""Runs a program in a sandbox: only the workspace is writable, and in it nothing that the user's programs trust; the
user's other files and the network do not exist, and nothing of the run goes on after it. Linux has bubblewrap for it;
macOS has sandbox-exec (seatbelt.py), where the files exist but cannot be read; Windows has nothing."""

import functools
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path

from v4cli import system
from v4cli.agent import guard, outside, process, seatbelt, seccomp, started, tree, trusted
from v4cli.agent.guard import Guard
from v4cli.agent.process import STANDARD, Finished, Limits

MACOS = sys.platform == "darwin"
PATH = "/opt/homebrew/bin:" * MACOS + "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOME = "/home/sandbox"
TEMPORARY = ("/dev/shm", "/tmp", HOME)  # in memory
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SETTINGS = (  # of /etc: what programs need, nothing about this machine's services
    "alternatives", "ca-certificates", "fonts", "group", "java-*", "ld.so.cache", "ld.so.conf", "ld.so.conf.d",
    "localtime", "magic", "mime.types", "nsswitch.conf", "os-release", "passwd", "perl", "pki/ca-trust",
    "pki/tls/certs", "protocols", "python3*", "services", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone",
)  # fmt: skip
NETWORK_SETTINGS = ("gai.conf", "host.conf", "hosts", "resolv.conf")
KERNEL = ("/proc/sys", "/proc/sysrq-trigger")  # root may write there even without capabilities

Output = Callable[[str], None]
Wrapped = Callable[[str], Sequence[str]]


class Access(Enum):
    """What a run may do to the workspace."""

    READ = "read"
    WORK = "work"  # write, except to what the user's programs trust
    OWN = "own"  # write anything: nobody works there before it is removed


def run(
    argv: Sequence[str],
    folder: Path,
    limits: Limits = STANDARD,
    network: bool = False,
    output: Output = lambda text: None,
    cancelled: Callable[[], bool] = lambda: False,
    access: Access = Access.WORK,
) -> Finished:
    """Run argv in the workspace `folder`; in a sandbox if `trouble(folder)` has nothing against it, else with the same
    limits and environment only, for which the user must have been asked. ToolError if what the user's programs trust
    there cannot be kept safe."""
    folder = system.real(folder)
    if trouble(folder):
        return _unprotected(argv, folder, limits, output, cancelled)
    if access is not Access.WORK:
        return _sandboxed(argv, folder, limits, network, output, cancelled, access)
    its = Guard(str(folder), cancelled)
    try:
        done = _sandboxed(argv, folder, limits, network, output, cancelled, access, its)
    finally:
        left = its.clear()
    return replace(done, note=guard.note(its, left, done.text))


def trouble(folder: Path) -> str:
    """Why there is no sandbox for this workspace; empty if there is one."""
    folder = system.real(folder)
    if any(trusted.within(home, str(folder)) for home in outside.homes()):
        return "the workspace is your home folder or holds it; start in a folder of its own"
    if repository := trusted.repository_around(str(folder)):
        return f"the workspace lies in what git keeps for itself ({repository}); start in the work tree"
    return missing()


def name() -> str:
    """What makes the sandbox on this system."""
    return {"linux": "bubblewrap", "darwin": "sandbox-exec"}.get(sys.platform, "")


@functools.cache
def missing() -> str:
    """Why this machine makes no sandbox, found out by making one; empty if it does."""
    if not name():
        return "there is no sandbox on this system"
    if MACOS and not os.path.exists(seatbelt.PROGRAM):
        return f"{seatbelt.PROGRAM} is not there"
    if not MACOS and not shutil.which("bwrap"):
        return "bubblewrap (bwrap) is not installed"
    if not MACOS and not seccomp.program():
        return f"there is no list of system calls for {platform.machine()}"
    with tempfile.TemporaryDirectory(prefix="v4-sandbox-") as folder:
        limits, where = Limits(seconds=10), Path(folder).resolve()
        made = _sandboxed(["true"], where, limits, False, lambda text: None, lambda: False, Access.READ)
    said = (made.text.strip().splitlines() or [made.stopped])[-1]
    needed = "" if MACOS else "; 0.8 or later is needed"
    return "" if made.status == 0 else f"{name()} does not work here ({said}){needed}"


def python() -> str:
    """This Python, as a run can start it."""
    return sys.executable if system.WINDOWS else Path(sys.executable).name


def environment(home: str = HOME) -> dict[str, str]:
    """All that a program is told: nothing of the user's environment, but on Windows where programs are."""
    path = os.pathsep.join([*(str(prefix / "bin") for prefix in _prefixes()), PATH])
    told = {"PATH": path, "HOME": home, "LANG": "C.UTF-8", "TERM": "dumb", "NO_COLOR": "1"}
    told |= {"GIT_OPTIONAL_LOCKS": "0"}  # a repository is read-only
    if MACOS:
        told |= {"TMPDIR": home, "LANG": "en_US.UTF-8"}
    if system.WINDOWS:
        told |= {name: os.environ[name] for name in system.NEEDED if name in os.environ}
        told |= dict.fromkeys(("USERPROFILE", "APPDATA", "LOCALAPPDATA", "TEMP", "TMP"), home) | {"PYTHONUTF8": "1"}
    return told


def _unprotected(argv, folder: Path, limits: Limits, output: Output, cancelled) -> Finished:
    return _watched(lambda home: argv, folder, limits, output, cancelled, _growth(folder))


def _watched(wrapped: Wrapped, folder: Path, limits: Limits, output: Output, cancelled, growth) -> Finished:
    """Run what `wrapped` makes of a home folder of the run's own, and end what it leaves, which has nothing to end it
    as bubblewrap does."""
    mark = os.urandom(16).hex()
    with tempfile.TemporaryDirectory(prefix="v4-home-", ignore_cleanup_errors=True) as home:
        home = os.path.realpath(home)
        told = environment(home) | {started.MARK: mark}
        try:
            command = process.limited(wrapped(home), limits)
            return process.run(command, folder, told, limits, output, cancelled, growth)
        finally:
            started.end_marked(mark)


def _sandboxed(argv, folder: Path, limits: Limits, network, output: Output, cancelled, access, its=None) -> Finished:
    """Run argv in a sandbox; `its`: the Guard of the workspace, for Access.WORK."""
    growth = None
    if access is Access.WORK:
        growth = tree.Growth(its.sizes, its.n_entries)
    elif access is Access.OWN:
        growth = _growth(folder, sum(tree.sizes(str(folder))))
    read_only = its.read_only if its else []
    if MACOS:

        def wrapped(home: str) -> list[str]:
            found = list(map(str, _prefixes()))
            writable = access is not Access.READ
            kept = [*read_only, *(path for path in found if trusted.within(path, str(folder)))]
            return seatbelt.command(argv, seatbelt.profile(str(folder), home, found, writable, kept, network))

        return _watched(wrapped, folder, limits, output, cancelled, growth)
    inside = process.limited(argv, limits, f"--nproc={limits.processes}")
    with _memory_file() as about, _memory_file() as rules, _memory_file() as words:
        rules.write(seccomp.program())
        options = _options(folder, limits, network, access, read_only)
        options += ["--info-fd", str(about.fileno()), "--seccomp", str(rules.fileno())]
        words.write(b"".join(os.fsencode(option) + b"\0" for option in options))
        for file in (rules, words):
            file.seek(0)
        command = [shutil.which("bwrap") or "bwrap", "--args", str(words.fileno()), "--", *inside]
        passed = (about.fileno(), rules.fileno(), words.fileno())
        try:
            return process.run(command, folder, environment(), limits, output, cancelled, growth, TEMPORARY, passed)
        finally:  # bwrap may end a moment before what is in the sandbox
            if told := os.pread(about.fileno(), 4096, 0):
                started.await_end(json.loads(told)["child-pid"])


def _memory_file():
    """A file without a name, for bwrap to read or write."""
    return open(os.memfd_create("v4"), "r+b", buffering=0)


def _growth(folder: Path, n_before: int | None = None) -> tree.Growth:
    return tree.Growth(lambda: tree.sizes(str(folder)), n_before)


def _options(folder: Path, limits: Limits, network: bool, access: Access, read_only: list[str]) -> list[str]:
    """bwrap's options: namespaces first, then the file system in the order it is put together."""
    settings = [path for name in SETTINGS + NETWORK_SETTINGS * network for path in Path("/etc").glob(name)]
    temporary = ["--perms", "1777", "--size", str(limits.tmp_bytes), "--tmpfs"]
    prefixes = _prefixes()
    options = ["--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
    options += ["--new-session", "--die-with-parent", "--hostname", "sandbox"]
    options += ["--share-net"] if network else []
    options += [word for path in SYSTEM for word in _system(path)]
    options += _read_only(*settings)
    options += ["--proc", "/proc", *_read_only(*KERNEL)]
    options += ["--dev", "/dev", *(word for path in TEMPORARY for word in (*temporary, path))]
    options += _read_only(*(p for p in prefixes if not p.is_relative_to(folder)))
    options += ["--ro-bind" if access is Access.READ else "--bind", str(folder), str(folder), "--chdir", str(folder)]
    options += _read_only(*(p for p in prefixes if p.is_relative_to(folder)), *read_only)
    return [*options, "--remount-ro", "/dev", "--remount-ro", "/"]


def _system(path: str) -> list[str]:
    """A folder of the system as it is: a symbolic link on most systems now."""
    if os.path.islink(path):
        return ["--symlink", os.readlink(path), path]
    return _read_only(path)


def _read_only(*paths: str | Path) -> list[str]:
    return [word for path in paths for word in ("--ro-bind-try", str(path), str(path))]


def _prefixes() -> list[Path]:
    """Folders of this Python where they are not part of the system, so that programs can use it."""
    found = dict.fromkeys(os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix))
    inner = [path for path in found if not any(trusted.within(home, path) for home in outside.homes())]
    return [Path(path) for path in inner if not trusted.within(path, "/usr")]
