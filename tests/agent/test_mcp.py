"""Tools of MCP servers: real servers over pipes and HTTP, also ones that die, flood, babble, hang or change; none of
them stops the others, and none outlives the program.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest

from v4cli import paths, settings
from v4cli.agent import foreign, mcp_bounds, mcp_client, mcp_stdio
from v4cli.agent.loop import Agent, CallEnd, Decision
from v4cli.agent.mcp_client import mcp_tools
from v4cli.agent.tools import Context, Kind, Toolbox, ToolError
from v4cli.agent.toolset import toolset
from v4cli.chat.turn import Chat, Options
from v4cli.errors import UsageError
from v4cli.settings import McpServer

pytestmark = pytest.mark.usefixtures("patient")
SCRIPT = Path(__file__).with_name("mcp_server.py")
HERE = Context(Path("."))


def server(kind: str, folder: Path | None = None, **options) -> McpServer:
    env = options.pop("env", {}) | ({"HERE": str(folder)} if folder else {})
    return McpServer((sys.executable, str(SCRIPT), kind), env=env, **options)


def mute(folder: Path) -> McpServer:
    """One that starts at once and never says a word."""
    return McpServer(("sh", "-c", 'echo $$ > "$HERE/mute"; exec sleep 3600'), env={"HERE": str(folder)})


def eventually(true, seconds: float = 60.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not come true"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; zombies do not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def failing(tool, arguments=None, context=HERE) -> str:
    with pytest.raises(ToolError) as error:
        tool.run(arguments or {}, context)
    return str(error.value)


@pytest.fixture(scope="module")
def patient():
    """Nobody says a word about waiting, however slow this machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mcp_client, "PATIENCE_S", 3600.0)
        yield


@pytest.fixture(scope="module")
def good(patient):
    """The tools of a good server, by name."""
    os.environ["A_SECRET"] = "of ours"
    notes = []
    with mcp_tools({"good": server("good", env={"TOKEN": "x"})}, notes.append) as tools:
        assert notes == []
        yield {tool.name: tool for tool in tools}
    del os.environ["A_SECRET"]


def test_tools_are_offered_asked_about_and_called(good):
    add = good["good__add"]
    assert add.kind is Kind.NETWORK and add.description == "Add two numbers."
    assert add.run({"a": 17, "b": 23}, HERE) == "40"
    box = Toolbox([add])
    call = {"function": {"name": "good__add", "arguments": '{"a": "1"}'}}
    assert "b is missing" in box.call(call).fault


def test_nano_uses_one_by_a_name_that_only_the_grammar_knows(good):
    """Of itself it would say calculator."""
    chat, toolbox = Chat.open(paths.NANO), Toolbox([good["good__calculator"]])
    agent = Agent(chat, toolbox, HERE, lambda call, context: Decision(True))
    question = [{"role": "user", "content": "what is 17*23?"}]
    events = list(agent.run(question, Options(temperature=0, constrain=True)))
    ends = [event for event in events if isinstance(event, CallEnd)]
    assert [(end.call.name, end.result, end.ok) for end in ends] == [("good__calculator", "391", True)]
    assert "391" in chat.message["content"]


def test_a_server_sees_only_the_variables_it_is_given(good):
    seen = set(good["good__environment"].run({}, HERE).split())
    assert "TOKEN" in seen and seen <= {"TOKEN", "PATH", "HOME", "LANG", "LC_CTYPE"}


def test_errors_of_a_tool_are_told_to_the_model(good):
    assert "Error executing tool fail" in failing(good["good__fail"], {"why": "because"})
    assert "valid integer" in failing(good["good__add"], {"a": "x", "b": 1})


def test_pictures_and_resources_become_text(good):
    assert good["good__picture"].run({}, HERE) == "[image: 3 bytes of image/png]\n\nwords\n\ninside"


def test_an_interrupted_call_ends_at_once_and_is_cancelled_there(tmp_path):
    with mcp_tools({"s": server("good", tmp_path)}, pytest.fail) as tools:
        slow = next(tool for tool in tools if tool.name == "s__slow")
        begun = (tmp_path / "slow-begun").exists
        assert "interrupted" in failing(slow, context=Context(Path("."), cancelled=begun))
        eventually((tmp_path / "slow-cancelled").exists)


