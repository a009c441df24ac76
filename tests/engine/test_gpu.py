"""What is missing to use a GPU, and what was found out about one; driver, device and packages are fake."""

import importlib.util
import json
import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from v4cli import hardware, paths
from v4cli.engine import gpu
from v4cli.engine.gpu import Finding
from v4cli.errors import UsageError
from v4cli.hardware import Gpu
from v4cli.plan.cards import READS, named

CARD = Gpu(0, "NVIDIA GeForce RTX 4090", "GPU-1", "580.1", "8.9", 24564 << 20, 24000 << 20)
VERSIONS = {"torch": "2.13.0+cu130", "triton": "3.9.0"}


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine with one card and all that it takes; changed by setting an entry."""
    has = {"gpus": [CARD], "versions": dict(VERSIONS), "system": ("Linux", "x86_64")}
    monkeypatch.setenv("V4_HOME", str(tmp_path))
    monkeypatch.delenv(hardware.VISIBLE, raising=False)
    monkeypatch.setattr(hardware, "gpus", lambda: has["gpus"])
    monkeypatch.setattr(gpu, "_version", lambda package: has["versions"].get(package, ""))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: has["versions"].get(name) or None)
    monkeypatch.setattr(platform, "system", lambda: has["system"][0])
    monkeypatch.setattr(platform, "machine", lambda: has["system"][1])
    return has


LACKS = [
    ({"system": ("Darwin", "arm64")}, "Darwin", ""),
    ({"gpus": []}, "no GPU", "nvidia-smi"),
    ({"gpus": [CARD._replace(capability="7.5")]}, "7.5", ""),
    ({"versions": {"torch": "2.13.0+cu130"}}, "triton is not installed", "pip install 'v4cli[gpu]'"),
    ({"versions": VERSIONS | {"torch": "2.13.0+cpu"}}, "CPUs only", "pip install torch"),
    ({"versions": {"triton": "3.9.0"}}, "torch is not installed", "pip install torch"),
]


@pytest.mark.parametrize(("change", "what", "fix"), LACKS, ids=lambda value: value if isinstance(value, str) else None)
def test_what_is_missing_is_one_thing_and_what_brings_it(machine, change, what, fix):
    assert gpu.lack() is None and gpu.chosen("triton") == "triton"
    gpu.remember(CARD, Finding(CARD.name, gpu.versions(CARD)))
    machine.update(change)
    missing = gpu.lack()
    assert what in missing.what and fix in missing.fix
    with pytest.raises(UsageError, match=what) as told:
        gpu.chosen("triton")
    assert told.value.hint and "\n" not in f"{told.value}{told.value.hint}"
    assert gpu.chosen(None) is None, "who did not ask goes on without"
    assert gpu.chosen("cpu") == "cpu" and gpu.chosen("reference") == "reference"


def test_a_number_that_no_card_has(machine):
    assert "no GPU 1" in gpu.lack(1).what and gpu.lack(0) is None
    machine["gpus"] = [CARD, CARD._replace(number=1, uuid="GPU-2")]
    assert gpu.lack(1) is None


def test_the_default_is_a_card_that_passed_and_is_still_the_same(machine):
    assert gpu.chosen(None) is None, "nobody looked yet"
    gpu.remember(CARD, Finding(CARD.name, gpu.versions(CARD)))
    assert gpu.chosen(None) == "triton"
    for change in ({"gpus": [CARD._replace(uuid="GPU-3")]}, {"gpus": [CARD._replace(driver="590.1")]},
                   {"versions": VERSIONS | {"triton": "3.10.0"}}):  # fmt: skip
        before = {name: machine[name] for name in change}
        machine.update(change)
        assert gpu.chosen(None) is None
        machine.update(before)
    assert gpu.chosen(None) == "triton"
    gpu.remember(CARD, Finding(CARD.name, gpu.versions(CARD), fault="quantize: 3 of 4,096 codes differ"))
    assert gpu.chosen(None) is None and gpu.chosen("triton") == "triton"


def test_another_card_does_not_disturb_what_is_known_of_the_first():
    other = CARD._replace(uuid="GPU-2", name="NVIDIA H200")
    gpu.remember(CARD, Finding(CARD.name, gpu.versions(CARD), rates={"read": 9e11}))
    gpu.remember(other, Finding(other.name, gpu.versions(other), fault="no"))
    assert gpu.recall(CARD) == Finding(CARD.name, gpu.versions(CARD), rates={"read": 9e11})
    assert gpu.recall(other).fault == "no"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"GPU-1": 3}', '{"GPU-1": {"name": "x"}}'])
def test_a_file_that_is_no_such_file_says_nothing(text):
    paths.state_dir().mkdir(parents=True)
    (paths.state_dir() / "gpus.json").write_text(text)
    assert gpu.recall(CARD) is None and gpu.chosen(None) is None
    gpu.remember(CARD, Finding(CARD.name, gpu.versions(CARD)))
    assert gpu.chosen(None) == "triton"


def test_plans_go_by_what_was_measured():
    assert gpu.rated(CARD) == replace(named("4090"), name=CARD.name, vram=CARD.total)
    gpu.remember(CARD, Finding(CARD.name, gpu.versions(CARD), rates={"read": 9e11}))
    card = gpu.rated(CARD)
    assert card.read == READS * 9e11 and card.link == named("4090").link and card.measured == {"read"}


def test_the_first_check_that_fails_decides_and_only_what_passed_is_measured():
    asked = []

    def check(name, answer):
        def run(device):
            asked.append((name, device))
            if isinstance(answer, Exception):
                raise answer
            return answer

        return run

    def limits(device):
        asked.append(("limits", device))
        return {"read": 8e11, "link": 2e10, "other": 1.0}

    good = gpu.examined(CARD, "device", {"a": check("a", ""), "b": check("b", "")}, limits)
    assert good == Finding(CARD.name, gpu.versions(CARD), rates={"read": 8e11, "link": 2e10})
    assert asked == [("a", "device"), ("b", "device"), ("limits", "device")]
    asked.clear()
    bad = gpu.examined(CARD, "device", {"a": check("a", RuntimeError("one\ntwo")), "b": check("b", "")}, limits)
    assert bad.fault == "a: RuntimeError: one" and [name for name, _ in asked] == ["a"] and not bad.rates
    assert gpu.examined(CARD, "device", {"b": check("b", "differs")}, limits).fault == "b: differs"


def test_compiled_kernels_are_counted(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert gpu.compiled_kernels() == (0, tmp_path)
    for name in ("a/quantize.cubin", "a/quantize.ptx", "b/linear.cubin", "c/linear.hsaco"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert gpu.compiled_kernels() == (3, tmp_path)


def test_the_driver_is_asked_line_by_line(monkeypatch, tmp_path):
    monkeypatch.undo()
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\necho "0, NVIDIA H200, GPU-a, 580.1, 9.0, 143771, 143000"\necho "1, X, GPU-b, 580.1, 12.0, 8, 7"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv(hardware.VISIBLE, raising=False)
    first, second = hardware.gpus()
    assert first == Gpu(0, "NVIDIA H200", "GPU-a", "580.1", "9.0", 143771 << 20, 143000 << 20)
    assert second.number == 1 and second.free == 7 << 20
    for broken in ("echo nonsense", "exit 9", 'echo "0, A, GPU, 1, [N/A], 1, 1"'):
        tool.write_text(f"#!/bin/sh\n{broken}\n")
        assert hardware.gpus() == []


RATES = [[1], {"read": "x"}, {"read": -5}, {"read": 0}, {"read": 10**400}, {"read": 1e-300}, {"read": True}, None]


@pytest.mark.parametrize("told", [*({"rates": rates} for rates in RATES), {"fault": 3}, {"fault": None}], ids=str)
def test_a_finding_that_cannot_be_says_nothing(told):
    gpu.remember(CARD, Finding(CARD.name, gpu.versions(CARD), rates={"read": 9e11}))
    file = paths.state_dir() / "gpus.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({CARD.uuid: kept[CARD.uuid] | told}))
    assert gpu.recall(CARD) is None and gpu.chosen(None) is None
    assert gpu.rated(CARD) == replace(named("4090"), name=CARD.name, vram=CARD.total)


def test_what_an_earlier_version_kept_besides_is_no_matter():
    gpu.remember(CARD, Finding(CARD.name, gpu.versions(CARD)))
    file = paths.state_dir() / "gpus.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({CARD.uuid: kept[CARD.uuid] | {"kernels": 3}}))
    assert gpu.recall(CARD) == Finding(CARD.name, gpu.versions(CARD))


VISIBLE = [
    (None, ["GPU-a", "GPU-b"]), ("1", ["GPU-b"]), ("1,0", ["GPU-b", "GPU-a"]), ("GPU-b", ["GPU-b"]), ("", []),
    ("0,7,1", ["GPU-a"]), ("-1", []), (" 1 ", ["GPU-b"]),
]  # fmt: skip


@pytest.mark.parametrize(("told", "left"), VISIBLE)
def test_cards_are_those_that_the_process_may_use_in_the_order_of_torch(monkeypatch, tmp_path, told, left):
    monkeypatch.undo()
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "0, A, GPU-a, 580.1, 9.0, 9, 9"\necho "1, B, GPU-b, 580.1, 9.0, 9, 9"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if told is None:
        monkeypatch.delenv(hardware.VISIBLE, raising=False)
    else:
        monkeypatch.setenv(hardware.VISIBLE, told)
    found = hardware.gpus()
    assert [one.uuid for one in found] == left and [one.number for one in found] == list(range(len(left)))


def test_who_hides_all_cards_is_told_so(machine, monkeypatch):
    machine["gpus"] = []
    monkeypatch.setenv(hardware.VISIBLE, "")
    missing = gpu.lack()
    assert hardware.VISIBLE in missing.what and missing.fix == f"unset {hardware.VISIBLE}"


def test_no_number_counts_from_the_end(machine):
    assert "no GPU -1" in gpu.lack(-1).what


def test_compiled_kernels_are_counted_without_a_home_folder(monkeypatch):
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setattr(Path, "home", _no_home)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert gpu.compiled_kernels()[0] == 0


def _no_home():
    raise RuntimeError("Could not determine home directory.")
