"""Killed between any two file operations, everything that makes a store goes on to the same bytes."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pulling import REPO, command, contents, leftovers

from v4cli.store.store import Manifest, Store


class Victim:
    """The process that is killed."""

    def __init__(self, hub, home: Path):
        ready = command(hub, home)
        here = Path(__file__).parent
        ready["env"] |= {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
        ready |= {"args": [sys.executable, str(Path(__file__).with_name("kills.py"))], "stdin": subprocess.PIPE}
        self.process = subprocess.Popen(**ready, stdout=subprocess.PIPE, text=True)

    def order(self, source, dest: Path, at: int = 0, **more) -> dict:
        """What became of it: killed, or the number of operations."""
        order = {"source": str(source), "repo": REPO, "dest": str(dest), "at": at, **more}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "problem" not in answer, answer
        return answer

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture(scope="module")
def victim(serving_hub, tmp_path_factory):
    started = Victim(serving_hub, tmp_path_factory.mktemp("victim"))
    yield started
    started.close()


@pytest.mark.parametrize("n", [3, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["pull", "quantize"])
def test_killed_after_the_first_part_the_store_becomes_the_same(victim, hub, official, reference, tmp_path, kind, n):
    """Killed n times at random points of a fresh run; each time the same again, undisturbed."""
    source, dest, rng, kills = hub.url if kind == "pull" else official, tmp_path / "m", random.Random(n), 0
    whole = victim.order(source, dest, after_first_part=True)["operations"]
    assert whole > 60
    while kills < n:
        shutil.rmtree(dest)
        at = rng.randrange(1, whole)
        killed = "killed" in victim.order(source, dest, at, after_first_part=True)  # or it came in fewer pieces
        kills += killed
        if killed:
            assert any(name.endswith(".safetensors") for name in Manifest.load(dest).files)
            victim.order(source, dest)
        assert contents(dest) == contents(reference) and not leftovers(dest), f"point {at}"


def test_killed_on_the_way_to_lower_bits_the_store_becomes_the_same(victim, hub, official, tmp_path):
    """Of shards from a hub, by a recipe that is said once: the store itself tells it to who goes on."""
    whole, dest = tmp_path / "whole", tmp_path / "m"
    count = victim.order(official, whole, recipe="mix", after_first_part=True)["operations"]
    assert {"q3", "fp4"} <= {part.format for part in Store.open(whole).parts["layer-002-experts"].tensors.values()}
    for at in (count // 5, count // 2):
        assert victim.order(hub.url, dest, at, recipe="mix", after_first_part=True) == {"killed": 9}
    victim.order(hub.url, dest)
    assert contents(dest) == contents(whole) and not leftovers(dest)


def test_killed_again_and_again_it_comes_to_an_end(victim, official, reference, tmp_path):
    for at in (40, 3, 25, 7, 18):
        victim.order(official, tmp_path / "m", at)
    victim.order(official, tmp_path / "m")
    assert contents(tmp_path / "m") == contents(reference) and not leftovers(tmp_path / "m")


@pytest.mark.parametrize("only", ["layer-001", "tokenizer.json"])
def test_killed_anywhere_in_a_repair_the_same_command_mends_it(victim, official, reference, tmp_path, only):
    dest = shutil.copytree(reference, tmp_path / "m")
    whole = victim.order(official, dest, only=only)["operations"]
    for at in range(1, whole + 1, max(1, whole // 6)):
        name = only if "." in only else only + ".safetensors"
        data = bytearray((dest / name).read_bytes())
        data[len(data) // 2] ^= 1
        (dest / name).write_bytes(data)
        assert victim.order(official, dest, at, only=only) == {"killed": 9}
        victim.order(official, dest, only=only)
        assert contents(dest) == contents(reference) and not leftovers(dest), f"point {at}"


def test_killed_amid_manifest_and_small_files(victim, official, reference, tmp_path):
    """From the first operation to the first part, in steps: what is left goes on, or is not there."""
    for at in range(1, 24, 3):
        dest = tmp_path / "m"
        victim.order(official, dest, at)
        victim.order(official, dest)
        assert contents(dest) == contents(reference) and not leftovers(dest), f"point {at}"
        shutil.rmtree(dest)


def test_killed_while_verifying_nothing_changes(victim, official, reference, tmp_path):
    dest = shutil.copytree(reference, tmp_path / "m")
    for at in (1, 5):
        assert victim.order(official, dest, at, verify=True) == {"killed": 9}
        assert contents(dest) == contents(reference) and not leftovers(dest)
