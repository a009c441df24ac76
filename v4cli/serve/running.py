"""The servers that run on this machine, by files of theirs: for `v4 ps`, and for commands that want a model that one of
them has loaded.
"""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from v4cli import jsonfile, paths, system
from v4cli.errors import SnapshotError, V4Error
from v4cli.files import write_atomically


@dataclass(frozen=True)
class Running:
    """A server on this machine. `created`: seconds since the epoch when its process began; `folder`: of the model;
    `has_key`: clients must know one."""

    pid: int
    created: float
    url: str
    model: str
    sessions: int
    folder: str = ""
    has_key: bool = False

    @property
    def is_alive(self) -> bool:
        import psutil

        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.created) < 1.0
            return is_same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def stop(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(ProcessLookupError):
            system.kill(self.pid, signal.SIGTERM)


def servers() -> list[Running]:
    """Those that run; what others have left behind is removed."""
    found = []
    folder = _folder()
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            server = Running(**jsonfile.read(path, SnapshotError, jsonfile.SMALL))
        except (V4Error, TypeError):
            continue
        if server.is_alive:
            found.append(server)
        else:
            system.remove(path)
    return found


def _folder() -> Path:
    return paths.state_dir() / "servers"


@contextlib.contextmanager
def registered(url: str, model: str, sessions: int, folder: Path, has_key: bool) -> Iterator[None]:
    """Within: `servers` knows of this one."""
    import psutil

    created = psutil.Process().create_time()
    about = Running(os.getpid(), created, url, model, sessions, str(folder.resolve()), has_key)
    path = _folder() / f"{about.pid}-{url.rpartition(':')[2]}.json"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, json.dumps(asdict(about)).encode(), 0o600)
    try:
        yield
    finally:
        system.remove(path)
