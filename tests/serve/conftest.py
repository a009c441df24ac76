"""nano behind a real port."""

from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from behind_port import behind_port

from v4cli import paths
from v4cli.chat.turn import Chat
from v4cli.serve.served import Served
from v4cli.serve.service import Service


@pytest.fixture(scope="session")
def nano() -> Chat:
    return Chat.open(paths.NANO)


@pytest.fixture
def service(nano):
    """`service(sessions=…)` makes one of the loaded nano, with a log of its own; its answers may go round for ever."""

    def made(sessions: int = 4, prefixes=None) -> Service:
        lines: list[str] = []

        def loaded() -> Chat:
            session = nano.engine.session(None, prefixes)
            return Chat(nano.engine, nano.tokenizer, nano.defaults, session)

        its = Service(Served(loaded, lines.append), "nano", sessions, lines.append, stops_loops=False)
        its.lines = lines
        return its

    return made


@pytest.fixture
def served() -> Iterator:
    """`served(service, key=…)`: a client of a server on a free port."""
    with ExitStack() as stack:
        yield lambda service, *told, **more: stack.enter_context(behind_port(service, *told, **more))


@pytest.fixture
def server(service, served) -> SimpleNamespace:
    its = service()
    return SimpleNamespace(service=its, http=served(its))


@pytest.fixture
def openai(server):
    sdk = pytest.importorskip("openai")
    with sdk.OpenAI(base_url=f"{server.http.base_url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic(server):
    sdk = pytest.importorskip("anthropic")
    with sdk.Anthropic(base_url=str(server.http.base_url), api_key="any", max_retries=0) as client:
        yield client
