"""nano behind a real port."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import httpx2
import pytest
import uvicorn

from v4cli import paths
from v4cli.chat.turn import Chat
from v4cli.serve.app import application
from v4cli.serve.http import LOOPBACK
from v4cli.serve.server import listening
from v4cli.serve.service import Service


@pytest.fixture(scope="session")
def nano() -> Chat:
    return Chat.open(paths.NANO)


@pytest.fixture
def service(nano):
    """`service(sessions=…)` makes one of the loaded nano, with a log of its own."""

    def made(sessions: int = 4, prefixes=None) -> Service:
        lines: list[str] = []
        its = Service(nano, "nano", sessions, lambda: nano.engine.session(None, prefixes), lines.append)
        its.lines = lines
        return its

    return made


@pytest.fixture
def served() -> Iterator:
    """`served(service, key=…)`: a client of a server on a free port."""
    running = []

    def start(service: Service, key: str | None = None, hosts=LOOPBACK, **headers):
        sock = listening("127.0.0.1", 0)
        app = application(service, hosts, key)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        client = httpx2.Client(base_url=url, timeout=120, headers=headers, trust_env=False)
        running.append((server, thread, client, sock))
        return client

    yield start
    for server, thread, client, sock in running:
        client.close()
        server.should_exit = server.force_exit = True
        thread.join()
        sock.close()


@pytest.fixture
def server(service, served) -> SimpleNamespace:
    its = service()
    return SimpleNamespace(service=its, http=served(its))
