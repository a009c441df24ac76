"""A service behind a real port."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import uvicorn

from v4cli.serve.app import application
from v4cli.serve.http import LOOPBACK
from v4cli.serve.server import listening
from v4cli.serve.service import Service


@contextmanager
def behind_port(service: Service, key: str | None = None, hosts=LOOPBACK, **headers) -> Iterator[httpx2.Client]:
    """A client of it, on a port that is free."""
    sock = listening("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(application(service, hosts, key), log_config=None, lifespan="off", ws="none")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        with httpx2.Client(base_url=url, timeout=120, headers=headers, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
        sock.close()