def test_a_call_that_takes_too_long_fails_and_the_next_one_works(tmp_path):
    with mcp_tools({"s": server("good", tmp_path, timeout=1.0)}, pytest.fail) as tools:
        by_name = {tool.name: tool for tool in tools}
        assert "no answer within 1 s" in failing(by_name["s__slow"])
        assert by_name["s__add"].run({"a": 1, "b": 2}, HERE) == "3"


BAD = {
    "garbage": "does not speak MCP: this is no message",
    "endless_line": "more than 8 MiB",
    "endless_messages": "more than 32 MiB",
    "half_answer": "valid list",
}


def test_bad_servers_give_clear_errors_and_the_others_go_on(tmp_path):
    notes = []
    missing = {"nothing": McpServer(("no-such-program",)), "ends": McpServer(("ls", "/no-such-file"))}
    servers = {"good": server("good")} | {kind: server(kind) for kind in BAD} | missing
    with mcp_tools(servers, notes.append) as tools:
        assert sorted(note.split(":")[0] for note in notes) == ["mcp.ends", "mcp.nothing"]
        assert any("cannot start 'no-such-program' (No such file" in note for note in notes)
        assert any("ended with code 2: ls: cannot access" in note for note in notes)
        by_name = {tool.name: tool for tool in tools}
        for kind, says in BAD.items():
            assert says in failing(by_name[f"{kind}__flood"]), kind
            assert by_name["good__add"].run({"a": 1, "b": 2}, HERE) == "3"
            assert failing(by_name[f"{kind}__flood"])
        assert by_name["good__more"].run({}, HERE) == "changed"
        assert "Unknown tool: add" in failing(by_name["good__add"], {"a": 1, "b": 2})
        assert "ended with code 3: out of luck" in failing(by_name["good__die"])
        assert "ended with code 3" in failing(by_name["good__environment"])


def test_one_that_never_answers_is_named_while_it_is_waited_for_and_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(mcp_client, "CONNECT_S", 1.0)
    monkeypatch.setattr(mcp_client, "PATIENCE_S", 0.01)
    notes = []
    with mcp_tools({"mute": mute(tmp_path)}, notes.append) as tools:
        assert tools == []
    assert notes[0] == "waiting for mcp.mute to start (1 s at most)" and "did not answer within 1 s" in notes[1]
    assert not alive(int((tmp_path / "mute").read_text()))


def test_what_comes_from_outside_is_made_harmless():
    notes = []
    with mcp_tools({"strange one": server("strange")}, notes.append) as tools:
        pass
    assert [tool.name[:20] for tool in tools] == ["strange_one__read_me"] * 2 + ["strange_one__nnnnnnn"]
    assert len({tool.name for tool in tools}) == 3
    for tool in tools:
        assert re.fullmatch("[A-Za-z0-9_-]{1,64}", tool.name)
        assert len(tool.description) <= 2000 and len(json.dumps(tool.schema)) < 25_000
        assert not {"\x1b", "\u202e", "\u200b", "\U000e0041"} & set(json.dumps(tool.schema, ensure_ascii=False))
    left_out = {note.split("left out: ")[1].split(" (")[0] for note in notes}
    assert left_out == {
        "its schema is nested too deeply",
        "its schema is too long",
        "its schema is not valid",
        "it has a parameter with the name 'a\" string=\"'",
        "there are hidden characters in its schema, or it is too long, at 'x'",
    }


def test_bad_tools_of_a_server_are_left_out_alone(monkeypatch):
    monkeypatch.setattr(mcp_client, "MAX_NOTES", 100)
    notes = []
    with mcp_tools({"m": server("mixed"), "none": server("empty")}, notes.append) as tools:
        by_name = {tool.name: tool for tool in tools}
        assert by_name["m__flood"].run({}, HERE) == '2 rows\n\n{"rows": [1, 2], "result": "x"}'
    assert {"m__flood", "m__old", "m__seven", "m__a_b", f"m__{'long' * 15}l"} <= by_name.keys() and len(tools) == 7
    told = dict(note.removeprefix("mcp.m: tool ").split(" is left out: ") for note in notes if note.startswith("mcp.m"))
    wrong = "its schema is not valid (True is not of type 'number')"
    assert told == {
        "'words'": "it is not an object",
        "'None'": "it is not an object",
        "''": "inputSchema: field required",
        "'untyped'": "inputSchema: field required",
        "'text'": "inputSchema.type: input should be 'object'",
        "'list'": "inputSchema: input should be a valid dictionary or instance of inputschema",
        "'5'": "name: input should be a valid string",
        "'other draft'": wrong,
        "'flood'": "it is listed twice",
        "'the rest'": "its list does not end after 9 tools on 20 pages",
    }
    assert [note for note in notes if note.startswith("mcp.none")] == ["mcp.none: it offers no tools"]


