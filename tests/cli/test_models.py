"""ls, show, verify, rm and plan as a user runs them."""

import json
import os
import pty
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from tiny import STORE_LIKE, make_store, random_checkpoint

from v4cli import paths
from v4cli.cli.upkeep import remove
from v4cli.errors import ModelError
from v4cli.paths import NANO
from v4cli.weights.library import disk_bytes, only_model
from v4cli.weights.store import MANIFEST, Manifest

V4 = [sys.executable, "-m", "v4cli"]
FLASH = {
    "experts": 147_169_738_752,
    "dense": 6_727_835_868,
    "embed": 1_059_061_760,
    "head": 1_059_061_760,
    "mtp": 10_862_838_300,
    "total": 166_878_536_440,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("source"), STORE_LIKE)


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    return make_store(source, tmp_path_factory.mktemp("made") / "little")


@pytest.fixture
def home(made, tmp_path):
    """V4_HOME with one model, `little`."""
    shutil.copytree(made, tmp_path / "models" / "little")
    return tmp_path


def v4(home, *args, stdin=""):
    """Run v4 to its end."""
    variables = os.environ | {"OMP_NUM_THREADS": "1", "V4_HOME": str(home)}
    command = [*V4, *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, env=variables)


def flip(path):
    data = bytearray(path.read_bytes())
    data[random.Random(1).randrange(len(data))] ^= 16
    path.write_bytes(data)


def test_ls_tells_every_state(home):
    models = home / "models"
    for name in ("gone", "half", "hurt", "newer", "short"):
        shutil.copytree(models / "little", models / name)
    (models / "gone" / "head.safetensors").unlink()
    half = Manifest.load(models / "half")
    half.complete = False
    del half.files["head.safetensors"]
    half.save(models / "half")
    flip(models / "hurt" / MANIFEST)
    newer = Manifest.load(models / "newer")
    newer.layout = 7
    newer.save(models / "newer")
    (models / "short" / "embed.safetensors").write_bytes(b"")
    (models / "left" / ".source").mkdir(parents=True)
    (models / "left" / ".source" / "shard").write_bytes(b"12345")
    (models / ".left.lock").touch()
    rows = {row["name"]: row for row in json.loads(v4(home, "ls", "--json").stdout)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "nano": "complete",
        "little": "complete",
        "gone": "damaged: head.safetensors is missing",
        "half": "incomplete, 9 of 10 parts",
        "hurt": rows["hurt"]["state"],
        "newer": "layout 7, this version reads 1",
        "short": "damaged: embed.safetensors has the wrong size",
        "left": "leftover of an interrupted pull",
    }
    assert rows["hurt"]["state"].startswith("damaged: manifest.json: ")
    little = rows["little"]
    assert little["bytes"] == sum(path.stat().st_size for path in (models / "little").iterdir())
    assert (little["quant"], little["source"], rows["left"]["bytes"]) == ("native", "test/model@abc", 5)
    assert little["parameters"] > 5e6 and little["complete"] and not rows["half"]["complete"]
    text = v4(home, "ls").stdout
    assert len(text.splitlines()) == 1 + len(rows) and "incomplete, 9 of 10 parts" in text


