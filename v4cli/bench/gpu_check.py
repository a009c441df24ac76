"""`make gpu-check`: everything a card has to show, part by part, each a process with a bound of its own.

A part that fails or takes too long is recorded as such with what it had found, and the rest goes on. The result is one
file, bench/results/gpu-CARD.json.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v4cli import terminal
from v4cli.bench.gpu_accept import FAIL, accept
from v4cli.files import write_atomically

GRACE = 20  # seconds that a part has beyond what it was told to take, and that its end may take
RESULTS = Path("bench") / "results"
DONE, FAILED, OVERRAN = "done", "failed", "overran"


@dataclass(frozen=True)
class Bound:
    """A part and the seconds it may take."""

    name: str
    seconds: float


PARTS = Bound("parity", 420), Bound("kernels", 480), Bound("model", 480)  # with GRACE less than 25 minutes


def command_of(part: Bound, file: Path, number: int) -> list[str]:
    """What runs a part on a card."""
    module = [sys.executable, "-m", "v4cli.bench.gpu", part.name]
    return [*module, "--gpu", str(number), "--seconds", str(part.seconds), "--json", str(file)]


def run_part(command: Sequence[str], seconds: float, file: Path) -> dict[str, Any]:
    """What a part found, with `status`, `took_s` and, if it is not done, `why`."""
    start = time.monotonic()
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        _, said = process.communicate(timeout=seconds)
        status = DONE if process.returncode == 0 else FAILED
        why = "" if status == DONE else (said.strip().splitlines() or [f"exit code {process.returncode}"])[-1][:500]
    except subprocess.TimeoutExpired:
        status, why = OVERRAN, f"ended after {seconds:g} s"
    finally:
        _end(process)
    about = {"status": status, "took_s": round(time.monotonic() - start, 1)} | ({"why": why} if why else {})
    return about | _read(file)


def _read(file: Path) -> dict[str, Any]:
    """What a part has written; nothing if it has not."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _end(process: subprocess.Popen) -> None:
    """End it and all it started. A process that a driver does not let go is left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=GRACE)


def check(
    card: dict[str, Any],
    folder: Path,
    number: int,
    parts: Sequence[Bound] = PARTS,
    command: Callable[[Bound, Path, int], list[str]] = command_of,
) -> tuple[Path, bool]:
    """Run all parts: the file of results, and whether all are done and nothing that was asked failed. `card`: what the
    file says of it, `name` among that; `number`: its own. What a part finds is in a hidden file beside it at
    once, which stays if this process is ended, too."""
    found: dict[str, Any] = {}
    result = card | {"parts": found}
    file = folder / f"gpu-{re.sub('[^a-z0-9]+', '-', card['name'].lower()).strip('-')}.json"
    folder.mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        result["acceptance"] = accept(card["name"], found)
        write_atomically(file, json.dumps(result, indent=1).encode())

    for part in parts:
        terminal.err.write(f"{part.name}: up to {part.seconds + GRACE:.0f} s\n")
        into = folder / f".{file.stem}-{part.name}.json"
        into.unlink(missing_ok=True)
        try:
            found[part.name] = run_part(command(part, into, number), part.seconds + GRACE, into)
        except KeyboardInterrupt:
            found[part.name] = {"status": FAILED, "why": "interrupted"} | _read(into)
            keep()
            raise
        about = found[part.name]
        terminal.err.write(f"{part.name}: {about['status']} after {about['took_s']} s {about.get('why', '')}\n")
        keep()
        into.unlink(missing_ok=True)
    for line in result["acceptance"]:
        value = "" if line["value"] is None else f"{line['value']:.3g}"
        terminal.err.write(f"{line['verdict']:8}{line['name']}: {value} ({line['limit']})\n")
    whole = all(part["status"] == DONE for part in found.values())
    return file, whole and all(line["verdict"] != FAIL for line in result["acceptance"])
