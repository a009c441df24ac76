"""Every mode of approval through every way to choose one: what runs is the same, for each kind of tool."""

import sys

import pytest
from scripted import Scripted, block, invoke

from v4cli import paths
from v4cli.agent import sandbox, toolset
from v4cli.agent.tools import Kind, Tool, Toolbox, parameters
from v4cli.chat.turn import Chat
from v4cli.cli import sessions
from v4cli.cli.start import main

RUNS = {"ask": ["read"], "edits": ["read", "edit"], "plan": ["read"], "all": ["read", "edit", "run", "network"]}
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


@pytest.fixture
def v4(tmp_path, monkeypatch):
    """v4(arguments, lines on stdin): the command in this process."""

    def run(arguments: str, lines: str = "") -> None:
        (tmp_path / "stdin").write_text(lines)
        monkeypatch.setattr(sys, "argv", ["v4", *arguments.split()])
        with open(tmp_path / "stdin") as stdin, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", stdin)
            with pytest.raises(SystemExit) as ended:
                main()
        assert not ended.value.code

    return run


@pytest.mark.parametrize("mode", RUNS)
@pytest.mark.parametrize("channel", ["run --approve", "chat --approve", "config.toml", "V4_APPROVE", "/approve"])
def test_a_mode_means_the_same_however_it_is_chosen(ran, v4, tmp_path, monkeypatch, channel, mode):
    if channel == "run --approve":
        v4(f"run --tools all --approve {mode} go")
    elif channel == "chat --approve":
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
    assert ran == RUNS[mode]


@pytest.mark.parametrize("first", RUNS)
@pytest.mark.parametrize("then", RUNS)
def test_a_mode_can_be_changed_to_any_other(ran, v4, first, then):
    v4(f"chat --approve {first}", f"go\n/approve {then}\ngo\n")
    assert ran == RUNS[first] + RUNS[then]


@pytest.mark.parametrize("wrong", ["PLAN", "never", "plan,all", "Mode.ALL", "all\u200b"])
def test_what_is_no_mode_changes_nothing(ran, v4, wrong):
    v4("chat --approve plan", f"/approve {wrong}\ngo\n")
    assert ran == RUNS["plan"]
