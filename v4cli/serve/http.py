"""HTTP around the dialects: who may ask, what is read of a body, how a stream is sent. Plain ASGI."""

import asyncio
import contextlib
import hmac
import json
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from v4cli.errors import RequestError
from v4cli.jsonfile import BYTES_OF_VALUE, loads
from v4cli.serve.dialect import anthropic_error, openai_error
from v4cli.serve.events import Failed
from v4cli.serve.metrics import Metrics

MOST_BODY = 64 << 20  # bytes
SMALL_BODY = 8 << 10
MOST_DEPTH = 128  # of JSON
BODY_S = 60.0  # seconds that a body may take to come
Argument, Result = TypeVar("Argument"), TypeVar("Result")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN = ("/", "/health")  # without a key


class Refused(Exception):
    """A request that is not even read."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.failed = Failed(message, status, code)


def error_response(path: str, failed: Failed, headers: dict[str, str] | None = None) -> Response:
    """In the envelope of the dialect that a path belongs to."""
    envelope = anthropic_error if "/messages" in path else openai_error
    headers = dict(headers or {})
    if failed.status in (408, 413):
        headers["connection"] = "close"  # else the rest of the body would be read
    if failed.status == 503:
        headers["retry-after"] = "5"
    return Reply(envelope(failed), failed.status, headers)


class Reply(JSONResponse):
    """JSON in UTF-8, whatever is in it."""

    def render(self, content: object) -> bytes:
        return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")


class Guard:
    """Lets only those through that may ask, and gives every answer an id."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, key: str | None, metrics: Metrics):
        """`hosts`: names by which the server may be called; None: any. `key`: what clients must know, if anything."""
        self.app, self.hosts, self.key, self.metrics = app, hosts, key, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, request_id = scope["path"], f"req_{secrets.token_hex(12)}"

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                known = path if path in KNOWN else "other"
                self.metrics.requests[known, message["status"]] += 1
            await send(message)

        failed = self._fault(scope)
        app = self.app if failed is None else error_response(path, failed)
        await app(scope, receive, send_with_id)

    def _fault(self, scope: Scope) -> Failed | None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self.hosts is not None:
            if _name(f"//{headers.get('host', '')}") not in self.hosts:
                return Failed("this host name is not served here; use localhost or 127.0.0.1", 403)
            origin = headers.get("origin")
            if origin is not None and _name(origin) not in self.hosts:
                return Failed("requests of other sites are not answered", 403)
        if self.key is not None and scope["path"] not in OPEN and not self._knows(headers):
            return Failed("the API key is missing or wrong", 401, "invalid_api_key")
        return None

    def _knows(self, headers: dict[str, str]) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = (headers.get("x-api-key", ""), token.strip() if scheme.lower() == "bearer" else scheme)
        known = (self.key or "").encode()
        return any([hmac.compare_digest(key.encode("latin-1"), known) for key in given])  # clients may send two


KNOWN = frozenset({
    "/", "/health", "/metrics", "/state", "/v1/models", "/v1/chat/completions", "/v1/messages",
    "/v1/messages/count_tokens", "/v1/responses", "/v1/completions",
})  # fmt: skip


def _name(url: str) -> str:
    """The host that a URL names; empty if it names none."""
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


async def body_of(request: Request) -> dict:
    """The JSON object in a request. Refused, RequestError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("", "application/json") and not kind.endswith("+json"):
        raise Refused(415, "the body must be application/json")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise Refused(415, "the body must not be compressed")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > MOST_BODY:
        raise Refused(413, f"the body is larger than {MOST_BODY >> 20} MiB")
    try:
        async with asyncio.timeout(BODY_S):
            data = await _read(request)
    except TimeoutError:
        raise Refused(408, "the body did not come in time") from None
    request.state.n_bytes = len(data)
    return await aside(request, parsed, data)


async def aside(request: Request, work: Callable[[Argument], Result], argument: Argument) -> Result:
    """What `work` makes of something whose size is that of the body: in a thread, unless that is quicker than to get
    there and back."""
    if request.state.n_bytes <= SMALL_BODY:
        return work(argument)
    return await asyncio.to_thread(work, argument)


async def _read(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BODY:
            raise Refused(413, f"the body is larger than {MOST_BODY >> 20} MiB")
    return bytes(data)


def parsed(data: bytes) -> dict:
    """A JSON object without anything that could not be written again. RequestError."""

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    try:
        value = loads(data.decode("utf-8-sig"), MOST_BODY // BYTES_OF_VALUE, parse_constant=constant)
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object")
    cleaned = _cleaned(value, 0)
    assert isinstance(cleaned, dict)
    return cleaned


def _cleaned(value: object, depth: int) -> object:
    """Without halves of characters, which no answer could repeat. RequestError if it is too deep, or a number that JSON
    allows is none that can be kept."""
    if depth > MOST_DEPTH:
        raise RequestError("the body is nested too deeply")
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_cleaned(key, depth + 1): _cleaned(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise RequestError("the body holds a number that is too large")
    return value


class EventStream(Response):
    """Server-sent events, until they end or the client hangs up; `hung_up` is called then."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], hung_up: Callable[[], None]):
        super().__init__(None, 200, {"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.events, self.hung_up = events, hung_up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

        async def deliver() -> None:
            async for text in self.events:
                await send({"type": "http.response.body", "body": text.encode("utf-8", "replace"), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await unless_hung_up(deliver(), receive, self.hung_up)


async def unless_hung_up(work: Awaitable, receive: Receive, hung_up: Callable[[], None]):
    """What `work` gives; None where the client hangs up before. Nothing is awaited once that is known: whoever computes
    frees what it holds by itself."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            with contextlib.suppress(OSError, ClientDisconnect):
                return working.result()
        return None
    finally:
        if not working.done() or working.cancelled() or working.exception():
            hung_up()
        working.cancel()
        watching.cancel()


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
