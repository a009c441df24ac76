"""HTTP to a server that computes: its models, and streams of events that end at once when nobody wants them."""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from v4cli.errors import ContextError, NetworkError, UsageError, V4Error

CONNECT_S = 10.0
MODELS, MODELS_S = "/v1/models", 30.0
SILENCE_S = 600.0  # without a byte: a server may say nothing while it computes a long prompt
POLL_S = 0.05  # from one question whether an answer is still wanted to the next
MOST_LINE = 64 << 20  # bytes of an event
MOST_ERROR = 64 << 10
TRY_AGAIN = {429, 502, 503, 504}  # what a server says that is busy, or that begins or ends
LOCAL = {"localhost", "127.0.0.1", "::1"}
Result = TypeVar("Result")
Going = Callable[[], bool]


class Lost(NetworkError):
    """Nobody answers, or no longer; trying again may help."""


class Client:
    """One server. Any thread may ask; each question has a connection of its own."""

    def __init__(self, url: str, key: str = ""):
        """`url`: with /v1 at its end or without. UsageError if it is none."""
        parts = _parts(url)
        self.url = url.rstrip("/").removesuffix("/v1")
        self._is_local, self._is_https = parts.hostname in LOCAL, parts.scheme == "https"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def get(self, path: str) -> Any:
        """The JSON there. NetworkError, UsageError."""

        async def first() -> Any:
            async with aclosing(self._stream("GET", path, None, MODELS_S)) as stream:
                async for batch in stream:
                    return batch[0]
            raise NetworkError(f"{self.url}{path}: the answer is empty")

        with asyncio.Runner() as runner:
            return runner.run(first())

    def events(self, path: str, body: dict[str, Any], cancelled: Going) -> Generator[dict[str, Any], None, None]:
        """The events of a stream; none after `cancelled()`. Whoever stops to read hangs up. Lost, NetworkError,
        UsageError, ContextError."""
        stream = self._stream("POST", path, body, SILENCE_S)
        with asyncio.Runner() as runner:
            try:
                while batch := runner.run(_unless(cancelled, anext(stream, None))):
                    yield from batch
            finally:
                runner.run(stream.aclose())

    async def _stream(
        self, method: str, path: str, body: dict[str, Any] | None, silence_s: float
    ) -> AsyncGenerator[list[Any], None]:
        """What comes, event by event, those that come at once together; of what is no stream, the whole."""
        timeout = httpx2.Timeout(silence_s, connect=CONNECT_S)
        verify = self._certificates if self._is_https else False
        try:
            async with (
                httpx2.AsyncClient(timeout=timeout, verify=verify, trust_env=not self._is_local) as client,
                client.stream(method, self.url + path, json=body, headers=self._headers) as reply,
            ):
                if reply.status_code != 200:
                    raise self._refusal(reply.status_code, await _beginning(reply), path)
                if not reply.headers.get("content-type", "").startswith("text/event-stream"):
                    yield [_json(b"".join([part async for part in reply.aiter_bytes()]))]
                    return
                async for batch in _batches(reply.aiter_bytes()):
                    yield batch
        except httpx2.TimeoutException:
            raise Lost(f"{self.url}: it says nothing", "is the server at work?") from None
        except (httpx2.TransportError, httpx2.StreamError) as problem:
            raise Lost(f"{self.url}: {_told(problem)}", "v4 serve, vllm serve or sglang serve starts one") from None
        except (httpx2.InvalidURL, UnicodeError, ValueError) as problem:
            raise NetworkError(f"{self.url}: {_told(problem)}") from None

    @cached_property
    def _certificates(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    def _refusal(self, status: int, text: str, path: str) -> V4Error:
        """What a status means that is not 200."""
        said = f"{self.url}: {_message(text) or f'HTTP {status}'}"
        if status in (401, 403):
            return UsageError(said, "V4_API_KEY=KEY v4 …")
        if status in (404, 405) and (path == MODELS or "model" not in said.lower()):
            return UsageError(f"{self.url}{path}: there is nothing (HTTP {status})", "--engine http://HOST:PORT")
        if status in (400, 413, 422) and any(word in text for word in ("context length", "context_length", "too long")):
            return ContextError(said)
        if status in TRY_AGAIN:
            return Lost(said)
        return UsageError(said) if 400 <= status < 500 else NetworkError(said)


def patiently(attempt: Callable[[], Result], waits: Iterator[float], cancelled: Going = lambda: False) -> Result:
    """What `attempt` gives; where it is Lost, the same after the next wait, until there are no more. Lost."""
    while True:
        try:
            return attempt()
        except Lost:
            if not waited(waits, cancelled):
                raise


def waited(waits: Iterator[float], cancelled: Going) -> bool:
    """After the next of the waits; False if there is none, or nobody wants it any more."""
    seconds = next(waits, None)
    end = time.monotonic() + (seconds or 0.0)
    while time.monotonic() < end and not cancelled():
        time.sleep(POLL_S)
    return seconds is not None and not cancelled()


async def _unless(cancelled: Going, work: Awaitable[Result]) -> Result | None:
    """What the work gives; None as soon as it is cancelled."""
    task = asyncio.ensure_future(work)
    while not task.done():
        if cancelled():
            task.cancel()
            await asyncio.wait([task])
            return None
        await asyncio.wait([task], timeout=POLL_S)
    return task.result()


async def _batches(data: AsyncIterator[bytes]) -> AsyncIterator[list[Any]]:
    """Events of a stream of server-sent events, up to its [DONE]."""
    rest = b""
    async for part in data:
        *lines, rest = (rest + part).split(b"\n")
        if len(rest) > MOST_LINE:
            raise ValueError("an event has no end")
        told = [line[5:].strip() for line in lines if line.startswith(b"data:")]
        batch = [_json(text) for text in told if text and text != b"[DONE]"]
        if batch:
            yield batch
        if b"[DONE]" in told:
            return


async def _beginning(reply: httpx2.Response) -> str:
    data = b""
    async for part in reply.aiter_bytes():
        data += part
        if len(data) > MOST_ERROR:
            break
    return data[:MOST_ERROR].decode("utf-8", "replace")


def _json(text: bytes) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"it does not speak JSON: {text[:60].decode('utf-8', 'replace')!r}") from None
    if isinstance(value, dict) and value.get("error"):
        raise NetworkError(f"the server failed: {_message(text.decode('utf-8', 'replace'))}")
    return value


def _message(text: str) -> str:
    """The error in an answer, on a line."""
    try:
        value = json.loads(text)
        error = value.get("error", value) if isinstance(value, dict) else value
        said = error.get("message", error.get("detail", "")) if isinstance(error, dict) else error
    except (ValueError, RecursionError):
        said = text
    return " ".join(str(said).split())[:300]


def _parts(url: str) -> Any:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"--engine {url[:80]!r} is not the address of a server", "--engine http://HOST:PORT")
    if parts.username is not None:
        raise UsageError("--engine takes no user name or password", "V4_API_KEY=KEY is sent as the key")
    return parts


def _told(problem: Exception) -> str:
    if isinstance(problem, httpx2.ConnectError):
        return "nobody answers there"
    return str(problem)[:200] or type(problem).__name__
