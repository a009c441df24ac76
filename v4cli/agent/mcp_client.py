"""Tools of MCP servers (Model Context Protocol), which run outside the sandbox. Needs the `mcp` package.

The agent is synchronous and the SDK is not: connections live on an event loop in a thread of their own.
"""

import asyncio
import atexit
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import AsyncExitStack, contextmanager

from v4cli.agent import foreign
from v4cli.agent.tools import Context, Kind, Tool, ToolError
from v4cli.errors import UsageError
from v4cli.settings import McpServer

CONNECT_S = 30.0  # to start and tell its tools
POLL_S = 0.05  # between looks at whether the user interrupted
MAX_TOOLS = 128  # of one server
MAX_PAGES = 20  # of its list of tools


@contextmanager
def mcp_tools(servers: Mapping[str, McpServer], note: Callable[[str], None]) -> Iterator[list[Tool]]:
    """The tools of all servers, as NAME__tool, while the context lasts. `note` is told what is missing and why.

    UsageError without the SDK.
    """
    with Connections(servers, note) as connections:
        yield connections.tools


class Connections:
    """Connected servers and the thread of their event loop."""

    def __init__(self, servers: Mapping[str, McpServer], note: Callable[[str], None]):
        try:
            import mcp  # noqa: F401
        except ImportError:
            raise UsageError("MCP servers are configured but the SDK is missing", "pip install 'v4cli[mcp]'") from None
        logging.getLogger("mcp").setLevel(logging.CRITICAL + 1)  # what matters comes as errors of calls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mcp", daemon=True)
        self._servers = [_Connection(name, server, self._loop) for name, server in servers.items()]
        self._runs: list[Future] = []
        self._note = note
        self.tools: list[Tool] = []

    def __enter__(self) -> "Connections":
        """Connect to all at once; those that fail are left out."""
        self._thread.start()
        atexit.register(self.close)
        try:
            self._runs = [asyncio.run_coroutine_threadsafe(server.run(), self._loop) for server in self._servers]
            for server in self._servers:
                try:
                    self.tools += self._offered(server, server.listed.result())
                except ToolError as error:
                    self._note(str(error))
        except BaseException:  # Ctrl-C while connecting
            self.close()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """End all connections and the processes behind them."""
        atexit.unregister(self.close)
        if self._loop.is_closed():
            return
        for server in self._servers:
            self._loop.call_soon_threadsafe(server.stop)
        for run in self._runs:
            run.exception()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _offered(self, server: "_Connection", listed: list) -> Iterator[Tool]:
        """What the model may call; tools with names or schemas that cannot be used are named to the user."""
        taken = {tool.name for tool in self.tools}
        for one in listed[:MAX_TOOLS]:
            name = foreign.name(server.name, one.name)
            try:
                if name in taken:
                    raise ValueError(f"there is another one called {name}")
                parameters = foreign.parameters(one.input_schema)
            except ValueError as error:
                self._note(f"mcp.{server.name}: tool {foreign.text(one.name, 40)!r} is left out: {error}")
                continue
            taken.add(name)
            run = server.caller(one.name)
            yield Tool(name, foreign.text(one.description or ""), parameters, Kind.NETWORK, run)
        if len(listed) > MAX_TOOLS:
            self._note(f"mcp.{server.name}: it has {len(listed)} tools; the first {MAX_TOOLS} are offered")


