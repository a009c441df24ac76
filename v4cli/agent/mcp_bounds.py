"""Between a server's messages and the SDK: one bad tool is left out alone, and what comes over HTTP is bounded."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx2
import mcp_types
from mcp_types.methods import validate_server_result

from v4cli.settings import McpServer

MAX_BYTES = 32 << 20  # of one response
MAX_LISTED = 1000  # tools of one page that are looked at


class Sifted:
    """A stream of messages; of lists of tools only what `sift(result)` gives."""

    def __init__(self, stream, sift: Callable[[dict], dict]):
        self._stream, self._sift = stream, sift

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    async def __aenter__(self):
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exception):
        return await self._stream.__aexit__(*exception)

    def __aiter__(self):
        return self

    async def __anext__(self):
        item = await self._stream.__anext__()
        message = getattr(item, "message", None)
        if isinstance(message, mcp_types.JSONRPCResponse) and isinstance(message.result.get("tools"), list):
            message.result = self._sift(message.result)
        return item


@asynccontextmanager
async def sifted(transport, sift: Callable[[dict], dict]) -> AsyncIterator[tuple]:
    """A transport for mcp.Client with its lists of tools sifted."""
    async with transport as (received, sent):
        yield Sifted(received, sift), sent


def usable(result: dict, version: str, leave_out: Callable[[str, str], None]) -> dict:
    """A list of tools without those that are not as the protocol has them, which the SDK would refuse as a whole.
    `leave_out` is told the name and what is wrong."""
    kept = []
    for tool in result["tools"][:MAX_LISTED]:
        if not isinstance(tool, dict):
            leave_out(str(tool)[:200], "it is not an object")
            continue
        try:
            alone = result | {"tools": [tool]}
            validate_server_result("tools/list", version, alone)
            mcp_types.ListToolsResult.model_validate(alone, by_name=False)
            kept.append(tool)
        except ValueError as error:
            leave_out(str(tool.get("name", ""))[:200], _first(error))
    if len(result["tools"]) > MAX_LISTED:
        leave_out(f"{len(result['tools']) - MAX_LISTED} more", "there are too many")
    return result | {"tools": kept}


def _first(error: ValueError) -> str:
    """The first thing that is wrong, and where."""
    if not hasattr(error, "errors"):
        return str(error)
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'][2:]))}: {first['msg'].lower()}"


def client(server: McpServer, connect_s: float) -> httpx2.AsyncClient:
    """A client of HTTP for this server whose responses are bounded: in size, and so not packed."""
    return httpx2.AsyncClient(
        headers={"Accept-Encoding": "identity"} | server.headers,
        timeout=httpx2.Timeout(connect_s, read=server.timeout),
        event_hooks={"response": [_bound]},
    )


async def _bound(response: httpx2.Response) -> None:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise httpx2.DecodingError("it has sent packed data, which was not asked for", request=response.request)
    response.stream = _Bounded(response.stream, response.request)


class _Bounded(httpx2.AsyncByteStream):
    """A response's bytes, which end with an error if they are too many."""

    def __init__(self, stream: httpx2.AsyncByteStream, request: httpx2.Request):
        self.stream, self.request = stream, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        n_bytes = 0
        async for chunk in self.stream:
            n_bytes += len(chunk)
            if n_bytes > MAX_BYTES:
                raise httpx2.ReadError(f"it has sent more than {MAX_BYTES >> 20} MiB", request=self.request)
            yield chunk

    async def aclose(self) -> None:
        await self.stream.aclose()
