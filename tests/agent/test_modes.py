"""Every mode of approval through every way to choose one: what runs is the same, for each kind of tool."""

import io
import sys

import pytest
from scripted import Scripted, block, invoke

from v4cli import paths
from v4cli.agent import sandbox, toolset
from v4cli.agent.approval import Answer, Choice
from v4cli.agent.tools import Kind, Tool, Toolbox, parameters
from v4cli.chat.turn import Chat
from v4cli.cli import sessions
from v4cli.cli.start import main
from v4cli.repl import plain

KINDS = ["read", "edit", "run", "network"]
RUNS = {"ask": ["read"], "edits": ["read", "edit"], "plan": ["read"], "all": KINDS}  # unasked
ASKED = {"ask": KINDS[1:], "edits": KINDS[2:], "plan": [], "all": []}
ALL_KINDS = block(*(invoke(str(kind)) for kind in Kind))


@pytest.fixture(scope="module")
def nano():
    return Chat.open(paths.NANO)


@pytest.fixture
def ran(nano, tmp_path, monkeypatch):
    """The kinds of the tools that have run: the model calls one of each kind in every answer."""
    ran = []

    def tool(kind: Kind) -> Tool:
        return Tool(str(kind), "Do it", parameters(), kind, lambda arguments, context: ran.append(str(kind)) or "done")

    def opened(*_, **options) -> Chat:
        turns = [ALL_KINDS, "done"] * 3
        return Chat(nano.engine, nano.tokenizer, nano.defaults, Scripted(nano.engine, nano.tokenizer, turns))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("V4_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sandbox, "missing", lambda: "")
    monkeypatch.setattr(toolset, "toolbox", lambda names, **options: Toolbox(map(tool, Kind)))
    monkeypatch.setattr(Chat, "open", opened)
    monkeypatch.setattr(sessions, "keep", lambda session: None)
    monkeypatch.setattr(sessions, "store", lambda session: [])
    return ran


class Typed(io.TextIOWrapper):
    """A file that passes for somebody at a keyboard."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def asked(monkeypatch):
    """The kinds of the tools that a user was asked about, who always says yes."""
    asked = []

    def yes(request, lines, dialogue) -> Answer:
        asked.append(str(request.call.tool.kind))
        return Answer(Choice.YES)

    monkeypatch.setattr(plain, "asked", yes)
    return asked


@pytest.fixture
def v4(tmp_path, monkeypatch):
    """v4(arguments, lines that are typed): the command in this process."""

    def run(arguments: str, lines: str = "") -> None:
        (tmp_path / "stdin").write_text(lines)
        monkeypatch.setattr(sys, "argv", ["v4", *arguments.split()])
        with Typed(open(tmp_path / "stdin", "rb")) as stdin, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", stdin)
            try:
                main()
            except SystemExit as ended:
                assert not ended.code

    return run


@pytest.mark.parametrize("mode", RUNS)
@pytest.mark.parametrize("channel", ["run --approve", "chat --approve", "config.toml", "V4_APPROVE", "/approve"])
def test_a_mode_means_the_same_however_it_is_chosen(ran, asked, v4, tmp_path, monkeypatch, channel, mode):
    if channel == "run --approve":
        v4(f"run --tools all --approve {mode} go")
        assert ran == RUNS[mode]  # in a script nobody is asked
        return
    if channel == "chat --approve":
        v4(f"chat --approve {mode}", "go\n")
    elif channel == "config.toml":
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "config.toml").write_text(f'approve = "{mode}"')
        v4("chat", "go\n")
    elif channel == "V4_APPROVE":
        monkeypatch.setenv("V4_APPROVE", mode)
        v4("chat", "go\n")
    else:
        v4("chat", f"/approve {mode}\ngo\n")
    assert asked == ASKED[mode] and ran == (["read"] if mode == "plan" else KINDS)


@pytest.mark.parametrize("first", RUNS)
@pytest.mark.parametrize("then", RUNS)
def test_a_mode_can_be_changed_to_any_other(ran, asked, v4, first, then):
    v4(f"chat --approve {first}", f"go\n/approve {then}\ngo\n")
    assert asked == ASKED[first] + ASKED[then]


@pytest.mark.parametrize("wrong", ["PLAN", "never", "plan,all", "Mode.ALL", "all\u200b"])
def test_what_is_no_mode_changes_nothing(ran, asked, v4, wrong):
    v4("chat --approve plan", f"/approve {wrong}\ngo\n")
    assert ran == ["read"] and not asked