def test_names_do_not_depend_on_the_order_of_the_tools():
    tools = [("a", "b c"), ("a", "b_c"), ("a", "b.c"), ("a__b", "c"), ("a", "b__c"), ("x" * 40, "y" * 40 + "1")]
    tools += [("x" * 40, "y" * 40 + "2"), ("a", "other.name"), ("é", "")]
    found = dict(zip(tools, foreign.names(tools)))
    assert len(set(found.values())) == len(tools)
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,64}", name) for name in found.values())
    assert found["a", "b_c"] == "a__b_c" and found["a", "other.name"] == "a__other_name"
    assert dict(zip(tools[::-1], foreign.names(tools[::-1]))) == found
    assert found["a", "b c"] == "a__b_c_" + found["a", "b c"][-6:] and found["a__b", "c"] != "a__b__c"


def test_over_http(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(SCRIPT), "http", str(port)], stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/mcp"
        eventually(lambda: _answers(url))
        notes = []
        there, gone = McpServer(url=url), McpServer(url="http://127.0.0.1:9/mcp")
        with mcp_tools({"web": there, "gone": gone}, notes.append) as tools:
            assert [note.split(":")[0] for note in notes] == ["mcp.gone"]
            add = next(tool for tool in tools if tool.name == "web__add")
            assert add.run({"a": 2, "b": 3}, HERE) == "5"
            process.kill()
            process.wait()
            assert failing(add, {"a": 2, "b": 3}).startswith("mcp.web: ")
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return bool(httpx2.get(url).status_code)
    except httpx2.TransportError:
        return False


@pytest.mark.parametrize(
    ("answer", "says"),
    [(b"\r\n" + b"x" * (1 << 20), "more than 0 MiB"), (b"Content-Encoding: gzip\r\n\r\nx", "packed data")],
)
def test_what_comes_over_http_is_bounded(answer, says, monkeypatch):
    monkeypatch.setattr(mcp_bounds, "MAX_BYTES", 1000)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    with listening.accept()[0] as connection:
                        connection.recv(1 << 16)
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + answer)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        notes = []
        with mcp_tools(
            {"web": McpServer(url=f"http://127.0.0.1:{listening.getsockname()[1]}/")}, notes.append
        ) as tools:
            assert tools == []
        assert says in notes[0]
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("forgotten", [False, True], ids=["closed by sys.exit", "never closed"])
def test_no_process_outlives_the_program(forgotten, tmp_path):
    """One that ignores SIGTERM and has a child of its own."""
    code = f"""
import sys
from v4cli.agent.mcp_client import Connections
from v4cli.settings import McpServer
server = McpServer(({sys.executable!r}, {str(SCRIPT)!r}, "stubborn"), env={{"HERE": {str(tmp_path)!r}}})
context = Connections({{"s": server}}, print)
if {forgotten}:
    context.__enter__()
else:
    with context:
        sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == (0 if forgotten else 3) and done.stderr == ""
    pids = [int((tmp_path / name).read_text()) for name in ("stubborn", "child")]
    eventually(lambda: not any(map(alive, pids)))


def test_ctrl_c_while_connecting_leaves_nothing_behind_and_waits_for_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(mcp_stdio, "GRACE_S", 60.0)
    interrupted = []

    def ctrl_c():
        eventually((tmp_path / "mute").exists)
        interrupted.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    interrupt = threading.Thread(target=ctrl_c)
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        with mcp_tools({"mute": mute(tmp_path)}, pytest.fail):
            pass
    interrupt.join()
    assert time.monotonic() - interrupted[0] < 30
    eventually(lambda: not alive(int((tmp_path / "mute").read_text())))


def test_without_the_sdk_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(UsageError) as error:
        with mcp_tools({"x": McpServer(("true",))}, print):
            pass
    assert "v4cli[mcp]" in error.value.hint
    monkeypatch.setattr(settings, "load", lambda: settings.Settings({}, {}))
    with toolset("mcp,clock", print) as tools:
        assert list(tools.tools) == ["clock"]
