"""Rollouts: the model works on tasks, each time in a fresh workspace in the sandbox, and a command rewards the result.

A trajectory is a JSON file in the output folder, `TASK.SAMPLE.json`, which is there whole or not at all: what is there
is not done again.
"""

import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from v4cli import jsonfile
from v4cli.agent import sandbox
from v4cli.agent.approval import Approvals
from v4cli.agent.builtin import toolbox
from v4cli.agent.loop import Agent, Done, Said, is_empty, shortened
from v4cli.agent.process import Limits
from v4cli.agent.tasks import Task
from v4cli.agent.tools import Context, Kind
from v4cli.chat.messages import last_said, without_ids
from v4cli.chat.turn import Chat
from v4cli.errors import UsageError, V4Error
from v4cli.files import write_atomically
from v4cli.options import Conditions, Mode, Options

MAX_ANSWER = 30_000  # characters of it that a check is given
MAX_RECORD = 1 << 28  # bytes of a trajectory
OPTIONS, WORKSPACES = "options.json", "workspaces"  # in the output folder


@dataclass(frozen=True)
class Result:
    """What is counted of a trajectory."""

    reward: float | None
    finish: str
    n_tokens: int  # sampled
    empty: bool  # the model's last message is neither an answer nor a call

    @classmethod
    def of(cls, record: dict) -> "Result":
        n_tokens = sum(len(turn["ids"]) for turn in record["turns"])
        return cls(record["reward"], record["finish"], n_tokens, is_empty(last_said(record["messages"])))


def seed_of(seed: int, task: str, sample: int) -> int:
    """The seed of one rollout: the same whenever it runs."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{task}:{sample}".encode()).digest()[:7])


@contextmanager
def output_folder(out: Path, conditions: Conditions):
    """Within: `out` is there, ours alone, under these conditions, without remains of a killed run. UsageError."""
    try:
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{out} cannot be a folder: there is a file of that name", "choose another --out") from None
    try:
        with FileLock(out / ".lock", timeout=0, mode=0o600):
            _same_conditions(out / OPTIONS, _record(conditions))
            for left in out.glob("*.tmp"):
                left.unlink()
            _remove(out / WORKSPACES)
            yield
            _remove(out / WORKSPACES)
    except Timeout:
        raise UsageError(f"{out}: another v4 rollout is at work there", "choose another --out") from None


def _same_conditions(path: Path, conditions: dict) -> None:
    if not path.exists():
        write_atomically(path, json.dumps(conditions, indent=2).encode() + b"\n", 0o600)
        return
    before, usual = jsonfile.read(path, UsageError), _options(Options())
    for name, value in conditions.items():
        was = before.get(name, usual.get(name)) if isinstance(before, dict) else "unknown"
        if was != value:
            raise UsageError(f"{path.parent} holds rollouts with {name} {was}, not {value}", "choose another --out")


def _record(conditions: Conditions) -> dict:
    """Conditions as they are noted, in the folder and with each trajectory."""
    use = conditions.tool_use
    told = {"model": conditions.model, "tools": use.tools, "max_rounds": use.max_rounds}
    return told | {"timeout_s": conditions.timeout_s} | _options(conditions.answer)


def _options(options: Options) -> dict:
    """As they are in JSON."""
    return asdict(options) | {"stop": list(options.stop)}


def needs_sandbox(tasks: Iterable[Task], tools: str) -> bool:
    """Whether programs run in any of the rollouts."""
    boxes = [toolbox(task.tools or tools) for task in tasks]
    runs = any(tool.kind is Kind.RUN for box in boxes for tool in box.tools.values())
    return runs or any(task.check for task in tasks)


def done_before(out: Path, tasks: list[Task], n: int) -> tuple[list[Result], list[tuple[Task, int]]]:
    """What is in `out` already, and the (task, sample) that are not. UsageError if a task has changed."""
    there, missing = [], []
    for task in tasks:
        for sample in range(1, n + 1):
            path = out / f"{task.id}.{sample}.json"
            if not path.exists():
                missing.append((task, sample))
                continue
            record = jsonfile.read(path, UsageError, MAX_RECORD)
            if not isinstance(record, dict) or record.get("digest") != task.digest:
                raise UsageError(f"{path}: task {task.id} was another then", f"rm {path}, or choose another --out")
            there.append(Result.of(record))
    return there, missing


def run_all(
    chat: Chat,
    todo: list[tuple[Task, int]],
    out: Path,
    conditions: Conditions,
    jobs: int,
    done: Callable[[Result], None],
    cancelled: Callable[[], bool],
) -> None:
    """Make and write these trajectories, `jobs` at a time on one engine; `done` is called with each, by one thread at a
    time. Those that are cancelled leave nothing."""
    waiting, lock, failed = iter(todo), threading.Lock(), threading.Event()

    def stopped() -> bool:
        return failed.is_set() or cancelled()

    def work(chat: Chat) -> None:
        try:
            while not stopped():
                with lock:
                    task, sample = next(waiting, (None, 0))
                if task is None:
                    return
                record = rollout(chat, task, sample, out / WORKSPACES / f"{task.id}.{sample}", conditions, stopped)
                if record is not None:
                    text = json.dumps(record, ensure_ascii=False) + "\n"
                    write_atomically(out / f"{task.id}.{sample}.json", text.encode(), 0o600)
                    with lock:
                        done(Result.of(record))
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(jobs) as pool:
        for worker in [pool.submit(work, chat.twin()) for _ in range(min(jobs, len(todo)))]:
            worker.result()


def rollout(chat: Chat, task: Task, sample: int, workspace: Path, conditions: Conditions, cancelled) -> dict | None:
    """One trajectory; None if cancelled on the way. The workspace is made and removed."""
    start, began = time.monotonic(), time.time()
    _prepare(workspace, task)
    try:
        seed = seed_of(conditions.answer.seed or 0, task.id, sample)
        record = {"task": task.id, "sample": sample, "seed": seed, "digest": task.digest, "began": began}
        record |= {"options": _record(conditions), **_work(chat, task, workspace, conditions, seed, cancelled)}
        worked_s = time.monotonic() - start
        record |= _check(task, record["messages"], workspace, conditions.timeout_s, cancelled)
    finally:
        _remove(workspace)
    if cancelled():
        return None
    return record | {"seconds": {"work": worked_s, "check": time.monotonic() - start - worked_s}}


def _work(chat: Chat, task: Task, workspace: Path, conditions: Conditions, seed: int, cancelled) -> dict:
    """The model's part: messages, turns token by token, and why it ended."""
    end = time.monotonic() + conditions.timeout_s
    decide = Approvals(Mode.ALL, workspace).decide
    tools = toolbox(task.tools or conditions.tool_use.tools, Limits(seconds=conditions.timeout_s))
    max_rounds = conditions.tool_use.max_rounds
    agent = Agent(chat, tools, Context(workspace, disposable=True), decide, max_rounds=max_rounds)
    options = replace(conditions.answer, seed=seed)
    messages, turns, finish, error = list(task.messages), [], "", ""
    try:
        for event in agent.run(messages, options, None, lambda: cancelled() or time.monotonic() > end):
            if isinstance(event, Said):
                messages.append(without_ids(event.message))
                if event.message["role"] == "assistant":
                    turns.append(_turn(chat))
            elif isinstance(event, Done):
                finish = "timeout" if event.reason == "interrupted" else event.reason
    except V4Error as problem:  # the context is full
        finish, error = "error", str(problem)
    return {"finish": finish, "error": error, "messages": messages, "turns": turns}


