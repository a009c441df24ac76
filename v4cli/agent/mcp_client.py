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
from concurrent.futures import CancelledError, Future, wait
from concurrent.futures import TimeoutError as NotYet
from contextlib import AsyncExitStack, contextmanager

from v4cli.agent import foreign
from v4cli.agent.tools import Context, Kind, Tool, ToolError
from v4cli.clean import visible
from v4cli.errors import UsageError
from v4cli.settings import McpServer

CONNECT_S = 30.0  # to start and tell its tools
PATIENCE_S = 1.0  # of that without a word
POLL_S = 0.05  # between looks at whether the user interrupted
MAX_TOOLS = 128  # of one server
MAX_PAGES = 20  # of its list of tools
MAX_NOTES = 5  # about tools of one server


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
        self._note = lambda text: note(visible(text))
        self.tools: list[Tool] = []

    def __enter__(self) -> "Connections":
        """Connect to all at once; those that fail are left out."""
        self._thread.start()
        atexit.register(self.close, hurry=True)
        try:
            self._runs = [asyncio.run_coroutine_threadsafe(server.run(), self._loop) for server in self._servers]
            self._tell_waiting()
            listed = [(server, tool) for server in self._servers for tool in self._listed(server)]
            names = foreign.names([(server.name, tool.name) for server, tool in listed])
            self.tools = [tool for name, (server, one) in zip(names, listed) if (tool := server.tool(name, one))]
            for server in self._servers:
                server.tell_left_out(self._note)
        except BaseException:  # Ctrl-C while connecting
            self.close(hurry=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception) -> None:
        self.close(hurry=kind is not None)

    def close(self, hurry: bool) -> None:
        """End all connections and the processes behind them, which in a hurry have no time to say goodbye."""
        atexit.unregister(self.close)
        if self._loop.is_closed():
            return
        for server in self._servers:
            self._loop.call_soon_threadsafe(server.stop, hurry)
        for run in self._runs:
            run.exception()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _tell_waiting(self) -> None:
        """Once it takes a while, say which servers are waited for, and how long at most."""
        late = wait([server.listed for server in self._servers], PATIENCE_S).not_done
        if names := [f"mcp.{server.name}" for server in self._servers if server.listed in late]:
            self._note(f"waiting for {', '.join(names)} to start ({CONNECT_S:.0f} s at most)")

    def _listed(self, server: "_Connection") -> list:
        """The tools of a server that is connected, by different names; why it is not is told to the user."""
        try:
            listed = server.listed.result()
        except ToolError as error:
            self._note(str(error))
            return []
        if not listed:
            self._note(f"mcp.{server.name}: it offers no tools")
        by_name: dict = {}
        for tool in listed:
            if by_name.setdefault(tool.name, tool) is not tool:
                server.left_out.append((tool.name, "it is listed twice"))
        return list(by_name.values())


class _Connection:
    """One server, from its start to its end. All but `caller` runs on the event loop."""

    def __init__(self, name: str, server: McpServer, loop: asyncio.AbstractEventLoop):
        self.name, self.server, self._loop = name, server, loop
        self.listed: Future = Future()  # its tools, or a ToolError
        self.left_out: list[tuple[str, str]] = []  # tools that are not offered, and why
        self._children: list = []
        self._scope = None
        self._stopped = False
        self._n_offered = 0

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

    def stop(self, hurry: bool) -> None:
        self._stopped = True
        for child in self._children if hurry else ():
            child.hurry()
        if self._scope is not None:
            self._scope.cancel()

    async def _connected(self, stack: AsyncExitStack):
        from mcp import Client

        from v4cli.agent import mcp_bounds

        if self.server.command:
            from v4cli.agent.mcp_stdio import stdio

            transport = stdio(self.server, self._children)
        else:
            from mcp.client.streamable_http import streamable_http_client

            http = await stack.enter_async_context(mcp_bounds.client(self.server, CONNECT_S))
            transport = streamable_http_client(self.server.url, http_client=http)
        client = Client(mcp_bounds.sifted(transport, self._usable), cache=None)
        return await stack.enter_async_context(client)

    def _usable(self, result: dict) -> dict:
        """A list of tools as it came, without those that make it invalid."""
        from v4cli.agent.mcp_bounds import usable

        return usable(result, self._client.protocol_version, lambda *about: self.left_out.append(about))

    async def _list(self) -> list:
        tools, cursor, seen = [], None, set()
        while cursor not in seen:
            seen.add(cursor)
            page = await self._client.list_tools(cursor=cursor)
            tools += page.tools
            cursor = page.next_cursor
            if not cursor:
                return tools
            if len(tools) > MAX_TOOLS or len(seen) == MAX_PAGES:
                break
        self.left_out.append(("the rest", f"its list does not end after {len(tools)} tools on {len(seen)} pages"))
        return tools

    def tool(self, name: str, one) -> Tool | None:
        """A tool of this server as the model may call it; None if it cannot be used."""
        try:
            if self._n_offered == MAX_TOOLS:
                raise ValueError(f"{MAX_TOOLS} others are offered")
            parameters = foreign.parameters(one.input_schema)
        except ValueError as error:
            self.left_out.append((one.name, str(error)))
            return None
        self._n_offered += 1
        return Tool(name, foreign.text(one.description or ""), parameters, Kind.NETWORK, self.caller(one.name))

    def tell_left_out(self, note: Callable[[str], None]) -> None:
        """Name the tools that are not offered, and why; of many, the first."""
        for name, why in self.left_out[:MAX_NOTES]:
            reason = " ".join(foreign.text(why, 200).split())
            note(f"mcp.{self.name}: tool {foreign.text(name, 40)!r} is left out: {reason}")
        if (more := len(self.left_out) - MAX_NOTES) > 0:
            note(f"mcp.{self.name}: {more} more tool{'s are' if more > 1 else ' is'} left out")

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
    parts = list(map(_part, result.content))
    if result.structured_content is not None and not _is_said(result.structured_content, parts):
        parts.append(json.dumps(result.structured_content, ensure_ascii=False))
    return "\n\n".join(parts).encode("utf-8", "replace").decode()


def _is_said(value, parts: list[str]) -> bool:
    """Whether the parts are the structured value once more, or what is in it under the one key that the SDK puts
    around other values."""
    if any(_is(part, value) for part in parts):
        return True
    if not isinstance(value, dict) or list(value) != ["result"]:
        return False
    inner = value["result"]
    if isinstance(inner, list) and len(inner) == len(parts):
        return all(map(_is, parts, inner))
    return len(parts) == 1 and _is(parts[0], inner)


def _is(part: str, value) -> bool:
    try:
        return part == value or json.loads(part) == value
    except (ValueError, RecursionError):
        return False


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
    return f"{len(base64.rstrip('=')) * 3 // 4} bytes"
