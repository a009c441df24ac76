"""The bits of a card beside the CPU's: tests of every kernel, and nano token by token."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np

from v4cli.bench.gpu_part import Part
from v4cli.paths import NANO

TOKENS = 64
PROMPT = range(1, 41)  # ids; any do
TESTS = Path("tests") / "gpu"


def kernels(part: Part, seconds: float, scratch: Path, marks: str = "device") -> None:
    """Run the tests that are marked: how many, how many passed, and names of the others. It takes at most that long."""
    if not TESTS.is_dir():
        raise FileNotFoundError(f"{TESTS} is not here: run it in the folder of the source")
    file = scratch / "tests.xml"
    command = [sys.executable, "-m", "pytest", str(TESTS), "-m", marks, "-q", f"--junitxml={file}"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    if not file.exists():
        raise RuntimeError((ran.stderr or ran.stdout).strip().splitlines()[-1])
    part.found["tests"] = counted(file)
    part.save()


def counted(file: Path) -> dict[str, Any]:
    """What a file of JUnit says. Tests that were skipped were not run."""
    run, wrong = 0, []
    for case in ElementTree.parse(file).iter("testcase"):
        outcomes = {outcome.tag for outcome in case}
        if "skipped" in outcomes:
            continue
        run += 1
        if outcomes & {"failure", "error"}:
            wrong.append(case.get("name"))
    return {"run": run, "passed": run - len(wrong), "failed": wrong}


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
