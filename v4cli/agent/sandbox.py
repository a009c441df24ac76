"""Runs a program in a bubblewrap sandbox: only the workspace is writable, the user's other files and the network do
not exist, and nothing of the run survives it."""

import contextlib
import functools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from v4cli.agent import process, seccomp
from v4cli.agent.process import STANDARD, Finished, Limits

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOME = "/home/sandbox"
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SETTINGS = (  # of /etc: what programs need, nothing about this machine's services
    "alternatives", "ca-certificates", "fonts", "group", "java-*", "ld.so.cache", "ld.so.conf", "ld.so.conf.d",
    "localtime", "magic", "mime.types", "nsswitch.conf", "os-release", "passwd", "perl", "pki/ca-trust",
    "pki/tls/certs", "protocols", "python3*", "services", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone",
)  # fmt: skip
NETWORK_SETTINGS = ("gai.conf", "host.conf", "hosts", "resolv.conf")
KERNEL = ("/proc/sys", "/proc/sysrq-trigger")  # root may write there even without capabilities

Output = Callable[[str], None]


def run(
    argv: Sequence[str],
    folder: Path,
    limits: Limits = STANDARD,
    network: bool = False,
    output: Output = lambda text: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Finished:
    """Run argv in the workspace `folder`; in a sandbox if `trouble(folder)` has nothing against it, else with the same
    limits and environment only, for which the user must have been asked."""
    folder = folder.resolve()
    if trouble(folder):
        return _unprotected(argv, folder, limits, output, cancelled)
    return _sandboxed(argv, folder, limits, network, output, cancelled)


def trouble(folder: Path) -> str:
    """Why there is no sandbox for this workspace; empty if there is one."""
    if _home().is_relative_to(folder.resolve()):
        return "the workspace is your home folder or holds it; start in a folder of its own"
    return missing()


@functools.cache
def missing() -> str:
    """Why this machine makes no sandbox, found out by making one; empty if it does."""
    if sys.platform != "linux" or not shutil.which("bwrap"):
        return "bubblewrap (bwrap) is not installed"
    with tempfile.TemporaryDirectory(prefix="v4-sandbox-") as folder:
        made = _sandboxed(["true"], Path(folder).resolve(), Limits(seconds=10), False, lambda text: None, lambda: False)
    said = (made.text.strip().splitlines() or [made.stopped])[-1]
    return "" if made.status == 0 else f"bubblewrap does not work here ({said}); 0.8 or later is needed"


def environment(home: str = HOME) -> dict[str, str]:
    """All that a program is told: nothing of the user's environment."""
    path = os.pathsep.join([*(str(prefix / "bin") for prefix in _prefixes()), PATH])
    return {"PATH": path, "HOME": home, "LANG": "C.UTF-8", "TERM": "dumb", "NO_COLOR": "1"}


def _unprotected(argv, folder: Path, limits: Limits, output: Output, cancelled) -> Finished:
    mark = os.urandom(16).hex()
    with tempfile.TemporaryDirectory(prefix="v4-home-", ignore_cleanup_errors=True) as home:
        told = environment(home) | {process.MARK: mark}
        try:
            return process.run(process.limited(argv, limits), folder, told, limits, output, cancelled)
        finally:
            process.end_marked(mark)


def _sandboxed(argv, folder: Path, limits: Limits, network: bool, output: Output, cancelled) -> Finished:
    inside = process.limited(argv, limits, f"--nproc={limits.processes}")
    with _memory_file() as about, _memory_file() as rules:
        options = [*_options(folder, limits, network), "--info-fd", str(about.fileno())]
        if rules.write(seccomp.program()):
            rules.seek(0)
            options += ["--seccomp", str(rules.fileno())]
        command = [shutil.which("bwrap") or "bwrap", *options, "--", *inside]
        passed = (about.fileno(), rules.fileno())
        try:
            return process.run(command, folder, environment(), limits, output, cancelled, passed)
        finally:  # bwrap may end a moment before what is in the sandbox
            if told := os.pread(about.fileno(), 4096, 0):
                process.await_end(json.loads(told)["child-pid"])


def _memory_file():
    """A file without a name, for bwrap to read or write."""
    return open(os.memfd_create("v4"), "r+b", buffering=0)


def _options(folder: Path, limits: Limits, network: bool) -> list[str]:
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
    options += ["--dev", "/dev", *temporary, "/dev/shm", *temporary, "/tmp", *temporary, HOME]
    options += _read_only(*(p for p in prefixes if not p.is_relative_to(folder)))
    options += ["--bind", str(folder), str(folder), "--chdir", str(folder)]
    options += _read_only(*(p for p in prefixes if p.is_relative_to(folder)))
    options += _guarded(folder / ".git")
    return [*options, "--remount-ro", "/dev", "--remount-ro", "/"]


def _guarded(git: Path) -> list[str]:
    """A repository that can be used, but in which nothing can be left for git to run."""
    if git.is_symlink() or not git.is_dir():
        return []
    with contextlib.suppress(OSError):
        (git / "hooks").mkdir(exist_ok=True)
    return ["--bind", str(git), str(git), *_read_only(git / "config", git / "hooks")]


def _system(path: str) -> list[str]:
    """A folder of the system as it is: a symbolic link on most systems now."""
    if os.path.islink(path):
        return ["--symlink", os.readlink(path), path]
    return _read_only(path)


def _read_only(*paths: str | Path) -> list[str]:
    return [word for path in paths for word in ("--ro-bind-try", str(path), str(path))]


def _prefixes() -> list[Path]:
    """Folders of this Python where they are not part of the system, so that programs can use it."""
    found = dict.fromkeys(Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix))
    return [path for path in found if not path.is_relative_to("/usr") and not _home().is_relative_to(path)]


def _home() -> Path:
    return Path(os.path.expanduser("~")).resolve()