def _turn(chat: Chat) -> dict:
    """What the model saw and sampled. Log-probabilities are those of temperature 1, without filters."""
    return {
        "prompt_ids": chat.prompt, "ids": chat.ids, "logprobs": chat.logprobs, "finish": chat.finish,
        "cached_tokens": chat.stats.cached_tokens, "prefill_s": chat.stats.prefill_s, "decode_s": chat.stats.decode_s,
    }  # fmt: skip


def _check(task: Task, messages: list[dict], workspace: Path, timeout_s: float, cancelled) -> dict:
    """The reward: 1 if the command succeeds, or the number in the last line that it prints; 0 if it fails."""
    if not task.check:
        return {"reward": None, "check": None}
    answer = shortened(last_said(messages).get("content") or "", MAX_ANSWER).replace("\0", "")
    command = ["env", f"V4_ANSWER={answer}", "sh", "-c", task.check]
    ended = sandbox.run(command, workspace, Limits(seconds=timeout_s), cancelled=cancelled, access=sandbox.Access.OWN)
    reward = _number(ended.text) if ended.status == 0 and not ended.stopped else 0.0
    check = {"text": shortened(ended.text), "status": ended.status, "stopped": ended.stopped}
    return {"reward": reward, "check": check}


def _number(printed: str) -> float:
    lines = printed.split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    try:
        return float(last) if math.isfinite(float(last)) else 1.0
    except ValueError:
        return 1.0


def _prepare(workspace: Path, task: Task) -> None:
    _remove(workspace)
    workspace.parent.mkdir(exist_ok=True, mode=0o700)
    if task.folder is not None:
        try:
            shutil.copytree(task.folder, workspace, symlinks=True)
        except shutil.Error as error:
            source, _, why = error.args[0][0]
            raise UsageError(f"{source}: cannot be copied ({why})", f"another folder for task {task.id}") from None
    else:
        workspace.mkdir()
    for name, text in task.files.items():
        path = workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")


def _remove(folder: Path) -> None:
    """Remove a folder whatever permissions are set inside of it."""
    for root, folders, _ in os.walk(folder):
        for name in folders:
            path = os.path.join(root, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    if folder.exists():
        shutil.rmtree(folder)
