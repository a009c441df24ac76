"""An MCP server for tests: mcp_server.py good|single|http|strange, or a bad one that speaks by hand."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(os.environ.get("HERE", tempfile.gettempdir()))  # where it leaves traces of itself


def note(name: str) -> None:
    (HERE / name).write_text(str(os.getpid()))


def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression"""
    a, b = expression.split("*")
    return str(int(a) * int(b))


def single():
    """A server with one tool."""
    from mcp.server import MCPServer

    server = MCPServer("single")
    server.add_tool(calculator)
    return server


def good():
    """A well-behaved server made with the SDK."""
    import mcp_types as types
    from mcp.server import MCPServer

    server = MCPServer("good")

    @server.tool()
    def add(a: int, b: int) -> str:
        """Add two numbers."""
        return str(a + b)

    server.add_tool(calculator)

    @server.tool()
    def environment() -> str:
        """Tell the names of all variables."""
        return " ".join(sorted(os.environ))

    @server.tool()
    def fail(why: str) -> str:
        """Fail."""
        raise ValueError(why)

    @server.tool(structured_output=False)
    def picture() -> list:
        """A picture, a text and a resource."""
        inside = types.TextResourceContents(uri="note://1", mime_type="text/plain", text="inside")
        return [
            types.ImageContent(type="image", data="AAAA", mime_type="image/png"),
            types.TextContent(type="text", text="words"),
            types.EmbeddedResource(type="resource", resource=inside),
        ]

    @server.tool()
    async def slow() -> str:
        """Take an hour; leave a trace when begun and when cancelled."""
        import anyio

        note("slow-begun")
        try:
            await anyio.sleep(3600)
        finally:
            note("slow-cancelled")

    @server.tool()
    def die() -> str:
        """End the server."""
        print("out of luck", file=sys.stderr, flush=True)
        os._exit(3)

    @server.tool()
    def more() -> str:
        """Get another tool."""
        server.add_tool(lambda: "new", name="later", description="Came later.")
        server.remove_tool("add")
        return "changed"

    return server


def strange():
    """Names, texts and schemas that nobody should pass on as they are."""
    import asyncio

    import mcp_types as types
    from mcp.server import Server
    from mcp.server.stdio import stdio_server

    hidden = "Read\u202e a\x1b[31m file\U000e0041\u200b" + "x" * 9000
    nested: dict = {"type": "object"}
    for _ in range(50):
        nested = {"type": "object", "properties": {"n": nested}}
    plain = {"type": "object", "properties": {"path": {"type": "string", "description": hidden}}}
    tools = [
        types.Tool(name="read me!\x1b[2J", description=hidden, input_schema=plain),
        types.Tool(name="read_me__[2J", description="the same name when cleaned", input_schema=plain),
        types.Tool(name="deep", input_schema=nested),
        types.Tool(name="long", input_schema={"type": "object", "title": "x", "enum": [{"a": "y" * 1500}] * 20}),
        types.Tool(name="wrong", input_schema={"type": "object", "properties": {"a": {"type": 5}}}),
        types.Tool(name="quoted", input_schema={"type": "object", "properties": {'a" string="': {"type": "string"}}}),
        types.Tool(name="hidden", input_schema={"type": "object", "properties": {"a": {"enum": ["x\u200b"]}}}),
        types.Tool(name="n" * 300, description="long name", input_schema={"type": "object"}),
    ]

    async def on_list(context, params):
        return types.ListToolsResult(tools=tools)

    async def main():
        server = Server("strange", on_list_tools=on_list)
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    asyncio.run(main())


def mixed(cursor: str | None) -> dict:
    """A list of tools of which some are not even what the protocol has, and which is on pages without end."""
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1, "exclusiveMinimum": True}}}
    old = {"$schema": "http://json-schema.org/draft-04/schema#"} | schema
    seven = {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"n": {"items": [{}, {}]}}}
    bad = [
        "words",
        None,
        {},
        {"name": "untyped"},
        {"name": "text", "inputSchema": {"type": "string"}},
        {"name": "list", "inputSchema": []},
        {"name": 5, "inputSchema": {"type": "object"}},
        {"name": "other draft", "inputSchema": schema},
        {"name": "flood", "inputSchema": {"type": "object"}},
    ]
    good = [TOOL, {"name": "old", "inputSchema": old}, {"name": "seven", "inputSchema": {"type": "object"} | seven}]
    good += [{"name": name, "inputSchema": {"type": "object"}} for name in ("a.b", "a b", "a_b", "long" * 40)]
    return {"tools": good + bad if cursor is None else [], "nextCursor": f"{cursor}+"}


TOOL = {"name": "flood", "inputSchema": {"type": "object"}}


def answer(request: dict, result: dict) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}) + "\n")
    sys.stdout.flush()


def by_hand(on_call, listed=lambda cursor: {"tools": [TOOL]}) -> None:
    """Speak just enough of the protocol; `on_call(request)` misbehaves."""
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("method") == "initialize":
            about = {"protocolVersion": request["params"]["protocolVersion"], "capabilities": {"tools": {}}}
            answer(request, about | {"serverInfo": {"name": "bad", "version": "1"}})
        elif request.get("method") == "tools/list":
            answer(request, listed(request.get("params", {}).get("cursor")))
        elif request.get("method") == "tools/call":
            on_call(request)
        elif "id" in request:
            error = {"code": -32601, "message": "no such method"}
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}) + "\n")
            sys.stdout.flush()


def garbage(request: dict) -> None:
    for _ in range(300):
        print("this is no message")
    sys.stdout.flush()


def endless_line(request: dict) -> None:
    while True:
        sys.stdout.write("x" * 100_000)


def endless_messages(request: dict) -> None:
    message = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x" * 9000}}
    while True:
        print(json.dumps(message))


def structured(request: dict) -> None:
    """Say only a part of the result in words."""
    about = {"rows": [1, 2], "result": "x"}
    answer(request, {"content": [{"type": "text", "text": "2 rows"}], "structuredContent": about})


def half_answer(request: dict) -> None:
    answer(request, {"content": 5})


def stubborn() -> None:
    """Connect properly, have a child, and never leave when told to."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "3600"])
    (HERE / "child").write_text(str(child.pid))
    subprocess.Popen(["sleep", "30"], start_new_session=True)  # gets away with our pipes
    note("stubborn")
    by_hand(garbage)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    kind = sys.argv[1]
    if kind == "good":
        good().run("stdio")
    elif kind == "single":
        single().run("stdio")
    elif kind == "http":
        good().run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
    elif kind in ("strange", "stubborn"):
        globals()[kind]()
    elif kind == "mixed":
        by_hand(structured, mixed)
    elif kind == "empty":
        by_hand(structured, lambda cursor: {"tools": []})
    else:
        by_hand(globals()[kind])
