"""Tasks of `v4 rollout`: one JSON object per line, checked before anything runs."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from v4cli import files, jsonfile
from v4cli.agent.builtin import toolbox
from v4cli.chat.messages import check_messages
from v4cli.errors import RequestError, UsageError, hinted

KEYS = {"id", "prompt", "messages", "system", "files", "folder", "check", "tools"}
EXAMPLE = 'a task is a line like {"id": "a", "prompt": "…", "check": "…"}'
MAX_PATH = 4000  # characters, of which the kernel takes 4095 bytes
ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Task:
    """What the model is asked in which workspace, and the command that says how well it did."""

    id: str
    messages: list[dict]
    files: dict[str, str]  # of the workspace, text by relative path;
    folder: Path | None  # or a folder that it is a copy of
    check: str  # shell command; empty: no reward
    tools: str | None  # as --tools, where the task wants others
    digest: str  # of all this, to notice changes


def read_tasks(path: Path) -> list[Task]:
    """All tasks of a file. RequestError names the first line that is wrong."""
    with hinted(EXAMPLE):
        return _tasks(path)


def _tasks(path: Path) -> list[Task]:
    lines = files.contents(path, jsonfile.MAX_BYTES, UsageError).split(b"\n")
    tasks: dict[str, Task] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        task = _task(jsonfile.parse(line, where, RequestError), where, path.parent)
        if task.id in tasks:
            raise RequestError(f"{where}: id {task.id!r} is there twice")
        tasks[task.id] = task
    if not tasks:
        raise RequestError(f"{path}: no tasks")
    return list(tasks.values())


def _task(record, where: str, beside: Path) -> Task:
    if not isinstance(record, dict):
        raise RequestError(f"{where}: not an object")
    if unknown := sorted(record.keys() - KEYS):
        raise RequestError(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(sorted(KEYS))}")
    for key in KEYS - {"messages", "files"}:
        if not isinstance(record.get(key, ""), str):
            raise RequestError(f"{where}: {key} must be text")
    if not ID.fullmatch(record.get("id", "")):
        raise RequestError(f"{where}: id must be 1 to 100 letters, digits, '.', '_' or '-', and not begin with '.'")
    if "files" in record and "folder" in record:
        raise RequestError(f"{where}: files and folder exclude each other")
    folder = beside / record["folder"] if "folder" in record else None
    if folder is not None and not folder.is_dir():
        raise RequestError(f"{where}: folder {folder} is not there")
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
    return Task(
        record["id"], _messages(record, where), _files(record.get("files", {}), where), folder,
        record.get("check", ""), _tools(record.get("tools"), where), digest,
    )  # fmt: skip


def _messages(record: dict, where: str) -> list[dict]:
    if ("prompt" in record) == ("messages" in record):
        raise RequestError(f"{where}: give either prompt or messages")
    messages = record.get("messages", [{"role": "user", "content": record.get("prompt")}])
    check_messages(messages, f"{where}: messages")
    if not messages or messages[-1]["role"] != "user" or not messages[-1].get("content"):
        raise RequestError(f"{where}: the last message must be the user's, and not empty")
    return ([{"role": "system", "content": record["system"]}] if record.get("system") else []) + messages


def _files(files, where: str) -> dict[str, str]:
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise RequestError(f"{where}: files must be an object of texts by path")
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or len(name) > MAX_PATH or "\0" in name or PurePosixPath(name).is_absolute() or ".." in parts:
            raise RequestError(f"{where}: files: {name[:200]!r} is not a path inside of the workspace")
        if any(str(parent) in files for parent in PurePosixPath(name).parents if str(parent) != "."):
            raise RequestError(f"{where}: files: {name!r} is inside of a file")
    return files


def _tools(names: str | None, where: str) -> str | None:
    if names is not None:
        try:
            toolbox(names)
        except UsageError as error:
            raise RequestError(f"{where}: {error}", error.hint) from None
    return names
