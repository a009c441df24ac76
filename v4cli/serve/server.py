"""The process: a port, signals, and what `v4 ps` knows of it."""

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import uvicorn
from starlette.types import ASGIApp

from v4cli import interrupts, jsonfile, paths
from v4cli.errors import SnapshotError, UsageError, V4Error
from v4cli.files import write_atomically
from v4cli.serve.http import LOOPBACK
from v4cli.serve.service import Service

DRAIN_S = 30.0  # that answers have to end by themselves after the first signal
CANCEL_S = 5.0  # and after they have been told to


@dataclass(frozen=True)
class Running:
    """A server on this machine. `created`: seconds since the epoch when its process began."""

    pid: int
    created: float
    url: str
    model: str
    sessions: int

    @property
    def is_alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.created) < 1.0
            return is_same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


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
            path.unlink(missing_ok=True)
    return found


def _folder() -> Path:
    return paths.state_dir() / "servers"


@contextlib.contextmanager
def registered(url: str, model: str, sessions: int) -> Iterator[None]:
    """Within: `servers` knows of this one."""
    about = Running(os.getpid(), psutil.Process().create_time(), url, model, sessions)
    path = _folder() / f"{about.pid}.json"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, json.dumps(asdict(about)).encode(), 0o600)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def listening(host: str, port: int) -> socket.socket:
    """A socket that takes connections. UsageError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio: no delay for small pieces then
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(256)
    except OSError as error:
        sock.close()
        hint = "--port 0 takes any that is free; v4 ps shows what runs" if port else "--host 127.0.0.1"
        raise UsageError(f"{host}:{port}: {error.strerror}", hint) from None
    except OverflowError:
        sock.close()
        raise UsageError(f"--port {port} is no port", "--port 8000") from None
    return sock


def is_loopback(host: str) -> bool:
    return host in LOOPBACK or host.startswith("127.")


class _Server(uvicorn.Server):
    """Ends when it is told to, not by signals of its own."""

    def __init__(self, config: uvicorn.Config, told: Callable[[], bool]):
        super().__init__(config)
        self.told = told

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        self.should_exit = self.should_exit or self.told()
        return await super().on_tick(counter)


def serve(app: ASGIApp, service: Service, sock: socket.socket) -> list[str]:
    """Serve until a signal comes: then answers may end, for DRAIN_S or until the next signal, and what was computed is
    stored. What hindered that, for people."""
    signals: list[int] = []

    def heard(number: int, frame: object) -> None:
        signals.append(number)
        service.draining = True
        if len(signals) > 1:
            service.cancel_all()

    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", server_header=False, ws="none",
        timeout_graceful_shutdown=int(DRAIN_S), timeout_keep_alive=75,
    )  # fmt: skip
    with interrupts.handed_over(heard):
        _Server(config, lambda: bool(signals)).run(sockets=[sock])
        service.cancel_all()
        service.wait(CANCEL_S)
        return service.pool.store()


def stop(server: Running) -> None:
    """Ask it to end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(server.pid, signal.SIGTERM)