def test_show_a_store(home):
    about = json.loads(v4(home, "show", "little", "--json").stdout)
    folder = home / "models" / "little"
    assert about["path"] == str(folder) and about["quant"] == "native" and about["state"] == "complete"
    assert about["source"] == "test/model@abc" and about["bytes_on_disk"] == disk_bytes(folder)
    assert about["file_bytes"] == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert about["bytes"]["total"] == sum(n for name, n in about["bytes"].items() if name != "total")
    rows, width = STORE_LIKE["vocab_size"], STORE_LIKE["hidden_size"]
    assert about["bytes"]["head"] == about["bytes"]["embed"] == rows * (width + width // 16)
    assert about["read_bytes_per_token"]["embed"] == width + width // 16
    assert set(about["weight_errors"]) == {"embed", "head", "linear"}
    assert all(0.001 < error < 0.01 for error in about["weight_errors"].values())
    assert v4(home, "show").stdout == v4(home, "show", "little").stdout  # the one model pulled is the default
    by_path = json.loads(v4(home, "show", folder, "--json").stdout)
    assert by_path | {"model": "little"} == about


def test_show_a_release_that_is_not_here(home):
    about = json.loads(v4(home, "show", "flash", "--json").stdout)
    assert about["path"] is None and about["state"] == "not on this machine"
    assert about["bytes"] == FLASH
    assert {about["stores"][quant]["bytes"]["experts"] for quant in ("native", "q4")} == {FLASH["experts"]}
    assert about["read_bytes_per_token"]["experts"] == 258 * 13_369_344
    assert round(about["kv_bytes_per_token"], 1) == 3514.2


def test_the_default_model_is_the_only_complete_one(home):
    models = home / "models"
    assert only_model(models) == "little"
    shutil.copytree(models / "little", models / "other")
    assert only_model(models) is None
    (models / "other" / "head.safetensors").unlink()
    assert only_model(models) == "little"
    assert only_model(home / "nowhere") is None


def test_names_and_paths(home, monkeypatch):
    monkeypatch.setenv("V4_HOME", str(home))
    monkeypatch.chdir(home)
    Path("little").mkdir()
    assert paths.model_folder("little") == home / "models" / "little"
    assert paths.model_folder("./little") == Path("little")
    assert paths.model_folder("nano") == paths.NANO
    for name in ("", "nano", "a/b", "..", ".x", "/"):
        assert paths.named_folder(name) is None
    for name, hint in (("flash", "v4 pull flash"), ("nothing", "v4 ls"), ("", "v4 ls")):
        with pytest.raises(ModelError) as caught:
            paths.model_folder(name)
        assert hint in caught.value.hint


def test_verify_names_the_damage_and_its_command_mends_it(source, tmp_path):
    """The printed command is run as it stands."""
    assert v4(tmp_path, "pull", source, "--name", "made").returncode == 0
    folder = tmp_path / "models" / "made"
    fine = v4(tmp_path, "verify", "made")
    assert fine.returncode == 0 and "nothing is wrong" in fine.stdout
    names = ["layer-001.safetensors", "config.json", MANIFEST]
    for name in names:
        flip(folder / name)
    found = v4(tmp_path, "verify", "made", "--json")
    assert found.returncode == 3 and "not as recorded" in found.stderr
    damage = {item["file"]: item["repair"] for item in json.loads(found.stdout)["damage"]}
    assert sorted(damage) == sorted(names)
    for name in names:
        command = shlex.split(damage[name])
        assert command[0] == "v4" and v4(tmp_path, *command[1:]).returncode == 0
    assert v4(tmp_path, "verify", "made").returncode == 0


def test_verify_checkpoints_says_what_it_cannot_know(home):
    done = v4(home, "verify", "nano")
    assert done.returncode == 0 and "no checksums" in done.stdout
    broken = shutil.copytree(NANO, home / "broken")
    shard = next(broken.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert v4(home, "verify", broken).returncode == 3


def answer(home, text, *args):
    """Run v4 in a terminal and type `text`; returns exit code and screen."""
    ours, theirs = pty.openpty()
    variables = os.environ | {"V4_HOME": str(home)}
    process = subprocess.Popen([*V4, *args], stdin=theirs, stdout=theirs, stderr=theirs, env=variables)
    os.close(theirs)
    os.write(ours, text.encode())
    screen = b""
    try:
        while data := os.read(ours, 4096):
            screen += data
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    return process.wait(timeout=60), screen.decode()


def test_rm_asks_and_deletes_pulled_models_only(home, monkeypatch):
    folder = home / "models" / "little"
    refused = v4(home, "rm", "little")
    assert refused.returncode == 2 and "--yes" in refused.stderr and folder.is_dir()
    code, screen = answer(home, "n\n", "rm", "little")
    assert code == 0 and "nothing was deleted" in screen and (folder / MANIFEST).exists()
    outside = shutil.copytree(folder, home / "outside")
    monkeypatch.setenv("V4_HOME", str(home))
    for name in ("nano", str(outside), "../outside", ".", "", "nothing"):
        with pytest.raises(ModelError, match="not one of the pulled models"):
            remove(name, yes=True)
    assert outside.is_dir() and NANO.is_dir()
    n_bytes = disk_bytes(folder)
    code, screen = answer(home, "y\n", "rm", "little")
    assert code == 0 and f"{n_bytes / 2**20:.2f} MiB freed" in screen and not folder.exists()


def test_rm_waits_for_no_pull_and_keeps_what_a_link_points_to(home):
    models = home / "models"
    with FileLock(models / ".little.lock"):
        busy = v4(home, "rm", "little", "-y")
    assert busy.returncode == 3 and "running" in busy.stderr and (models / "little" / MANIFEST).exists()
    (models / "link").symlink_to(models / "little")
    assert v4(home, "rm", "link", "-y").returncode == 0
    assert not (models / "link").exists() and (models / "little" / MANIFEST).exists()
    (models / "little" / MANIFEST).unlink()  # as a crash within rm leaves it
    assert v4(home, "rm", "little", "-y").returncode == 0 and not (models / "little").exists()


def test_plan_a_release_on_this_machine_and_others(home):
    done = v4(home, "plan", "flash", "--ram", "20G", "--vram", "0", "--ctx", "1048576", "--json")
    plan = json.loads(done.stdout)
    assert plan["quant"] == "native" and plan["state"] == "not on this machine"
    tiers = {tier["tier"]: tier for tier in plan["tiers"]}
    assert tiers["RAM"]["budget"] == 20 << 30 and tiers["RAM"]["holds"]["KV"] == 3_688_172_544
    experts = [tier["holds"].get("experts", 0) for tier in plan["tiers"]]
    assert sum(experts) == FLASH["experts"] and all(n % 13_369_344 == 0 for n in experts)
    assert tiers["RAM"]["speed_is_measured"] and tiers["RAM"]["bytes_per_second"] > 1e8
    assert plan["seconds_per_token"]["optimistic"] < plan["seconds_per_token"]["pessimistic"]
    rows = {row["name"]: row for row in plan["machines"]}
    assert rows["192 GB"]["resident_experts"] == 1 and rows["64 GB"]["resident_experts"] < 0.5
    assert not (home / "models" / "flash").exists()


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["flash", "--ram", "7G", "--vram", "0"], 4, "--quant q4 fits"),
        (["nano", "--ram", "100M", "--vram", "0"], 4, "of RAM would do"),
        (["little", "--ram", "lots"], 2, "12GiB"),
        (["little", "--vram", "-3"], 2, "--vram"),
        (["little", "--quant", "q1"], 2, "q4"),
        (["nano", "--ctx", "1048577"], 2, "--ctx 1048576"),
        (["nowhere"], 3, "v4 ls"),
    ],
)
def test_plan_says_what_would_fit(home, args, code, says):
    done = v4(home, "plan", *args)
    assert done.returncode == code and says in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_the_hinted_context_is_the_longest_that_fits(home):
    failed = v4(home, "plan", "little", "--ram", "340M", "--vram", "0", "--ctx", "1048576")
    longest = int(failed.stderr.split("--ctx ")[1].split()[0])
    assert failed.returncode == 4 and longest > 1000
    fits, short = (
        v4(home, "plan", "little", "--ram", "340M", "--vram", "0", "--ctx", n) for n in (longest, longest + 1)
    )
    assert fits.returncode == 0 and short.returncode == 4
    assert "64 GB + 24 GB GPU" in fits.stdout and "tokens/s" in fits.stdout and "this machine" not in fits.stdout
