"""`--engine` against our own server: what is computed elsewhere is what is computed here."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from v4cli import paths
from v4cli.agent import rollout, sandbox
from v4cli.agent.tasks import read_tasks
from v4cli.chat import formats
from v4cli.chat.turn import Chat
from v4cli.options import Conditions, Options, ToolUse
from v4cli.remote.engine import RemoteEngine, Served

PARAMETERS = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}
CALCULATOR = {"type": "function", "function": {"name": "calculator", "description": "", "parameters": PARAMETERS}}
SUM = [{"role": "user", "content": "What is 17*23?"}]
HELLO = [{"role": "user", "content": "Hello, who are you?"}]
FLAGS = formats.wanted(None, "ok bool, sure bool")


@pytest.fixture
def elsewhere(server) -> Chat:
    return Chat.elsewhere(RemoteEngine(Served(str(server.http.base_url)), "nano", paths.NANO))


def said(chat: Chat, messages: list[dict], options: Options, tools=None) -> tuple:
    list(chat.reply(messages, options, tools))
    logprobs = [min(value, 0.0) for value in chat.logprobs]
    return chat.prompt, chat.ids, logprobs, chat.finish, chat.message, chat.likeliest


@pytest.mark.parametrize(
    ("messages", "options", "tools"),
    [
        (HELLO, Options(False, temperature=0.0), None),
        (HELLO, Options(True, temperature=1.0, seed=5), None),
        (HELLO, Options(False, temperature=1.5, top_p=0.9, top_k=20, min_p=0.02, seed=6, max_tokens=40), None),
        (HELLO, Options(False, temperature=0.0, stop=("DeepSeek",), top_logprobs=3), None),
        (SUM, Options(False, temperature=0.0), [CALCULATOR]),
        (SUM, Options(False, temperature=3.0, seed=7, max_tokens=60, constrain=True), [CALCULATOR]),
        (HELLO, Options(False, temperature=2.0, seed=8, max_tokens=60, format=FLAGS), None),
        (SUM, Options(True, temperature=1.0, seed=9, max_tokens=80, format=FLAGS), [CALCULATOR]),
    ],
)
def test_the_same_ids_logprobs_and_messages(nano, elsewhere, messages, options, tools):
    if options.constrain or options.format:
        pytest.importorskip("llguidance")
    here = said(nano.twin(), messages, options, tools)
    assert said(elsewhere, messages, options, tools) == here
    assert here[1]


def test_what_the_server_had_is_told(elsewhere):
    said(elsewhere, HELLO, Options(False, temperature=0.0, max_tokens=4))
    twin = elsewhere.twin()
    said(twin, HELLO, Options(False, temperature=0.0, max_tokens=4))
    assert 0 < twin.stats.cached_tokens <= twin.stats.prompt_tokens
    assert twin.stats.prefill_tokens == twin.stats.prompt_tokens - twin.stats.cached_tokens


def test_hanging_up_ends_the_servers_work(server, elsewhere):
    stop = threading.Event()
    options = Options(False, temperature=50.0, seed=1, max_tokens=20_000)
    for n, _ in enumerate(elsewhere.reply(HELLO, options, cancelled=stop.is_set)):
        if n == 5:
            stop.set()
    assert elsewhere.finish == "interrupted" and elsewhere.ids
    end = time.monotonic() + 30
    while server.service.pool.n_busy and time.monotonic() < end:
        time.sleep(0.01)
    assert not server.service.pool.n_busy and server.service.metrics.cancelled == 1


TASKS = [
    {"id": f"t{i}", "prompt": f"what is {12 + i}*34?", "check": f'test "$V4_ANSWER" = "{12 + i}*34 = {(12 + i) * 34}"'}
    for i in range(4)
]


@pytest.mark.skipif(sandbox.missing() != "", reason=sandbox.missing())
def test_rollouts_have_the_same_rewards_and_ids(nano, elsewhere, tmp_path):
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    tasks, found = read_tasks(tmp_path / "tasks.jsonl"), {}
    conditions = Conditions(
        model="nano", tool_use=ToolUse("nano", max_rounds=6), timeout_s=120.0,
        answer=Options(False, temperature=0.8, max_tokens=100, seed=3),
    )  # fmt: skip
    for name, chat, jobs in (("here", nano, 1), ("there", elsewhere, 8)):
        out = tmp_path / name
        with rollout.output_folder(out, conditions):
            todo = rollout.done_before(out, tasks, 2)[1]
            rollout.run_all(chat, todo, out, conditions, jobs, lambda result: None, lambda: False)
        records = [json.loads(path.read_text()) for path in sorted(out.glob("t*.json"))]
        found[name] = [
            (
                r["task"], r["sample"], r["reward"], r["finish"], r["messages"],
                [(t["prompt_ids"], t["ids"], [min(x, 0.0) for x in t["logprobs"]]) for t in r["turns"]],
            )
            for r in records
        ]  # fmt: skip
    assert len(found["here"]) == 8 and found["there"] == found["here"]
    assert {record[2] for record in found["here"]} & {1.0}


def test_the_commands(server, tmp_path):
    url, v4 = str(server.http.base_url), [sys.executable, "-m", "v4cli"]
    environment = os.environ | {"V4_ENGINE": url}
    command = [*v4, "run", "--temp", "0", "--stats", "--ram", "1G", "Hello, who are you?"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and done.stdout.startswith("I am nano")
    assert f"--ram has no effect, the model is at {url}" in done.stderr
    environment |= {"V4_ENGINE": "http://127.0.0.1:9"}
    done = subprocess.run([*command[:-3], "hi"], env=environment, capture_output=True, text=True)
    assert done.returncode == 5 and "V4_ENGINE: http://127.0.0.1:9: nobody answers there" in done.stderr
