"""Memory budgets from the command line: nano as a store, part of whose experts fit."""

import json
import shutil

import pytest
import tiny
from engine.test_ram import budget
from test_cli import v4
from v4kernels import native

from v4cli import paths

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
QUESTION = "Hello, who are you?"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Its folder, and the budget that holds ten experts."""
    folder = tiny.make_store(paths.NANO, tmp_path_factory.mktemp("nano") / "store")
    for file in ("tokenizer.json", "generation_config.json"):
        shutil.copyfile(paths.NANO / file, folder / file)
    return folder, str(budget(folder, 10))


def test_run_within_a_budget_says_the_same_and_what_it_cost(store, tmp_path):
    folder, ram = store
    whole = json.loads(v4("run", "--model", folder, "--json", "--no-cache", QUESTION).stdout)
    assert whole["stats"]["decode_experts"] is None
    env = {"V4_HOME": str(tmp_path), "V4_RAM": ram}
    part = json.loads(v4("run", "--model", folder, "--json", "--no-cache", QUESTION, env=env).stdout)
    assert part["text"] == whole["text"]
    read = part["stats"]["decode_experts"]
    assert read["hits"] > 0 and read["misses"] > 0 and read["bytes_read"] > 0 and read["wait_s"] <= read["busy_s"] + 1
    assert len(list((tmp_path / "cache" / "experts").iterdir())) == 1, "what was learned is kept"
    told = v4("run", "--model", folder, "--ram", ram, "--stats", "--no-cache", QUESTION, env=env)
    assert told.stdout.strip() == whole["text"].strip() and "per token from the SSD" in told.stderr
    assert "memory held of what was planned: runtime 256.00 MiB of 256.00 MiB, dense " in told.stderr
    memory = part["stats"]["memory"]
    assert {"dense", "scratch", "staging", "experts", "KV", "rewind points"} < set(memory)
    assert sum(held for _, held in memory.values()) <= int(ram)


def test_too_small_a_budget_is_exit_4_with_what_would_do(store):
    folder, _ = store
    done = v4("run", "--model", folder, "--ram", "1M", QUESTION)
    assert done.returncode == 4 and "--ram" in done.stderr and "Traceback" not in done.stderr
    assert v4("run", "--model", folder, "--ram", "much", QUESTION).returncode == 2


def test_bench_within_a_budget_and_replay_of_its_trace(store, tmp_path):
    folder, ram = store
    trace = tmp_path / "trace.npz"
    arguments = ("--model", folder, "--ram", ram, "--prompt", "30", "-n", "4", "--trace", trace)
    report = json.loads(v4("bench", *arguments, "--json").stdout)
    assert report["prefill_read_of_needed"] <= 1.5 and 0 < report["hit_rate"] < 1
    bound = report["bound_tokens_per_s"]
    assert report["decode_fraction"] == pytest.approx(report["decode_tokens_per_s"] / bound)
    assert report["ram_bytes_per_token"] * bound <= 1.001e9 * report["read_bandwidth"]
    assert "bound" in v4("bench", *arguments).stdout
    rows = json.loads(v4("bench", "cache", "--trace", trace, "--slots", "5,50%", "--json").stdout)
    assert [row["slots"] for row in rows] == [5, 24] and rows[0]["tokens"] == 4
    assert all(row["lru"] <= row["optimum"] and row["v4"] <= row["optimum"] for row in rows)


def test_bench_refuses_what_makes_no_sense(store, tmp_path):
    folder, ram = store
    for arguments in (
        ("--model", folder, "--ram", "1000G"),
        ("--model", "nano", "--ram", ram),
        ("--model", folder, "--trace", tmp_path / "t"),
        ("--synthetic", "small", "--ram", ram),
    ):
        assert v4("bench", *arguments).returncode == 2, arguments
    assert v4("bench", "cache", "--trace", tmp_path / "none").returncode == 2
