"""`v4 serve`, `v4 ps`, `v4 stop`, as processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import httpx2
import pytest
from test_answers import chat, post

V4 = [sys.executable, "-m", "v4cli"]
PATIENCE_S = 120.0


def v4(home, *arguments):
    return subprocess.run([*V4, *arguments], env=environment(home), capture_output=True, text=True)


def environment(home) -> dict[str, str]:
    return os.environ | {"V4_HOME": str(home)}


@pytest.fixture
def start(tmp_path):
    """`start(flags…)`: a process that serves nano, and a client of it."""
    begun = []

    def started(*flags):
        command = [*V4, "serve", "nano", "--port", "0", *flags]
        process = subprocess.Popen(command, env=environment(tmp_path), stderr=subprocess.PIPE, text=True)
        begun.append(process)
        line = process.stderr.readline()
        match = re.search(r"http://\S+:\d+", line)
        assert match, line + process.stderr.read()
        return process, httpx2.Client(base_url=match[0], timeout=PATIENCE_S, trust_env=False)

    yield started
    for process in begun:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_server_is_listed_stopped_and_goes_on_from_what_it_stored(start, tmp_path):
    process, http = start("--sessions", "2")
    prompt = "a b c " * 100
    first = post(http, chat(prompt), max_tokens=8).json()
    (listed,) = json.loads(v4(tmp_path, "ps", "--json").stdout)
    assert listed["pid"] == process.pid and listed["model"] == "nano" and str(http.base_url).startswith(listed["url"])
    assert v4(tmp_path, "stop", "1").returncode == 2
    assert v4(tmp_path, "stop").returncode == 0
    assert process.wait(PATIENCE_S) == 0
    assert json.loads(v4(tmp_path, "ps", "--json").stdout) == []
    path, body = chat(prompt)
    body["messages"] += [first["choices"][0]["message"], {"role": "user", "content": "Go on."}]
    usage = post(start()[1], (path, body), max_tokens=2).json()["usage"]
    assert usage["prompt_cache_hit_tokens"] >= first["usage"]["prompt_tokens"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_end(start, number):
    process, http = start()
    path, body = chat("Hello, who are you?", stream=True, n=4)
    with http.stream("POST", path, json=body) as reply:
        text = reply.iter_text()
        said = next(text)
        process.send_signal(number)
        said += "".join(text)
    assert said.count('"finish_reason": "stop"') == 4 and said.endswith("data: [DONE]\n\n")
    assert process.wait(PATIENCE_S) == 0


def test_a_second_signal_ends_answers(start):
    process, http = start()
    path, body = chat("Hello", stream=True, temperature=50, seed=1, max_tokens=1_000_000)
    with http.stream("POST", path, json=body) as reply:
        text = reply.iter_text()
        next(text)
        process.send_signal(signal.SIGTERM)
        wait_until_refused(http)
        process.send_signal(signal.SIGTERM)
        said = "".join(text)
    assert "cancelled" in said and process.wait(PATIENCE_S) == 0


def wait_until_refused(http) -> None:
    """Until the first signal has been heard."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            httpx2.get(f"{http.base_url}/health", trust_env=False)
        except httpx2.HTTPError:
            return
        time.sleep(0.05)
    raise AssertionError("it still takes connections")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--host", "0.0.0.0"), "--api-key"),
        (("--port", "65536"), "65535"),
        (("--sessions", "0"), "sessions"),
        (("--idle", "30"), "30m"),
        (("--host", "192.0.2.1", "--api-key", "k"), "192.0.2.1"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, flags, says):
    done = v4(tmp_path, "serve", "nano", *flags)
    assert done.returncode == 2 and says in done.stderr and not done.stdout


def test_a_port_that_is_taken_is_named(start, tmp_path):
    port = str(start()[1].base_url.port)
    done = v4(tmp_path, "serve", "nano", "--port", port)
    assert done.returncode == 2 and port in done.stderr


def test_the_unit_starts_this_server(tmp_path):
    flags = "--port", "8123", "--sessions", "3", "--idle", "30m", "--backend", "cpu", "--kv-host", "--kv-dir", "kv"
    done = v4(tmp_path, "serve", "nano", *flags, "--api-key", "secret", "--print-unit")
    assert done.returncode == 0
    (command,) = re.findall(r"ExecStart=(.*)", done.stdout)
    assert f"V4_HOME={tmp_path}" in command and "serve nano" in command
    assert "--port 8123" in command and "--sessions 3" in command and "--idle 30m" in command
    assert "--backend cpu" in command and "--kv-host" in command and f"--kv-dir {os.getcwd()}/kv" in command
    assert "secret" not in command
