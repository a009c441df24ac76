"""`v4 eval`: measured, resumed after a kill, noted in the manifest, told by show, ls and pull; bad use in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from inside import v4_inside as v4_inside
from tiny import STORE_LIKE, make_store, random_checkpoint

from v4cli.evals import suite
from v4cli.paths import NANO
from v4cli.store import price
from v4cli.store.store import Manifest
from v4cli.store.verify import verify_store

SIZES = suite.Sizes("quick", ((96, 160),), 80, 136, 1, 64, (512,), 1, False)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """nano in int4, which is worse than nano."""
    return make_store(NANO, tmp_path_factory.mktemp("models") / "small", "q4")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("V4_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(suite, "QUICK", SIZES)
    return tmp_path / "home"


def test_what_was_measured_is_printed_and_noted_and_told_again(v4_inside, home, store):
    done = v4_inside("eval", "quick", store, "--against", "nano", "--only", "kld,ppl,state,tools,needle", "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    figures = said["figures"]
    for length in ("96", "160"):
        at = figures["kld"]["lengths"][length]
        assert 0 < at["mean"]["value"] <= at["cvar95"] and at["floor"]["value"] < at["mean"]["value"]
        assert figures["ppl"]["lengths"][length]["perplexity"]["value"] >= 1
    assert figures["state"] == figures["state"] | {"checks": 9, "equal": 9, "largest": 0.0}
    assert figures["tools"]["exact"]["n"] == 5 and figures["needle"]["right"]["n"] == 3
    assert not verify_store(store).damage
    noted = price.measured(Manifest.load(store))
    assert noted == figures
    shown = json.loads(v4_inside("show", store, "--json").out)
    assert shown["measured"] == figures and shown["quality"].startswith("KLD ")
    (home / "models").mkdir()
    (home / "models" / "small").symlink_to(store)
    assert "KLD " in v4_inside("ls").out
    assert "not measured" in v4_inside("pull", NANO, "--name", "other", "--quant", "q4", "--dry-run").out
    again = v4_inside("eval", "quick", store, "--against", said["teacher"], "--only", "kld,ppl,state,tools,needle")
    assert again.code == 0 and "19 of 19 items were measured before" in again.err
    assert "same top token" in again.out


def test_a_model_against_itself_is_at_0_and_two_are_compared_item_by_item(v4_inside, home, store):
    done = v4_inside("eval", "quick", "nano", "--only", "kld,ppl", "--json")
    at = json.loads(done.out)["figures"]["kld"]["lengths"]["96"]
    assert at["mean"]["value"] == 0.0 and at["top1"]["value"] == 1.0 and at["floor"]["value"] > 0
    done = v4_inside("eval", "quick", store, "--against", "nano", "--only", "kld", "--compare", "nano", "--json")
    compared = json.loads(done.out)["compared"]
    assert [line["part"] for line in compared] == ["kld", "kld"]
    assert all(line["other"] == 0.0 < line["this"] == line["difference"]["value"] for line in compared)
    done = v4_inside("eval", "quick", "nano", "--only", "ppl", "--compare", store, "--seed", "1")
    assert done.code == 2 and "nothing to compare with" in done.err


def test_figures_of_other_weights_count_for_nothing(store, tmp_path):
    manifest = Manifest.load(store)
    manifest.measured = {"weights": price.weights_of(manifest), "kld": {"lengths": {"512": {"mean": {"value": 0.5}}}}}
    assert price.measured(manifest) == {}  # not as they should be
    manifest.measured["kld"]["lengths"]["512"]["top1"] = {"value": 0.9}
    assert price.tag(price.measured(manifest)) == "KLD 0.5 at 512 tokens, same top token 90.0%"
    name = next(name for name in manifest.files if name.endswith(".safetensors"))
    manifest.files[name] = manifest.files[name] | {"sha256": "0" * 64}
    assert price.measured(manifest) == {} and price.measured(None) == {}


def test_a_quick_measurement_does_not_take_the_place_of_a_full_one(tmp_path):
    folder = make_store(random_checkpoint(tmp_path / "m", STORE_LIKE), tmp_path / "s")
    weights = price.weights_of(Manifest.load(folder))
    state = {"checks": 9, "equal": 9, "largest": 0.0}
    price.note(folder, weights, {"state": {"suite": "full"} | state})
    price.note(folder, weights, {"state": {"suite": "quick"} | state, "code": {"suite": "quick", "right": {}} | state})
    found = Manifest.load(folder).measured
    assert found["state"]["suite"] == "full" and found["code"]["suite"] == "quick"
    with pytest.raises(price.ModelError, match="changed"):
        price.note(folder, "other", {})


def test_without_a_place_for_results_it_measures_all_the_same(v4_inside, home):
    home.write_text("")
    done = v4_inside("eval", "quick", "nano", "--only", "ppl", "--json")
    assert done.code == 0 and json.loads(done.out)["figures"]["ppl"] and "is not kept" in done.err


def begun(store: Path, home: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "v4cli", "eval", "quick", store, "--against", "nano", "--json", *more]
    environment = os.environ | {"V4_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until_an_item_is_done(process: subprocess.Popen, home: Path, n: int) -> None:
    while process.poll() is None:
        if any(path.read_bytes().count(b"\n") >= n for path in home.glob("evals/runs/*/items.jsonl")):
            return
        time.sleep(0.005)


def test_after_a_kill_and_after_ctrl_c_it_goes_on_to_the_same_figures(store, tmp_path):
    parts = ("--only", "ppl,state,tools")
    whole, _ = begun(store, tmp_path / "whole", *parts).communicate(timeout=300)
    home = tmp_path / "home"
    for n, number in ((1, signal.SIGKILL), (6, signal.SIGINT)):
        process = begun(store, home, *parts)
        until_an_item_is_done(process, home, n)
        process.send_signal(number)
        _, said = process.communicate(timeout=300)
        if number == signal.SIGINT and process.returncode:
            assert process.returncode == 130 and "run the same command again to go on" in said
    process = begun(store, home, *parts)
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0 and "items were measured before" in said
    assert json.loads(out)["figures"] == json.loads(whole)["figures"]


@pytest.mark.parametrize(
    ("args", "code", "why"),
    [
        (["nano", "--only", "kdl"], 2, "there is no part 'kdl' of v4 eval"),
        (["nothing-of-this-name"], 3, "not found"),
        (["quick", "nano", "other"], 2, "one model at a time"),
        (["quick", "nano", "--ctx", "4k"], 2, "quick and --ctx exclude each other"),
        (["nano", "--ctx", "2M"], 2, "--ctx 2,000,000: the context of nano has 1,048,576 tokens"),
        (["nano", "--ctx", "100", "--only", "needle"], 2, "nothing that is measured fits the context of nano"),
        (["quick", "nano", "--only", "kld", "--against", "nowhere"], 3, "not found"),
        (["quick", "nano", "--only", "kld", "--against", __file__], 3, "corrupt"),
    ],
)
def test_bad_use_is_one_line_and_what_to_type(args, code, why, v4_inside, home):
    done = v4_inside("eval", *args)
    assert done.code == code and why in done.err, done.err
    assert done.out == "" and done.err.count("\n") <= 2 and "unexpected" not in done.err


def test_what_a_model_cannot_be_asked_is_left_out_or_refused_if_it_was_asked_for(v4_inside, home, tmp_path):
    folder = make_store(
        random_checkpoint(tmp_path / "m", STORE_LIKE | {"max_position_embeddings": 128}), tmp_path / "s"
    )
    done = v4_inside("eval", "quick", folder, "--json")
    left = json.loads(done.out)["left_out"]
    assert done.code == 0 and "the weights it was made from are not here" in left["kld"]
    assert (
        left["160 tokens"] == f"the context of {folder} has 128" and {"needle", "state", "tools", "code"} < left.keys()
    )
    done = v4_inside("eval", "quick", folder, "--only", "kld")
    assert done.code == 2 and "--against" in done.err
