"""Rollouts on nano: killed and resumed, rewarded, recorded token by token, in workspaces that leave nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from v4cli.agent import rollout, sandbox
from v4cli.agent.tasks import Task, read_tasks
from v4cli.chat.turn import Chat, Options
from v4cli.cli.rollout import Tally
from v4cli.errors import RequestError, UsageError
from v4cli.options import Conditions, ToolUse
from v4cli.paths import NANO

SETTINGS = Conditions(
    model="nano", tool_use=ToolUse("nano", max_rounds=6), timeout_s=60.0,
    answer=Options(False, temperature=0.0, max_tokens=100, seed=0),
)  # fmt: skip
V4 = [sys.executable, "-m", "v4cli", "rollout"]
in_sandbox = pytest.mark.skipif(sandbox.missing() != "", reason=sandbox.missing())


@pytest.fixture(scope="module")
def chat():
    return Chat.open(NANO)


def tasks_file(folder: Path, *records: dict) -> Path:
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def play(chat, folder: Path, *records: dict, n: int = 1, jobs: int = 1, settings: Conditions = SETTINGS) -> list[dict]:
    """Trajectories of these tasks, in order."""
    tasks, out = read_tasks(tasks_file(folder, *records)), folder / "out"
    with rollout.output_folder(out, settings):
        _, todo = rollout.done_before(out, tasks, n)
        rollout.run_all(chat, todo, out, settings, jobs, lambda record: None, lambda: False)
        there, missing = rollout.done_before(out, tasks, n)
    assert len(there) == n * len(tasks) and not missing and not (out / rollout.WORKSPACES).exists()
    files = [out / f"{task.id}.{sample}.json" for task in tasks for sample in range(1, n + 1)]
    return [json.loads(file.read_text()) for file in files]


def answering(conditions: Conditions = SETTINGS, **changes) -> Conditions:
    """The conditions with another way to answer."""
    return replace(conditions, answer=replace(conditions.answer, **changes))


def products(n: int) -> list[dict]:
    """Multiplications; every fifth is checked against a wrong result, every fifth half rewarded."""
    rng, records = random.Random(4), []
    for i in range(n):
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        wanted = a * b + (i % 5 == 3)
        says = "echo 0.5" if i % 5 == 1 else "true"
        check = f'test "$V4_ANSWER" = "{a}*{b} = {wanted}" && {says}'
        records.append({"id": f"product-{i}", "prompt": f"what is {a}*{b}?", "check": check})
    return records


def command(tasks: Path, out: Path, *more) -> list[str]:
    return [*V4, str(tasks), "--out", str(out), "--tools", "nano", "--temp", "0", "--n", "2", *more]


def inodes(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in out.glob("product-*.json")}


@in_sandbox
def test_100_rollouts_killed_midway_are_each_done_once_and_rewarded_right(tmp_path):
    records, out = products(50), tmp_path / "out"
    tasks = tasks_file(tmp_path, *records)
    begun = subprocess.Popen(command(tasks, out, "--jobs", "2"), stderr=subprocess.DEVNULL)
    while len(inodes(out)) < 30:
        assert begun.poll() is None
        time.sleep(0.01)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    before = inodes(out)
    assert 30 <= len(before) < 100
    done = subprocess.run(command(tasks, out, "--jobs", "3", "--json"), capture_output=True, text=True, check=True)
    after = inodes(out)
    assert len(after) == 100 and before.items() <= after.items()
    summary = json.loads(done.stdout)
    assert (summary["rollouts"], summary["passed"], summary["mean_reward"]) == (100, 60, 0.7)
    assert f"{len(before)} of 100 rollouts are there already" in done.stderr
    rewards = {}
    for name in after:
        record = json.loads((out / name).read_text())
        rewards[record["task"], record["sample"]] = record["reward"]
        assert (out / name).stat().st_mode & 0o777 == 0o600
    assert rewards == {
        (f"product-{i}", sample): (1.0, 0.5, 1.0, 0.0, 1.0)[i % 5] for i in range(50) for sample in (1, 2)
    }
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith("product-")) == [
        ".lock",
        "options.json",
    ]


@in_sandbox
def test_ctrl_c_ends_it_cleanly_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "out"
    tasks = tasks_file(tmp_path, *products(40))
    begun = subprocess.Popen(command(tasks, out, "--jobs", "2"), stderr=subprocess.PIPE, text=True)
    while len(inodes(out)) < 5:
        assert begun.poll() is None
        time.sleep(0.01)
    begun.send_signal(signal.SIGINT)
    _, says = begun.communicate(timeout=30)
    assert begun.returncode == 130 and "run the same command again to go on" in says and "Traceback" not in says
    assert not list(out.glob("*.tmp")) and not (out / rollout.WORKSPACES).exists()
    assert all(json.loads((out / name).read_text())["reward"] is not None for name in inodes(out))


def test_tokens_are_recorded_as_sampled(chat, tmp_path):
    (record,) = play(chat, tmp_path, {"id": "a", "prompt": "what is 12*34?", "tools": "calculator"})
    first, second = record["turns"]
    assert (
        second["prompt_ids"][: len(first["prompt_ids"]) + len(first["ids"]) - 1]
        == first["prompt_ids"] + first["ids"][:-1]
    )
    assert second["ids"][-1] == chat.tokenizer.eos_id
    assert chat.tokenizer.decode(second["ids"][:-1]) == "12*34 = 408" == record["messages"][-1]["content"]
    assert record["finish"] == "stop" and record["reward"] is None and record["check"] is None
    for turn in record["turns"]:
        logits = chat.engine.session().feed(turn["prompt_ids"] + turn["ids"], all_logits=True).astype(float)
        logits = logits[len(turn["prompt_ids"]) - 1 : -1]
        expected = logits[np.arange(len(turn["ids"])), turn["ids"]] - np.log(np.exp(logits).sum(axis=1))
        assert np.allclose(turn["logprobs"], expected, atol=1e-5)


def test_rollouts_are_the_same_whenever_and_beside_whichever_others_they_run(chat, tmp_path):
    settings = answering(temperature=3.0, thinking=True)
    records = [{"id": f"t{i}", "prompt": f"what is {i}*23?", "tools": "calculator"} for i in range(2, 8)]
    (tmp_path / "alone").mkdir()
    (tmp_path / "beside").mkdir()
    alone = play(chat, tmp_path / "alone", *records, n=2, settings=settings)
    beside = play(chat, tmp_path / "beside", *reversed(records), n=2, jobs=4, settings=settings)
    said = [
        [
            (r["task"], r["sample"], r["seed"], r["messages"], [t["ids"] for t in r["turns"]])
            for r in sorted(rs, key=lambda r: (r["task"], r["sample"]))
        ]
        for rs in (alone, beside)
    ]
    assert said[0] == said[1]
    assert len({str(r["messages"]) for r in alone}) > 6  # samples differ


@in_sandbox
def test_workspaces_are_fresh_and_leave_nothing(chat, tmp_path):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "a.txt").write_text("from the folder")
    ls = {"prompt": "list ."}
    checks = {
        "files": "test $(cat d/b.txt) = text && mkdir -m 0 locked && touch left",
        "folder": "grep -q folder a.txt && ! test -e left && echo changed > a.txt",
        "escape": f"echo x > {tmp_path}/escaped; exit 1",
        "noise": "echo 3 apples; echo 0.25",
        "words": "echo no number",
        "failed": "echo 0.9; exit 1",
        "nan": "echo nan",
    }
    more = {"files": {"files": {"d/b.txt": "text"}}, "folder": {"folder": "given"}}
    records = [{"id": name, "check": check} | ls | more.get(name, {}) for name, check in checks.items()]
    rewards = {record["task"]: record["reward"] for record in play(chat, tmp_path, *records)}
    assert rewards == {"files": 1, "folder": 1, "escape": 0, "noise": 0.25, "words": 1, "failed": 0, "nan": 1}
    assert (tmp_path / "given" / "a.txt").read_text() == "from the folder"
    assert not (tmp_path / "escaped").exists()


@in_sandbox
def test_limits_end_a_rollout_which_is_checked_all_the_same(chat, tmp_path):
    slow = {"id": "slow", "prompt": "execute sh slow.sh", "files": {"slow.sh": "sleep 60\n"}, "check": "sleep 60"}
    (record,) = play(chat, tmp_path, slow, settings=replace(SETTINGS, timeout_s=1.0))
    assert record["finish"] == "timeout" and record["reward"] == 0 and "longer than 1 s" in record["check"]["stopped"]
    (tmp_path / "b").mkdir()
    once = {"id": "once", "prompt": "what is 2*3?", "check": 'test -z "$V4_ANSWER"'}
    (record,) = play(chat, tmp_path / "b", once, settings=replace(SETTINGS, tool_use=ToolUse("nano", max_rounds=1)))
    assert record["finish"] == "rounds" and record["reward"] == 1


def test_what_one_conversation_notes_its_twins_note_too(chat, monkeypatch):
    noted = []
    monkeypatch.setattr(chat, "note", noted.append)
    chat.twin().note("not constrained")
    assert noted == ["not constrained"]


def test_a_full_context_ends_the_rollout_only(tmp_path):
    chat = Chat.open(NANO)
    chat.engine.config = replace(chat.engine.config, max_position_embeddings=1000)
    long = {"id": "long", "prompt": "word " * 1000}
    short = {"id": "short", "prompt": "hello"}
    records = play(chat, tmp_path, long, short)
    assert [record["finish"] for record in records] == ["error", "stop"]
    assert "context" in records[0]["error"] and records[0]["turns"] == []


def test_a_folder_is_of_one_run_and_one_set_of_settings(chat, tmp_path):
    record = {"id": "a", "prompt": "hello"}
    play(chat, tmp_path, record)
    with pytest.raises(UsageError, match=r"temperature 0\.0, not 0\.5"):
        play(chat, tmp_path, record, settings=answering(temperature=0.5))
    with pytest.raises(UsageError, match="another then"):
        play(chat, tmp_path, record | {"prompt": "hi"})
    with rollout.output_folder(tmp_path / "out", SETTINGS), pytest.raises(UsageError, match="at work"):
        play(chat, tmp_path, record)


def test_a_folder_made_before_there_were_more_options_is_gone_on_with(chat, tmp_path):
    play(chat, tmp_path, {"id": "a", "prompt": "hello"})
    noted = tmp_path / "out" / rollout.OPTIONS
    names = "model tools thinking temperature max_tokens seed max_rounds timeout_s".split()
    before = json.loads(noted.read_text())
    assert set(names) < before.keys() and before["thinking"] is False and before["timeout_s"] == 60.0
    noted.write_text(json.dumps({name: before[name] for name in names}))
    play(chat, tmp_path, {"id": "a", "prompt": "hello"})
    with pytest.raises(UsageError, match="top_k 0, not 3"):
        play(chat, tmp_path, {"id": "a", "prompt": "hello"}, settings=answering(top_k=3))
    with pytest.raises(UsageError, match="stop"):
        play(chat, tmp_path, {"id": "a", "prompt": "hello"}, settings=answering(stop=("x",)))


GOOD = {"id": "a", "prompt": "x"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "not an object"),
        ('{"id": "a", "id": "b"}', "twice"),
        (json.dumps(GOOD | {"promt": "x"}), "unknown key 'promt'"),
        (json.dumps(GOOD | {"id": "../x"}), "id must be"),
        (json.dumps(GOOD | {"id": 3}), "id must be text"),
        (json.dumps({"id": "a"}), "either prompt or messages"),
        (json.dumps(GOOD | {"prompt": ""}), "not empty"),
        (json.dumps({"id": "a", "messages": [{"role": "robot"}]}), "messages[0].role"),
        (json.dumps({"id": "a", "messages": [{"role": "assistant", "content": "x"}]}), "must be the user's"),
        (json.dumps(GOOD | {"files": {"../x": ""}}), "not a path inside"),
        (json.dumps(GOOD | {"files": {"/etc/x": ""}}), "not a path inside"),
        (json.dumps(GOOD | {"files": {"a/" * 2000 + "a": ""}}), "not a path inside"),
        (json.dumps(GOOD | {"files": {"a": "", "a/b": ""}}), "inside of a file"),
        (json.dumps(GOOD | {"files": {"a": 1}}), "texts by path"),
        (json.dumps(GOOD | {"folder": "nowhere"}), "is not there"),
        (json.dumps(GOOD | {"folder": ".", "files": {}}), "exclude each other"),
        (json.dumps(GOOD | {"tools": "hammer"}), "no tool 'hammer'"),
        (json.dumps(GOOD) + "\n" + json.dumps(GOOD), "line 3: id 'a' is there twice"),
    ],
)
def test_a_bad_task_is_named_by_its_line(tmp_path, line, says):
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n" + line + "\n")
    with pytest.raises(RequestError) as error:
        read_tasks(path)
    assert says in str(error.value) and "line " in str(error.value) and "\n" not in str(error.value)


def test_the_ids_of_many_tasks_are_compared_once(tmp_path, monkeypatch):
    compared = []

    class Id(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            compared.append(other)
            return str.__eq__(self, other)

    monkeypatch.setattr("v4cli.agent.tasks.Task", lambda id, *rest: Task(Id(id), *rest))
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(GOOD | {"id": f"task{i}"}) + "\n" for i in range(200)))
    assert len(read_tasks(path)) == 200 and len(compared) < 200


def test_a_folder_that_cannot_be_copied_is_named(chat, tmp_path):
    (tmp_path / "w").mkdir()
    os.mkfifo(tmp_path / "w" / "pipe")
    with pytest.raises(UsageError, match=r"w/pipe: cannot be copied \(.*named pipe"):
        play(chat, tmp_path, {"id": "a", "prompt": "hi", "folder": "w"})


def test_mistakes_are_exit_2_and_one_line(tmp_path):
    for tasks, text in ((tmp_path / "none", None), (tmp_path / "empty", ""), (tmp_path / "bad", "{")):
        if text is not None:
            tasks.write_text(text)
        done = subprocess.run(command(tasks, tmp_path / "out"), capture_output=True, text=True, env=os.environ)
        assert done.returncode == 2 and str(tasks) in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "file").write_text("")
    tasks = tmp_path / "tasks"
    tasks.write_text('{"id": "one", "prompt": "hi", "tools": "none"}\n')  # needs no sandbox
    done = subprocess.run(command(tasks, tmp_path / "file"), capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2 and "file cannot be a folder" in done.stderr and "--out" in done.stderr


def test_what_is_not_whole_is_kept_and_counted(chat, tmp_path, capsys):
    """The model runs out of tokens in a call, and is told so; then in an answer; then before one."""
    short = answering(replace(SETTINGS, tool_use=ToolUse("calculator", max_rounds=6)), max_tokens=20)
    (record,) = play(chat, tmp_path, {"id": "a", "prompt": "what is 12*34?"}, settings=short)
    said = [message for message in record["messages"] if message["role"] == "assistant"]
    assert said[0]["tool_calls"][0]["fault"] == "it was cut off before it was complete"
    assert record["turns"][0]["finish"] == "length"
    records = [record]
    for name, settings in (("b", answering(short, max_tokens=5)), ("c", answering(short, max_tokens=5, thinking=True))):
        (tmp_path / name).mkdir()
        records += play(chat, tmp_path / name, {"id": name, "prompt": "hello, who are you?"}, settings=settings)
    assert [record["finish"] for record in records[1:]] == ["length", "length"]
    tally = Tally(3, [rollout.Result.of(record) for record in records])
    tally.end(tmp_path, as_json=True)
    said = capsys.readouterr()
    n_cut = [record["finish"] for record in records].count("length")
    assert n_cut >= 2 and f"{n_cut} cut off at the limit of tokens, 1 without an answer" in said.err
    assert json.loads(said.out)["without_answer"] == 1
