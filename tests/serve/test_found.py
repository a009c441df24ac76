"""A server that runs has the model already: `v4 run` and `v4 chat` ask it, unless they are told otherwise."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack

import pytest

from v4cli import paths
from v4cli.cli.found import nearest
from v4cli.options import Loading
from v4cli.serve.running import registered


@pytest.fixture
def known(service, served, tmp_path, monkeypatch):
    """`known(key)`: a server of nano, and its service, that commands find."""
    monkeypatch.setenv("V4_HOME", str(tmp_path))
    with ExitStack() as stack:

        def start(key: str | None = None):
            its = service(2)
            url = str(served(its, key=key).base_url).rstrip("/")
            stack.enter_context(registered(url, "nano", 2, paths.NANO, bool(key)))
            return url, its

        yield start


def chosen(model: str = "nano", **loading) -> tuple[Loading, list[str]]:
    notes: list[str] = []
    return nearest(model, Loading(**loading), notes.append), notes


def test_the_server_of_the_same_model_is_used(known, tmp_path):
    assert chosen() == (Loading(), [])
    url, _ = known()
    loading, notes = chosen()
    assert loading == Loading(engine=url) and url in notes[0] and "--local" in notes[0]
    assert chosen(str(paths.NANO))[0].engine == url
    other = shutil.copytree(paths.NANO, tmp_path / "nano")  # of the same name
    assert chosen(str(other)) == (Loading(), [])


@pytest.mark.parametrize("told", [{"local": True}, {"ram": "1G"}, {"backend": "cpu"}, {"engine": "http://host:1"}])
def test_whoever_says_how_to_load_it_loads_it(known, told):
    known()
    assert chosen(**told) == (Loading(**told), [])


def test_what_is_settled_for_loading_is_not_said_about_the_server(known, tmp_path):
    url, _ = known()
    (tmp_path / "config.toml").write_text('ram = "1G"\n')
    assert chosen(ram="1G")[0] == Loading(engine=url)


def test_a_server_that_does_not_answer_is_done_without(known, monkeypatch):
    known(key="secret")
    loading, notes = chosen()
    assert loading == Loading() and "wants a key" in notes[0] and "loaded here" in notes[0]
    monkeypatch.setenv("V4_API_KEY", "secret")
    assert chosen()[0].engine


def test_a_server_that_is_gone_is_done_without(tmp_path, monkeypatch):
    monkeypatch.setenv("V4_HOME", str(tmp_path))
    with registered("http://127.0.0.1:9", "nano", 1, paths.NANO, False):
        loading, notes = chosen()
    assert loading == Loading() and "127.0.0.1:9" in notes[0] and "loaded here" in notes[0]


@pytest.mark.parametrize("command", ["run --temp 0", "chat --plain --tools none --no-think --temp 0"])
def test_commands_say_who_answers(known, command):
    url, its = known()
    for flags, answers in ((), 1), (("--local",), 1):
        line = [sys.executable, "-m", "v4cli", *command.split(), *flags]
        done = subprocess.run(line, input="Hello, who are you?\n", env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0 and "I am nano" in done.stdout, done.stderr
        assert its.metrics.done["answers"] == answers and (url in done.stderr) == (not flags)


def test_rollouts_are_sampled_by_the_server(known, tmp_path):
    url, its = known()
    (tmp_path / "tasks.jsonl").write_text('{"id": "a", "prompt": "Hello, who are you?"}\n')
    said = []
    for flags, answers in ((), 1), (("--local",), 1):
        out = tmp_path / f"out{len(flags)}"
        line = [sys.executable, "-m", "v4cli", "rollout", str(tmp_path / "tasks.jsonl"), "--out", str(out), *flags]
        line += ["--max-tokens", "8", "--tools", "none", "--temp", "0"]
        done = subprocess.run(line, env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0 and (url in done.stderr) == (not flags), done.stderr
        assert its.metrics.done["answers"] == answers
        said.append(json.loads(next(out.glob("*.json")).read_text())["messages"])
    assert said[0] == said[1]
