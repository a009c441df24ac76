"""`make gpu-check` without a card: what is missing; parts that fail or hang; acceptance and the README's table, from
made-up results."""

import copy
import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path

import psutil
import pytest
from v4kernels import native

from v4cli import hardware
from v4cli.bench import gpu, gpu_check, gpu_parity, gpu_table
from v4cli.bench.gpu_accept import FAIL, NOT_RUN, PASS, RULES, accept
from v4cli.bench.gpu_check import DONE, FAILED, OVERRAN, Bound
from v4cli.bench.gpu_model import Wanted
from v4cli.bench.gpu_part import Part
from v4cli.bench.synthetic import shape
from v4cli.errors import ResourceError
from v4cli.plan import memory

ROOT = Path(__file__).parents[2]
CARD = {
    "name": "NVIDIA H200",
    "driver": "580.1",
    "date": "2027-01-02",
    "versions": {"torch": "2.13.0", "triton": "3.9"},
}


def kernel(op: str, shape: str, us: float, n_bytes: int = 0, of: str = "") -> dict:
    return {"op": op, "shape": shape, "us": us, "bytes": n_bytes, "of": of}


FOUND = {
    "parity": {"tests": {"run": 90, "passed": 90, "whole": True}, "nano": {"tokens": 64, "equal": 64}},
    "kernels": {
        "limits": {"read": 4000.0, "node_us": 1.2, "hand_off_us": 7.0},
        "kernels": [
            kernel("int8 linear", "wq_b, 16 rows", 100.0, 320_000_000, "wq_b"),
            kernel("int8 linear", "wq_b, 32 rows", 90.0, 320_000_000, "wq_b"),
            kernel("int8 linear", "wo_b, 32 rows", 10.0, 32_000_000, "wo_b"),
            kernel("fp4 experts", "6 of 4096x2048", 30.0, 80_000_000),
            kernel("attention", "640 keys", 24.0),
            kernel("index choice", "262144 keys", 39.0),
        ],
    },
    "model": {
        "decode": [
            {"ctx": 4_000, "hits_wanted": 100, "tokens_per_s": 150.0},
            {"ctx": 1_000_000, "hits_wanted": 100, "tokens_per_s": 123.0},
        ],
        "prefill": [{"tokens": 2_048, "tokens_per_s": 4000.0}],
    },
}


def verdicts(found: dict, card: str = CARD["name"]) -> dict[str, str]:
    return {line["name"]: line["verdict"] for line in accept(card, found)}


def changed(found: dict, value: float, *path: str | int) -> dict:
    """A copy with another value at a path."""
    made = copy.deepcopy(found)
    at = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return made


def test_a_card_that_shows_all_is_accepted():
    assert set(verdicts(FOUND).values()) == {PASS}
    (gemv,) = [line for line in accept(CARD["name"], FOUND) if line["name"].startswith("int8")]
    assert gemv["value"] == pytest.approx(352e6 / 100e-6 / 4e12), "of each matrix the fastest way"


@pytest.mark.parametrize(
    "path, value, name",
    [
        (("parity", "tests", "passed"), 89, "parity with the CPU"),
        (("parity", "nano", "equal"), 63, "parity with the CPU"),
        (("kernels", "kernels", 1, "us"), 110.0, "int8 GEMV, of read bandwidth"),
        (("kernels", "kernels", 3, "us"), 40.0, "FP4 experts, of read bandwidth"),
        (("kernels", "kernels", 4, "us"), 25.1, "attention to 640 keys, us"),
        (("kernels", "kernels", 5, "us"), 41.0, "choice among 262,144 keys, us"),
        (("kernels", "limits", "node_us"), 1.6, "node of a graph, us"),
        (("kernels", "limits", "hand_off_us"), 11.0, "hand-off to the CPU and back, us"),
        (("model", "decode", 0, "tokens_per_s"), 119.0, "decode at 4k, all experts on the card, tokens/s"),
        (("model", "decode", 1, "tokens_per_s"), 110.0, "speed kept at 1M tokens"),
    ],
)
def test_every_line_can_fail_and_no_other_does(path, value, name):
    worse = FOUND if path[1:3] != ("kernels", 1) else changed(FOUND, 120.0, "kernels", "kernels", 0, "us")
    seen = verdicts(changed(worse, value, *path))
    assert {line for line, verdict in seen.items() if verdict != PASS} == {name} and seen[name] == FAIL


