"""Sets of tools; the calculator, the clock, and the tools that run programs."""

import json
import re
import socket
import time

import pytest
from v4kernels import native

from v4cli import paths
from v4cli.agent import commands, sandbox
from v4cli.agent.approval import Approvals, Mode
from v4cli.agent.builtin import NAMES, PRESETS, toolbox
from v4cli.agent.loop import Agent, Said
from v4cli.agent.process import Limits
from v4cli.agent.tools import Context, Kind, ToolError
from v4cli.chat.turn import Chat, Options
from v4cli.errors import UsageError
from v4cli.nano.tools import TOOLS


def do(folder, name, box=None, **arguments) -> str:
    call = (box or toolbox("all")).call({"function": {"name": name, "arguments": json.dumps(arguments)}})
    assert not call.fault
    return call.tool.run(call.arguments, Context(folder))


def test_nano_is_given_the_very_tools_it_was_trained_on():
    assert toolbox("nano").schemas == TOOLS


def test_sets_and_names():
    assert list(toolbox("all").tools) == [name for name in NAMES if name != "fetch_url"]
    assert list(toolbox("all,fetch_url").tools) == list(NAMES)
    assert list(toolbox(" read_file , run_shell,read_file").tools) == ["read_file", "run_shell"]
    assert all(tool.kind is Kind.READ for tool in toolbox("read").tools.values())
    assert {tool.kind for tool in toolbox("edit").tools.values()} == {Kind.READ, Kind.EDIT}
    assert toolbox("").schemas == []
    with pytest.raises(UsageError, match="no tool 'raed_file'") as error:
        toolbox("raed_file")
    assert "read_file" in error.value.hint and all(name in error.value.hint for name in PRESETS)


def test_who_can_be_asked_about_has_something_to_show():
    for tool in toolbox("all,fetch_url").tools.values():
        assert (tool.preview is None) == (tool.kind is Kind.READ)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("17*23", "391"), ("7/2", "3.5"), ("6/3", "2"), ("2/3", "0.6667"), ("2**10", "1024"), ("2^10", "1024"),
     ("-(3+4)*2", "-14"), ("7 // 2", "3"), ("7 % 4", "3"), ("sqrt(2)", "1.4142"), ("max(1, 2, 3)", "3"),
     ("3 × 4 ÷ 2 − 1", "5"), ("pi", "3.1416"), ("round(2.6)", "3"), ("1e3", "1000"), (" 1 + 1 ", "2"),
     ("1/8000", "0.000125"), ("1/30000", "3.333e-05"), ("-2/3", "-0.6667"), ("0.1+0.2", "0.3"), ("1-1.0", "0"),
     ("2**100", "1267650600228229401496703205376")],
)  # fmt: skip
def test_calculator(tmp_path, expression, value):
    assert do(tmp_path, "calculator", expression=expression) == value


@pytest.mark.parametrize(
    "expression",
    ["", "1+", "x", "1/0", "9**9**9", "2**-99999999", "(-8)**0.5", "True", "'a'*9", "[1]*9", "open('x')", "(1).real",
     "__import__('os').system('id')", "lambda: 1", "1 if 1 else 2", "max(*[1])", "(" * 300 + "1" + ")" * 300,
     "-" * 999 + "1", "1" * 2000, "10**1200*10**1200", "sqrt(-1)", "log(0)", "exp(1000)", "1<2", "max(1, key=2)",
     "a\0b", "1;2", "floor(1e400)", "1e400"],
)  # fmt: skip
def test_calculator_refuses(tmp_path, expression):
    start = time.monotonic()
    with pytest.raises(ToolError):
        do(tmp_path, "calculator", expression=expression)
    assert time.monotonic() - start < 1


def test_clock(tmp_path):
    days = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d ({days})", do(tmp_path, "clock"))


@pytest.fixture(params=["bwrap and bash", "neither"])
def machine(request, hide):
    """One with the optional programs, as far as this is one, and one without."""
    if request.param == "neither":
        hide("bwrap", "bash")
        assert sandbox.missing() and commands.shell("ls") == ["sh", "-c", "ls"]


def test_run_shell(tmp_path, machine):
    assert do(tmp_path, "run_shell", command="echo hello | tr a-z A-Z > x; cat x; echo 'a b'") == "HELLO\na b"
    assert do(tmp_path, "run_shell", command="true") == "[no output]"
    assert do(tmp_path, "run_shell", command="echo no >&2; exit 2") == "no\n[exit status 2]"
    assert "not found" in do(tmp_path, "run_shell", command="no-such-program")
    with pytest.raises(ToolError):
        do(tmp_path, "run_shell", command="a\0b")


def test_run_python(tmp_path, machine):
    assert do(tmp_path, "run_python", code="import os\nopen('x', 'w').write('1')\nprint(os.listdir())") == "['x']"
    assert "ZeroDivisionError" in do(tmp_path, "run_python", code="1/0")


@pytest.mark.skipif(not native.available() or sandbox.missing() != "", reason="no kernels, or no sandbox")
@pytest.mark.parametrize(
    ("question", "answer"),
    [("run `echo hello`", "The command printed: hello"), ("what is 17*23?", "17*23 = 391"),
     ("list docs", "docs contains: a.txt"), ("read nope.txt", "I could not read nope.txt: no such file.")],
)  # fmt: skip
def test_nano_uses_the_tools(tmp_path, question, answer):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").touch()
    agent = Agent(Chat.open(paths.NANO), toolbox("nano"), Context(tmp_path), Approvals(Mode.ALL, tmp_path).decide)
    events = list(agent.run([{"role": "user", "content": question}], Options(temperature=0)))
    assert [e.message["content"] for e in events if isinstance(e, Said)][-1] == answer


def test_limits_are_told_to_the_model(tmp_path, machine):
    box = toolbox("run_shell", Limits(seconds=0.3))
    assert do(tmp_path, "run_shell", box, command="echo a; sleep 60") == "a\n[stopped: it ran longer than 0.3 seconds]"


@pytest.mark.skipif(sandbox.missing() != "", reason=sandbox.missing())
def test_the_network_is_off_unless_allowed(tmp_path):
    interfaces = "import socket; print(len(socket.if_nameindex()))"
    assert do(tmp_path, "run_python", code=interfaces) == "1"
    box = toolbox("run_python", network=True)
    assert do(tmp_path, "run_python", box, code=interfaces) == str(len(socket.if_nameindex()))
