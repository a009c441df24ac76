"""The bits of a card beside the CPU's: tests of every kernel, and nano token by token."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from v4cli.bench import gpu_reports
from v4cli.bench.gpu_part import Part
from v4cli.paths import NANO

TOKENS = 64
PROMPT = range(1, 41)  # ids; any do
TESTS = Path("tests") / "gpu"
EVERY_S = 5.0  # what tests have shown so far is written so often


def kernels(part: Part, seconds: float, scratch: Path, marks: str = "device") -> None:
    """Run the tests that are marked: how many, how many passed, names of the others, and whether it was all of them. It
    takes at most that long; what they have shown is kept as they go."""
    if not TESTS.is_dir():
        raise FileNotFoundError(f"{TESTS} is not here: run it in the folder of the source")
    told, said, end = scratch / "tests.jsonl", scratch / "said.txt", time.monotonic() + seconds
    command = [sys.executable, "-m", "pytest", str(TESTS), "-m", marks, "-q", "-p", gpu_reports.__name__]
    with said.open("w") as out:
        environment = os.environ | {gpu_reports.FILE: str(told)}
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            while True:
                over = process.poll() is not None or time.monotonic() >= end
                part.found["tests"] = counted(told) | {"whole": process.poll() is not None}
                part.save()
                if over:
                    break
                with suppress(subprocess.TimeoutExpired):
                    process.wait(min(EVERY_S, max(0.0, end - time.monotonic())))
        finally:
            process.kill()
            process.wait()
    if not part.found["tests"]["whole"]:
        raise TimeoutError(f"not over after {seconds:.0f} s")
    if not part.found["tests"]["run"]:
        raise RuntimeError((said.read_text().strip().splitlines() or ["pytest said nothing"])[-1])


def counted(file: Path) -> dict[str, Any]:
    """What a file of gpu_reports says. Tests that were skipped were not run."""
    outcomes: dict[str, str] = {}
    lines = file.read_text().splitlines() if file.exists() else []
    for line in map(json.loads, lines):
        if line["outcome"] != "skipped" and outcomes.get(line["name"]) != "failed":
            outcomes[line["name"]] = line["outcome"]
    wrong = [name for name, outcome in outcomes.items() if outcome == "failed"]
    return {"run": len(outcomes), "passed": len(outcomes) - len(wrong), "failed": wrong}


def nano(part: Part, card: str, tokens: int = TOKENS) -> None:
    """Greedy tokens of nano by backend `card` and by the CPU: how many have the same logits, all bits of them."""
    from v4cli.engine.engine import Engine

    sessions = [Engine.open(NANO, name).session() for name in (card, "cpu")]
    feed, equal = list(PROMPT), 0
    for _ in range(tokens):
        got, want = (np.asarray(session.feed(feed)) for session in sessions)
        equal += np.array_equal(got.view(np.uint32), want.view(np.uint32))
        feed = [int(want.reshape(-1, want.shape[-1])[-1].argmax())]
    part.found["nano"] = {"tokens": tokens, "equal": equal}
    part.save()
