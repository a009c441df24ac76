"""The table of options: all that is made from it agrees, and ways to answer are the same in every command."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import option_table
import pytest
import typer
from test_cli import v4

from v4cli import settings
from v4cli.cli.app import app
from v4cli.engine.sampler import Sampling
from v4cli.entries import entries, made, table
from v4cli.errors import UsageError
from v4cli.options import COMMANDS, ChatOptions, Display, Options, RunOptions
from v4cli.repl import actions

SETTINGS = Path(__file__).parents[2] / "docs" / "settings.md"
LINES = {
    "run": ["run", "hello", "-m", "nano"],
    "chat": ["chat"],
    "rollout": ["rollout", "t", "--out", "o", "-m", "nano"],
    "serve": ["serve", "nano"],
    "launch": ["launch", "claude"],
}
ANSWERING = [command for command in COMMANDS if command not in ("serve", "launch")]  # there, clients say how to answer
FUNCTIONS = {
    "run": "v4cli.cli.run.run_once", "chat": "v4cli.cli.chat.chat", "rollout": "v4cli.cli.rollout.run_rollouts",
    "serve": "v4cli.cli.serve.serve", "launch": "v4cli.cli.launch.launch",
}  # fmt: skip


@pytest.fixture
def told(monkeypatch, tmp_path):
    """told(command, flags): the options that a command line gives to what the command does."""
    monkeypatch.setenv("V4_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    heard = []
    for function in FUNCTIONS.values():
        monkeypatch.setattr(function, heard.append)

    def run(command: str, *flags: str):
        app([*LINES[command], *flags], standalone_mode=False)
        return heard.pop()

    return run


def test_the_readme_has_this_table():
    text = SETTINGS.read_text()
    assert option_table.with_table(text) == text, "make options"


@pytest.mark.parametrize("command", COMMANDS)
def test_names_and_flags_are_told_apart(command):
    found = list(table(COMMANDS[command]))
    names = [entry.name for entry in found]
    flags = [flag for entry in found for flag in (*entry.flags, *(switch.flag for switch in entry.switches))]
    assert len(set(names)) == len(names) and len(set(flags)) == len(flags)
    assert all(flag.startswith("-") for flag in flags)


@pytest.mark.parametrize("command", COMMANDS)
def test_typer_has_the_table_s_parameters_and_no_others(command):
    there = typer.main.get_command(app).commands[command].params
    flags = {flag for entry in table(COMMANDS[command]) for flag in entry.flags}
    flags |= {switch.flag for entry in table(COMMANDS[command]) for switch in entry.switches}
    assert {flag for param in there if param.param_type_name == "option" for flag in param.opts} == flags


@pytest.mark.parametrize("command", ANSWERING)
def test_every_way_to_answer_is_in_every_command(command):
    assert {entry.name for entry in table(COMMANDS[command])} >= {entry.name for entry in entries(Options)}


def test_an_empty_command_line_says_what_the_table_does(told):
    given = {"run": {"prompt": ("hello",), "model": "nano"}, "chat": {}}
    given["serve"] = {"model": "nano"}
    given["launch"] = {"client": "claude"}
    given["rollout"] = {"tasks": Path("t"), "out": Path("o"), "model": "nano"}
    for command, values in given.items():
        assert told(command) == made(COMMANDS[command], values)
    assert [told(command).answer.thinking for command in ("run", "chat")] == [False, True]
    assert not told("rollout").conditions.answer.thinking and told("rollout").conditions.answer.seed == 0


def test_flags_reach_those_concerned(told):
    flags = (
        "--seed",
        "7",
        "--stop",
        "a",
        "--stop",
        "b",
        "--think-max",
        "--temp",
        "0.5",
        "--top-p",
        "0.9",
        "--top-k",
        "3",
    )
    flags += ("--min-p", "0.1", "--max-tokens", "9", "--constrain", "--loops", "stop")
    wanted = Options(True, "max", 0.5, 0.9, 3, 0.1, 7, 9, ("a", "b"), True, "stop")
    for command in ANSWERING:
        heard = told(command, *flags)
        assert (heard.conditions if command == "rollout" else heard).answer == wanted, command
    for command in ("run", "chat"):
        heard = told(command, "--max-rounds", "2", "--approve", "plan", "--tools", "read", "--network", "--stats")
        use = heard.tool_use
        assert (use.max_rounds, use.approve, use.tools, use.network) == (2, "plan", "read", True)
        assert heard.display == Display(stats=True)


def test_the_way_without_typer_says_the_same(told, tmp_path, monkeypatch):
    (tmp_path / "config.toml").write_text('think = "max"\ntemp = 0\nstats = true\ntools = "read"\nkv_dir = "~/kv"\n')
    monkeypatch.setenv("V4_APPROVE", "edits")
    heard = told("chat")
    assert heard == made(ChatOptions, settings.defaults("chat")) and heard != made(ChatOptions, {})
    assert heard.answer.effort == "max" and heard.loading.kv_dir == Path.home() / "kv"


EDGES = (-1.0, -1e-9, -0.0, 0.0, 1e-9, 0.5, 1.0, 1.0 + 1e-9, 99.0, 100.0, 100.1, math.inf, -math.inf, math.nan)
WHOLE = (-1, 0, 1, 2**63 - 1, 2**63)


@pytest.mark.parametrize(
    ("field", "value"),
    [*itertools.product(("temperature", "top_p", "min_p"), EDGES), *itertools.product(("top_k", "seed"), WHOLE)],
)
def test_what_the_table_allows_the_sampler_can_do_and_nothing_else(field, value):
    def says(kind) -> str:
        try:
            kind(**{field: value})
        except UsageError as error:
            return str(error)
        return ""

    assert says(Options) == says(Sampling)


WRONG = {
    "think": "hard", "temp": "101", "top_p": "0", "top_k": "-1", "min_p": "1", "max_tokens": "0", "constrain": "x",
    "approve": "never", "network": "2", "hide_thinking": "x", "stats": "x", "backend": "warp", "no_cache": "x",
    "gpu": "-1", "chunk": "5", "kv_host": "x", "dense": "fp8",
    "drafts": "x", "no_log": "x", "loops": "x",
}  # fmt: skip


def test_a_bad_variable_is_named_whatever_it_is(monkeypatch, told):
    texts = {
        "model",
        "system",
        "tools",
        "ram",
        "vram",
        "kv_dir",
        "engine",
    }  # any text may be one; it is looked into later
    assert WRONG.keys() | texts == settings.KEYS.keys()
    for key, value in WRONG.items():
        with monkeypatch.context() as patch, pytest.raises(UsageError) as error:
            patch.setenv(settings.variable(key), value)
            told("run")
        assert str(error.value).startswith(f"V4_{key.upper()}: {key} must be ") and value in str(error.value)


NAMED = {"ram": "lots", "vram": "much", "kv_dir": "/nonexistent/kv", "model": "nowhere", "tools": "hammer"}


@pytest.mark.parametrize("key", NAMED)
def test_what_a_variable_names_is_looked_for_under_its_name(key):
    command = ("chat", "--plain") if key == "tools" else ("run", "hi")
    name, flag = settings.variable(key), "--" + key.replace("_", "-")
    done = v4(*command, env={name: NAMED[key]})
    assert done.returncode in (2, 3) and done.stderr.startswith(f"v4: {name}") and done.stdout == ""
    typed = v4(*command, flag, NAMED[key])
    assert typed.returncode == done.returncode and name not in typed.stderr


def test_what_a_file_names_is_looked_for_under_its_name(tmp_path):
    (tmp_path / "config.toml").write_text('model = "nowhere"\nkv_dir = "/nonexistent/kv"')
    done = v4("run", "hi", env={"V4_HOME": tmp_path})
    assert done.returncode == 2 and done.stderr.startswith(
        f"v4: {tmp_path}/config.toml: kv_dir /nonexistent/kv: no such"
    )
    done = v4("run", "hi", env={"V4_HOME": tmp_path, "V4_KV_DIR": str(tmp_path)})
    assert done.returncode == 3 and done.stderr.startswith(f"v4: {tmp_path}/config.toml: model: model 'nowhere' not")


def test_projects_may_only_say_how_to_answer_and_what_is_shown():
    harmless = {entry.name for concern in (Options, Display) for entry in entries(concern)}
    assert {key for key, entry in settings.KEYS.items() if entry.setting == "project"} <= harmless


def test_values_of_the_wrong_range_are_refused_in_files_too(told, tmp_path):
    (tmp_path / "config.toml").write_text("top_p = 7")
    with pytest.raises(UsageError, match=r"config\.toml: top_p must be above 0 and at most 1, not 7"):
        told("run")


def test_a_choice_is_refused_by_its_flag(told):
    for command, flag in (("run", "--output-format"), ("chat", "--approve"), ("chat", "--numerics")):
        with pytest.raises(UsageError, match=f"^{flag} must be one of "):
            told(command, flag, "PLAN")


def test_text_must_be_text(told):
    for flag in ("--system", "--stop"):
        with pytest.raises(UsageError, match=f"^{flag}: not UTF-8"):
            told("chat", flag, "\udcff")


def test_set_changes_ways_to_answer_only():
    assert actions.LIVE.keys() - {"drafts"} <= {entry.name for entry in entries(Options)}
    assert {"temp", "top_p", "top_k", "min_p", "seed", "max_tokens", "stop"} <= actions.LIVE.keys()
    assert all(not entry.gives for entry in actions.LIVE.values())


def test_the_prompt_waits_for_nothing_that_is_not_needed_yet():
    heavy = "typer numpy torch tokenizers rich psutil v4cli.agent v4cli.chat v4cli.engine".split()
    code = "import sys\nfrom v4cli.cli import chat\nfrom v4cli.repl import app\n"
    code += f"sys.exit(', '.join(sys.modules.keys() & {set(heavy)}) or None)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stderr == b""


def test_options_of_a_command_are_complete():
    with pytest.raises(TypeError, match="said"):
        RunOptions(answer=Options())