def test_what_was_not_measured_or_is_not_asked_of_a_card_was_not_run():
    assert set(verdicts({}).values()) == {NOT_RUN}
    seen = verdicts(FOUND, "NVIDIA GeForce RTX 4090")
    assert [name for name, verdict in seen.items() if verdict == NOT_RUN] == [RULES[-2].name]
    for tests in ({"run": 0, "passed": 0, "whole": True}, {"run": 50, "passed": 50, "whole": False}):
        assert verdicts(changed(FOUND, tests, "parity", "tests"))["parity with the CPU"] == NOT_RUN


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_parts_that_fail_or_hang_are_recorded_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "GRACE", 1)
    pids = tmp_path / "pids"
    hang = f"""
import subprocess, time
with open({str(pids)!r}, "w") as file:
    file.write(str(subprocess.Popen(["sleep", "600"]).pid))
time.sleep(600)
"""

    def command(part: Bound, file: Path, number: int) -> list[str]:
        if part.name == "kernels":
            file.write_text(json.dumps(FOUND["kernels"]))  # what it had before it hung
            return script(hang)
        if part.name == "parity":
            return script("import sys; print('first', file=sys.stderr); sys.exit('no driver')")
        file.write_text(json.dumps(FOUND["model"]))
        return script("pass")

    parts = Bound("parity", 600), Bound("kernels", 2), Bound("model", 600)
    file, good = gpu_check.check(CARD, tmp_path / "results", 0, parts, command)
    result = json.loads(file.read_text())
    about = {name: part["status"] for name, part in result["parts"].items()}
    assert file.name == "gpu-nvidia-h200.json" and not good
    assert about == {"parity": FAILED, "kernels": OVERRAN, "model": DONE}
    assert result["parts"]["parity"]["why"] == "no driver" and "ended after" in result["parts"]["kernels"]["why"]
    assert result["driver"] == "580.1" and result["parts"]["kernels"]["limits"] == FOUND["kernels"]["limits"]
    seen = {line["name"]: line["verdict"] for line in result["acceptance"]}
    assert [name for name, verdict in seen.items() if verdict != PASS] == ["parity with the CPU"]
    assert "kernels: overran" in capsys.readouterr().err
    if pids.exists():  # it may not have come that far
        gone(int(pids.read_text()))


def gone(pid: int) -> None:
    """Wait until a process is no more, or not its parent's any more."""
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


def test_parts_and_what_ends_them_take_no_more_than_25_minutes():
    assert sum(part.seconds + gpu_check.GRACE for part in gpu_check.PARTS) + 60 <= 25 * 60


@pytest.mark.parametrize("part", ["check", "kernels", "model", "parity"])
def test_without_a_card_it_says_what_is_missing(part, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(hardware, "gpus", list)
    monkeypatch.setattr(sys, "argv", ["gpu", part, "--out", str(tmp_path / "results")])
    assert gpu.main() == 2
    said = capsys.readouterr()
    assert "no card to measure: " in said.err and said.err.count("\n") == 1 and not said.out
    assert not os.listdir(tmp_path)


def test_the_file_says_which_card_and_which_versions(monkeypatch):
    made = hardware.Gpu(0, "NVIDIA H200", "GPU-1", "580.1", "9.0", 143_771 << 20, 1 << 30)
    monkeypatch.setattr(hardware, "gpus", lambda: [made])
    about = gpu.card(0)
    assert (about["name"], about["driver"], about["capability"]) == ("NVIDIA H200", "580.1", "9.0")
    assert about["memory_bytes"] == 143_771 << 20 and about["versions"]["torch"] == metadata.version("torch")


def test_tests_on_a_card_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parity, "TESTS", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = device\n")
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.device\n@pytest.mark.parametrize('n', [0, 1, 2])\n"
        "def test_it(n):\n    if n == 2: pytest.skip('not here')\n    assert n == 0\n"
        "def test_other(): assert False\n"
    )
    part = Part(tmp_path / "found.json", 600)
    gpu_parity.kernels(part, 600, tmp_path)
    assert json.loads((tmp_path / "found.json").read_text())["tests"] == {
        "run": 2, "passed": 1, "failed": ["test_it[1]"], "whole": True,
    }  # fmt: skip


