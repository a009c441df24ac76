"""`v4 launch`, with programs that stand for the clients: each finds its settings as the real one does."""

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from v4cli import paths
from v4cli.cli import found
from v4cli.cli.clients import CLIENTS, Place
from v4cli.cli.launch import launch
from v4cli.entries import made
from v4cli.errors import UsageError, V4Error
from v4cli.options import LaunchOptions
from v4cli.serve.running import registered, servers

FAKE = Path(__file__).with_name("fake_client.py")
REAL_KEYS = {"ANTHROPIC_API_KEY": "sk-real", "OPENAI_API_KEY": "sk-real", "CLAUDE_CODE_USE_BEDROCK": "1"}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A user with all clients, keys for other services, and settings of their own."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in CLIENTS:
        (programs / name).write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("V4_HOME", str(tmp_path / "v4"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("V4_TEST_RECORD", str(tmp_path / "record.json"))
    for name, value in REAL_KEYS.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def run(machine):
    """`run(client, *arguments)`: what the program says of its start."""

    def launched(client: str, *arguments: str, **values) -> dict:
        with pytest.raises(SystemExit) as left:
            launch(made(LaunchOptions, {"client": client, "arguments": arguments, **values}))
        assert left.value.code == 7
        return json.loads((machine / "record.json").read_text())

    return launched


@pytest.fixture
def known(service, served):
    """`known(key)`: a server of nano that `v4 ps` knows."""
    with ExitStack() as stack:

        def start(key: str | None = None, folder: Path = paths.NANO):
            http = served(service(2), key=key)
            url = str(http.base_url).rstrip("/")
            stack.enter_context(registered(url, "nano", 2, folder, bool(key)))
            return url

        yield start


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_uses_the_server_that_runs(machine, known, run, client):
    url, before = known(), sorted(machine.rglob("*"))
    told = run(client, "-p", "hello world")
    assert told["argv"][-2:] == ["-p", "hello world"]
    assert told["answer"].get("choices") or told["answer"].get("content") or told["answer"].get("output")
    assert url in json.dumps(told)
    left = [path for path in sorted(machine.rglob("*")) if path not in before and "v4" not in path.parts]
    assert left == [machine / "record.json"] and not any(Path(path).exists() for path in told["files"])


@pytest.mark.parametrize("client", CLIENTS)
def test_the_key_goes_to_the_server_and_no_other_key_does(machine, known, run, client, monkeypatch):
    known(key="the-key")
    monkeypatch.setenv("V4_API_KEY", "the-key")
    told = run(client)
    assert "the-key" not in json.dumps(told["argv"])
    sent = {name: value for name, value in told["environment"].items() if name in REAL_KEYS}
    if client == "claude":
        assert sent == {"OPENAI_API_KEY": "sk-real"}  # which is for what it runs, not for itself
    if client == "aider":
        assert sent["OPENAI_API_KEY"] == "the-key"
    monkeypatch.setenv("V4_API_KEY", "another")
    with pytest.raises(UsageError, match="another key"):
        launch(made(LaunchOptions, {"client": client}))


def test_a_server_of_its_own_ends_with_the_client(machine, run, capfd):
    assert not servers()
    told = run("aider", model="nano")
    assert told["answer"]["choices"] and not servers()
    assert "started" in capfd.readouterr().err


def test_a_server_that_does_not_start_says_why(machine):
    with pytest.raises(V4Error, match=r"has not started.*no such folder"):
        launch(made(LaunchOptions, {"client": "aider", "model": "nano", "kv_dir": machine / "none"}))


def test_who_is_not_installed_is_named_with_what_installs_it(machine, monkeypatch):
    monkeypatch.setenv("PATH", str(machine))
    for name, client in CLIENTS.items():
        with pytest.raises(UsageError, match="not installed") as error:
            launch(made(LaunchOptions, {"client": name}))
        assert error.value.hint == client.install
    with pytest.raises(UsageError, match="no client"):
        launch(made(LaunchOptions, {"client": "vim"}))


def test_of_several_servers_that_of_the_model_is_used(machine, known, tmp_path):
    first = known(folder=tmp_path)
    assert found.running().url == first and found.of_model("nano") is None
    second = known()
    assert found.of_model("nano").url == second and found.running().url == second  # nano is what is usual here
    (machine / "v4" / "config.toml").write_text('model = "gone"\n')
    with pytest.raises(UsageError, match="2 servers") as error:
        found.running()
    assert error.value.hint == "--model nano"


@pytest.mark.parametrize("context", [65_536, 1_048_576])
def test_contexts_are_told(tmp_path, context, monkeypatch):
    def start(name, *arguments):
        folder = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return CLIENTS[name].start(Place("http://localhost:1", "flash", context, "", folder), arguments)

    claude = start("claude").environment
    assert claude.get("CLAUDE_CODE_AUTO_COMPACT_WINDOW") == (None if context > 200_000 else str(context))
    assert claude["ANTHROPIC_MODEL"] == ("flash[1m]" if context > 1_000_000 else "flash")
    assert claude["CLAUDE_CODE_ATTRIBUTION_HEADER"] == "0"
    assert f"model_context_window={context}" in start("codex").flags
    monkeypatch.setenv("OPENCODE_CONFIG_CONTENT", '{"theme": "mine", "provider": {"other": {}}}')
    told = json.loads(start("opencode").environment["OPENCODE_CONFIG_CONTENT"])
    assert told["theme"] == "mine" and set(told["provider"]) == {"other", "v4"}
    model = told["provider"]["v4"]["models"]["flash"]
    assert model["limit"]["context"] == context and model["interleaved"] == {"field": "reasoning_content"}
    flags = start("aider").flags
    about = json.loads(Path(flags[flags.index("--model-metadata-file") + 1]).read_text())
    assert about["openai/flash"]["max_input_tokens"] == context


def test_what_the_user_says_goes_first(tmp_path):
    place = Place("http://localhost:1", "flash", 1000, "", tmp_path)
    flags = CLIENTS["claude"].start(place, ["--model=mine", "--settings", "mine.json"]).flags
    assert not flags
    flags = CLIENTS["aider"].start(place, ["--model", "mine", "--env-file", "mine"]).flags
    assert "--model" not in flags and "--env-file" not in flags
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())
