"""The process: a port, and signals."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from v4cli import interrupts
from v4cli.errors import UsageError
from v4cli.serve.http import LOOPBACK
from v4cli.serve.service import Service

DRAIN_S = 30.0  # that answers have to end by themselves after the first signal
CANCEL_S = 5.0  # and after they have been told to


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


def serve(app: ASGIApp, service: Service, sock: socket.socket, idle_s: float | None = None) -> list[str]:
    """Serve until a signal comes: then answers may end, for DRAIN_S or until the next signal, and what was computed is
    stored. What hindered that, for people. `idle_s` without a request: the model's memory is given back."""
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
    ended = threading.Event()
    idler = threading.Thread(target=service.give_back_when_idle, args=(idle_s, ended), daemon=True, name="idle")
    with interrupts.handed_over(heard):
        if idle_s is not None:
            idler.start()
        _Server(config, lambda: bool(signals)).run(sockets=[sock])
        ended.set()
        service.cancel_all()
        service.wait(CANCEL_S)
        return service.served.store(service.pool)