def test_what_tests_have_shown_is_kept_if_they_take_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parity, "TESTS", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = device\n")
    (tmp_path / "test_some.py").write_text(
        "import pathlib, pytest, time\n"
        "@pytest.mark.device\ndef test_it(): pass\n"
        f"@pytest.mark.device\ndef test_long():\n    pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "    time.sleep(600)\n"
    )
    part, now = Part(tmp_path / "found.json", 600), time.monotonic
    monkeypatch.setattr(gpu_parity, "EVERY_S", 0.05)
    monkeypatch.setattr(time, "monotonic", lambda: now() + (1e6 if (tmp_path / "begun").exists() else 0))
    with pytest.raises(TimeoutError):
        gpu_parity.kernels(part, 500, tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())["tests"]
    assert found == {"run": 1, "passed": 1, "failed": [], "whole": False}


def test_who_interrupts_keeps_what_parts_had_found(tmp_path, monkeypatch):
    def interrupted(command, seconds, file):
        file.write_text(json.dumps(FOUND["kernels"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_check, "run_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpu_check.check(CARD, tmp_path, 0, [Bound("kernels", 2)])
    kept = json.loads((tmp_path / "gpu-nvidia-h200.json").read_text())["parts"]["kernels"]
    assert kept["status"] == FAILED and kept["limits"] == FOUND["kernels"]["limits"]


@pytest.mark.parametrize(
    ("gib", "contexts", "slots"), [(140, 3, (9_000, 9_800)), (23.5, 3, (256, 600)), (15.5, 2, (256, 400))]
)
def test_contexts_and_slots_go_by_what_the_card_holds(gib, contexts, slots):
    """Of Flash, with random weights."""
    flash, free = shape("flash"), int(gib * (1 << 30))
    chunk, asked = memory.card_chunk(flash, free), Wanted().contexts
    found, n_slots = gpu.room(flash, free, chunk, asked)
    assert found == asked[:contexts] and slots[0] <= n_slots <= slots[1]
    with pytest.raises(ResourceError, match="no layer's experts"):
        gpu.room(flash, 8 << 30, memory.CHUNK, asked)


@pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
def test_nano_is_compared_token_by_token(monkeypatch):
    part = Part(None, 600)
    gpu_parity.nano(part, "cpu", 5)
    assert part.found["nano"] == {"tokens": 5, "equal": 5}
    gpu_parity.nano(part, "reference", 5)
    assert part.found["nano"]["equal"] < 5, "other numerics, other bits"


def test_the_readme_has_a_table_of_what_was_measured(tmp_path):
    result = CARD | {"parts": FOUND, "acceptance": accept(CARD["name"], FOUND)}
    (tmp_path / "gpu-nvidia-h200.json").write_text(json.dumps(result))
    slower = changed(FOUND, 50.0, "kernels", "kernels", 5, "us")
    del slower["model"]
    other = CARD | {"name": "L40S", "parts": slower, "acceptance": accept("L40S", slower)}
    (tmp_path / "gpu-l40s.json").write_text(json.dumps(other))
    before = f"# v4cli\n{gpu_table.MARKS[0]}old\n{gpu_table.MARKS[1]}\nrest\n"
    text = gpu_table.with_table(before, tmp_path)
    assert text.startswith("# v4cli\n") and text.endswith(f"{gpu_table.MARKS[1]}\nrest\n") and "old" not in text
    assert gpu_table.with_table(text, tmp_path) == text
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in text.splitlines()}
    assert rows["read bandwidth"] == ["4000 GB/s", "4000 GB/s"]
    assert rows["int8 GEMV"] == ["88 %", "88 %"]
    assert rows["choice of 262,144"] == ["50.0 us (missed)", "39.0 us"]
    assert rows["decode at 1,000,000, 100 % on the card"] == ["not run", "123 tokens/s"]
    assert "predicted" not in text and "NVIDIA H200, 2027-01-02, driver 580.1" in text


def test_the_readme_says_predicted_until_something_is_measured():
    assert "predicted" in gpu_table.text([])
    readme = (ROOT / "README.md").read_text()
    assert gpu_table.with_table(readme, ROOT / gpu_check.RESULTS) == readme, "make gpu-table"