class _Connection:
    """One server, from its start to its end. All but `caller` runs on the event loop."""

    def __init__(self, name: str, server: McpServer, loop: asyncio.AbstractEventLoop):
        self.name, self.server, self._loop = name, server, loop
        self.listed: Future = Future()  # its tools, or a ToolError
        self._children: list = []
        self._scope = None
        self._stopped = False

    async def run(self) -> None:
        """Connect, tell the tools, and stay connected until stopped."""
        import anyio

        error: Exception | None = None
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + CONNECT_S) as self._scope:
                if self._stopped:
                    self._scope.cancel()
                async with AsyncExitStack() as stack:
                    self._client = await self._connected(stack)
                    tools = await self._list()
                    self._scope.deadline = math.inf
                    self.listed.set_result(tools)
                    await anyio.sleep_forever()
        except Exception as problem:
            error = problem
        if not self.listed.done():
            late = error is None and f"it did not answer within {CONNECT_S:.0f} s"
            self.listed.set_exception(ToolError(f"mcp.{self.name}: not connected: {late or self._reason(error)}"))

    def stop(self) -> None:
        self._stopped = True
        if self._scope is not None:
            self._scope.cancel()

    async def _connected(self, stack: AsyncExitStack):
        from mcp import Client

        if self.server.command:
            from v4cli.agent.mcp_stdio import stdio

            transport = stdio(self.server, self._children)
        else:
            import httpx2
            from mcp.client.streamable_http import streamable_http_client

            patience = httpx2.Timeout(CONNECT_S, read=self.server.timeout)
            http = await stack.enter_async_context(httpx2.AsyncClient(headers=self.server.headers, timeout=patience))
            transport = streamable_http_client(self.server.url, http_client=http)
        return await stack.enter_async_context(Client(transport, cache=None))

    async def _list(self) -> list:
        tools, cursor = [], None
        for _ in range(MAX_PAGES):
            page = await self._client.list_tools(cursor=cursor)
            tools += page.tools
            cursor = page.next_cursor
            if not cursor or len(tools) > MAX_TOOLS:
                break
        return tools

    def caller(self, tool: str) -> Callable[[dict, Context], str]:
        """What runs a tool of this server."""

        def run(arguments: dict, context: Context) -> str:
            call = self._client.call_tool(tool, arguments)
            result = self._finished(asyncio.run_coroutine_threadsafe(call, self._loop), context)
            text = as_text(result)
            if result.is_error:
                raise ToolError(text or "it failed without saying why")
            return text

        return run

    def _finished(self, future: Future, context: Context):
        """The result of a call that may take its time, but no longer than the server's limit or the user's patience."""
        end = time.monotonic() + self.server.timeout
        try:
            while True:
                try:
                    return future.result(POLL_S)
                except NotYet:
                    if future.done():
                        raise ToolError(f"mcp.{self.name}: {self._reason(future.exception())}") from None
                if context.cancelled():
                    raise ToolError("the user interrupted the call")
                if time.monotonic() > end:
                    raise ToolError(f"mcp.{self.name}: no answer within {self.server.timeout:g} s")
        except (ToolError, KeyboardInterrupt):
            raise
        except (Exception, CancelledError) as error:
            raise ToolError(f"mcp.{self.name}: {self._reason(error)}") from None
        finally:
            future.cancel()

    def _reason(self, error: BaseException) -> str:
        """What went wrong, in one line, with what is known of the server's process."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, OSError) and not self._children and self.server.command:
            return f"cannot start {self.server.command[0]!r} ({error.strerror})"
        said = " ".join(foreign.text(str(error), 300).split()) or type(error).__name__
        why = foreign.text(self._children[-1].why, 300) if self._children else ""
        return f"{said} ({why})" if why else said


def as_text(result) -> str:
    """All parts of a call's result as one text; of what is not text, what it is."""
    parts = [_part(part) for part in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return "\n\n".join(parts).encode("utf-8", "replace").decode()


def _part(part) -> str:
    if part.type == "text":
        return part.text
    if part.type == "resource_link":
        return f"[resource {part.uri}]"
    if part.type == "resource":
        inside = part.resource
        text = getattr(inside, "text", None)
        return text if text is not None else f"[resource {inside.uri}: {_size(inside.blob)} of {inside.mime_type}]"
    return f"[{part.type}: {_size(part.data)} of {part.mime_type}]"


def _size(base64: str) -> str:
    return f"{len(base64) * 3 // 4} bytes"
