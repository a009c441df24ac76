"""The README's table of measured cards, from the files of `make gpu-check`:
`python -m v4cli.bench.gpu_table README.md bench/results` (make gpu-table)."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from v4cli.bench.gpu_accept import FAIL, NOT_RUN, PASS
from v4cli.files import write_atomically

MARKS = "<!-- gpu: make gpu-table writes this -->\n", "<!-- end of gpu -->"
NONE = "No card has been measured yet: whatever is said here of the speed of GPUs is predicted."
PERCENT = "%"
SHOWN = (  # names of gpu_accept.RULES, and how a value is written
    ("parity with the CPU", "parity", PERCENT),
    ("int8 GEMV, of read bandwidth", "int8 GEMV", PERCENT),
    ("FP4 experts, of read bandwidth", "FP4 experts", PERCENT),
    ("attention to 640 keys, us", "attention, 640 keys", "{:.1f} us"),
    ("choice among 262,144 keys, us", "choice of 262,144", "{:.1f} us"),
    ("hand-off to the CPU and back, us", "hand-off", "{:.1f} us"),
    ("speed kept at 1M tokens", "speed kept at 1M", PERCENT),
)
MARK = {PASS: "", FAIL: " (missed)", NOT_RUN: ""}


def results(folder: Path) -> list[dict[str, Any]]:
    """What was measured, by name of the card."""
    files = sorted(folder.glob("gpu-*.json")) if folder.is_dir() else []
    return [json.loads(file.read_text()) for file in files]


def text(measured: list[dict[str, Any]]) -> str:
    """Markdown: that nothing was measured, or a table of cards, what they read, what is accepted, and decoding."""
    if not measured:
        return NONE
    names = [
        f"{one['name']}, {one['date']}, driver {one['driver']}, torch {one['versions']['torch']}, "
        f"triton {one['versions']['triton']}"
        for one in measured
    ]
    rows = [["", *(one["name"] for one in measured)], ["---"] * (len(measured) + 1)]
    rows.append(["read bandwidth", *(_limit(one, "read", "{:.0f} GB/s") for one in measured)])
    for name, head, form in SHOWN:
        rows.append([head, *(_accepted(one, name, form) for one in measured)])
    rows += _table(measured, "decode", lambda row: f"decode at {row['ctx']:,}, {row['hits_wanted']} % on the card")
    rows += _table(measured, "prefill", lambda row: f"prefill of {row['tokens']:,}")
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["Measured, by `make gpu-check`:", "", *lines, "", *(f"* {name}" for name in names)])


def _limit(one: dict[str, Any], name: str, form: str) -> str:
    value = one["parts"].get("kernels", {}).get("limits", {}).get(name)
    return "" if value is None else form.format(value)


def _accepted(one: dict[str, Any], name: str, form: str) -> str:
    line = next((line for line in one["acceptance"] if line["name"] == name), None)
    if line is None or line["value"] is None:
        return "not run"
    shown = f"{100 * line['value']:.0f} %" if form == PERCENT else form.format(line["value"])
    return shown + MARK[line["verdict"]]


def _table(measured: list[dict[str, Any]], kind: str, head: Callable[[dict[str, Any]], str]) -> list[list[str]]:
    """A row for every kind of decoding or prefill that any card has done."""
    held = [{head(row): row for row in one["parts"].get("model", {}).get(kind, [])} for one in measured]
    heads = list(dict.fromkeys(name for rows in held for name in rows))
    return [
        [name, *(f"{rows[name]['tokens_per_s']:.0f} tokens/s" if name in rows else "not run" for rows in held)]
        for name in heads
    ]


def with_table(readme: str, folder: Path) -> str:
    """A text of README.md with what it should say of cards."""
    before, rest = readme.split(MARKS[0])
    return before + MARKS[0] + text(results(folder)) + "\n" + MARKS[1] + rest.split(MARKS[1])[1]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_atomically(path, with_table(path.read_text(), Path(sys.argv[2])).encode())
