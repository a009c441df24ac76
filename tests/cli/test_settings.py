"""Settings as a user meets them: two files, variables and flags, who wins, and what a mistake says."""

import json
import sys

import pexpect
import pytest
import typer
from test_cli import v4

from v4cli import settings
from v4cli.cli.app import app
from v4cli.cli.run import refuse_contradictions
from v4cli.errors import UsageError


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Writers of the user's file and of the project's, with the project as the current folder."""
    home, project = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    project.mkdir()
    monkeypatch.setenv("V4_HOME", str(home))
    monkeypatch.chdir(project)
    return (home / "config.toml").write_text, (project / ".v4cli.toml").write_text


def test_every_key_is_an_option_of_run_or_chat():
    commands = typer.main.get_command(app).commands
    options = {option.name for name in ("run", "chat") for option in commands[name].params}
    assert set(settings.KEYS) <= options


def test_variable_before_project_before_user_before_default(places, monkeypatch):
    user, project = places

    def found(key: str) -> tuple:
        setting = settings.load().keys[key]
        return setting.value, setting.origin.rpartition("/")[2]

    assert found("temp") == (None, "default")
    user('temp = 1\nmax_tokens = 5\nmodel = "nano"')
    assert found("temp") == (1.0, "config.toml") and found("model")[0] == "nano"
    project("temp = 0.2")
    assert found("temp") == (0.2, ".v4cli.toml") and found("max_tokens") == (5, "config.toml")
    monkeypatch.setenv("V4_TEMP", "0.3")
    assert found("temp") == (0.3, "V4_TEMP")
    assert json.loads(v4("config", "show", "--json").stdout)["temp"] == {"value": 0.3, "origin": "V4_TEMP"}
    assert "max_tokens" in v4("config", "show").stdout


@pytest.fixture
def asked(monkeypatch):
    """What `v4 run ARGS` would do: the request it makes of its options, or the error."""
    requests = []
    monkeypatch.setattr("v4cli.cli.run.run_once", requests.append)

    def request(*args):
        app(["run", "hello", *args], standalone_mode=False)
        refuse_contradictions(requests[-1])
        return requests[-1]

    return request


def thinking(told) -> str:
    """How a command would think."""
    return "off" if not told.answer.thinking else told.answer.effort or "on"


def test_run_obeys_them_unless_a_flag_says_more(places, monkeypatch, asked):
    user, _ = places
    user("max_tokens = 3\nstats = true\ntemp = 0")
    assert (asked().answer.max_tokens, asked().display.stats, asked().answer.temperature) == (3, True, 0.0)
    assert asked("-n", "4").answer.max_tokens == 4
    done = json.loads(v4("run", "--json", "hello").stdout)
    assert done["usage"]["completion_tokens"] == 3
    monkeypatch.setenv("V4_MAX_TOKENS", "2")
    assert asked().answer.max_tokens == 2 and asked("-n", "4").answer.max_tokens == 4


def test_what_may_run_is_settled_for_chat_only(places):
    user, _ = places
    user('tools = "all"\napprove = "all"\nmin_p = 0.1')
    assert settings.defaults("chat") == {"tools": "all", "approve": "all", "min_p": 0.1}
    assert settings.defaults("run") == {"min_p": 0.1} and settings.defaults("rollout") == {}
    user('model = "flash"')
    assert settings.default_model() == "flash" and settings.defaults("chat") == {}


@pytest.mark.parametrize("settled", ["on", "max"])
def test_thinking_of_the_settings_gives_way_to_any_flag(places, asked, settled):
    user, _ = places

    user(f'think = "{settled}"')
    assert thinking(asked()) == settled
    assert [thinking(asked(flag)) for flag in ("--think", "--no-think", "--think-max")] == ["on", "off", "max"]
    with pytest.raises(UsageError, match="exclude each other"):
        asked("--think", "--no-think")


@pytest.mark.parametrize("settled", ["", "on", "off", "max"])
def test_thinking_means_the_same_in_the_chat(places, monkeypatch, settled):
    setups = []
    monkeypatch.setattr("v4cli.repl.plain.run", setups.append)

    def said(*flags) -> str:
        app(["chat", *flags], standalone_mode=False)
        return thinking(setups[-1].told)

    if settled:
        places[0](f'think = "{settled}"')
    assert said() == (settled or "on")
    assert [said(flag) for flag in ("--think", "--no-think", "--think-max")] == ["on", "off", "max"]
    with pytest.raises(UsageError, match="exclude each other"):
        said("--no-think", "--think-max")


@pytest.mark.parametrize("text", ['tools = "all"', 'approve = "all"', '[mcp.x]\ncommand = ["touch", "/tmp/x"]'])
@pytest.mark.parametrize("more", ["", 'model = "./weights"', 'system = "obey"', 'kv_dir = "/"', "temp = 1"])
def test_a_project_never_gains_execution(places, text, more):
    _, project = places
    project(f"{more}\n{text}")
    with pytest.raises(UsageError, match="may not be set by a project") as error:
        settings.load()
    assert "config.toml" in error.value.hint


def test_a_project_with_more_than_it_may_runs_nothing(places):
    _, project = places
    project('tools = "builtin"')
    done = v4("run", "hello")
    assert done.returncode == 2 and "tools may not be set by a project" in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tmep = 1", "did you mean temp?"),
        ("colour = 1", "v4 config show"),
        ('temp = "hot"', "temp must be a number, not 'hot'"),
        ("top_k = true", "top_k must be a whole number, not True"),
        ("top_k = 1.5", "whole number"),
        ("stats = 1", "true or false"),
        ('think = "hard"', "one of off, on, max"),
        ("model = 4", "a text"),
        ("temp = ", "not a TOML file"),
        ("temp = \\udcff", "not a TOML file"),
        ("temp = 1\n" + "a." * 501 + "a = 1", "line 2 has more than 500 dots"),
        ("# " + "x" * (1 << 16), "larger than 64 KiB"),
        ("mcp = 1", "mcp must be tables"),
        ("[mcp.x]", "either command or url"),
        ('[mcp.x]\ncommand = "ls"', "command must be a list of texts"),
        ('[mcp.x]\nurl = "file:///etc"', "url must be an https:// address"),
        ('[mcp.x]\ncommand = ["a"]\nenv = { A = 1 }', "env must be a table of texts"),
        ('[mcp.x]\ncommand = ["a"]\nshell = true', "no key 'shell'"),
        ('[mcp.x]\ncommand = ["a"]\ntimeout = -1', "timeout must be"),
    ],
)
def test_a_mistake_names_the_file_and_what_is_right(places, text, says, tmp_path):
    (tmp_path / "home" / "config.toml").write_bytes(text.encode("ascii").replace(b"\\udcff", b"\xff"))
    with pytest.raises(UsageError) as error:
        settings.load()
    assert str(tmp_path) in str(error.value) and says in f"{error.value} {error.value.hint}"


def test_a_variable_of_the_wrong_type_is_named(places, monkeypatch):
    monkeypatch.setenv("V4_TEMP", "warm")
    done = v4("config", "show")
    assert done.returncode == 2 and "V4_TEMP: temp must be a number" in done.stderr
    assert v4("config", "path").returncode == 0


def test_the_short_way_into_the_chat_knows_them_too(places):
    """`v4 chat` on a terminal starts without parsing options."""
    user, _ = places
    user("tmep = 1")
    with_terminal = pexpect.spawn(sys.executable, ["-m", "v4cli", "chat"], encoding="utf-8", timeout=60)
    with_terminal.expect("did you mean temp")
    with_terminal.expect(pexpect.EOF)
    with_terminal.close()
    assert with_terminal.exitstatus == 2


def test_secrets_of_servers_are_not_shown(places):
    user, _ = places
    user(
        '[mcp.a]\ncommand = ["x", "y"]\nenv = { TOKEN = "hunter2" }\n'
        '[mcp.b]\nurl = "https://me:hunter2@h/mcp?key=hunter2"\nheaders = { K = "s3" }'
    )
    text = v4("config", "show").stdout + v4("config", "show", "--json").stdout
    assert "TOKEN" in text and "https://h/mcp" in text and "hunter2" not in text and "s3" not in text
