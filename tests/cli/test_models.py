"""ls, show, verify, rm and plan as a user runs them."""

import hashlib
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
from inside import v4_inside as v4_inside
from tiny import STORE_LIKE, make_store, random_checkpoint

from v4cli import hardware, paths
from v4cli.cli import doctor
from v4cli.cli.pull import PullRequest, pull_model
from v4cli.cli.upkeep import remove
from v4cli.errors import ModelError, ResourceError
from v4cli.paths import NANO
from v4cli.store import library
from v4cli.store.library import disk_bytes, only_model
from v4cli.store.store import MANIFEST, Manifest

V4 = [sys.executable, str(Path(__file__).with_name("measuring_little.py"))]
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


@pytest.fixture
def v4(v4_inside, monkeypatch):
    """v4(home, argument, ...): what it ends with and prints; of the machine it measures little."""
    for name, value in {"PROBE_RAM": 16 << 20, "PROBE_DISK": 8 << 20, "PROBE_SECONDS": 0.02}.items():
        monkeypatch.setattr(hardware, name, value)

    def run(home, *args):
        monkeypatch.setenv("V4_HOME", str(home))
        return v4_inside(*args)

    return run


def flip(path):
    data = bytearray(path.read_bytes())
    data[random.Random(1).randrange(len(data))] ^= 16
    path.write_bytes(data)


def test_ls_tells_every_state(v4, home):
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
    (models / "other").mkdir()
    (models / "other" / "V4.gguf").write_bytes(b"GGUF")
    rows = {row["name"]: row for row in json.loads(v4(home, "ls", "--json").out)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "nano": "complete",
        "little": "complete",
        "gone": "damaged: head.safetensors is missing",
        "half": "incomplete, 9 of 10 parts",
        "hurt": rows["hurt"]["state"],
        "newer": "layout 7, this version reads 2",
        "short": "damaged: embed.safetensors has the wrong size",
        "left": "leftover of an interrupted pull",
        "other": "not a model that v4 made",
    }
    assert rows["hurt"]["state"].startswith("damaged: manifest.json: ")
    little = rows["little"]
    assert little["bytes"] == sum(path.stat().st_size for path in (models / "little").iterdir())
    assert (little["quant"], little["source"], rows["left"]["bytes"]) == ("native", "test/model@abc", 5)
    assert little["parameters"] > 5e6 and little["complete"] and not rows["half"]["complete"]
    for command, code, says in (("rm", 3, "not v4's to delete"), ("pull", 2, "does not tell what it was made from")):
        done = v4(home, command, "other")
        assert done.code == code and says in done.err and (models / "other" / "V4.gguf").exists()
    refused = v4(home, "verify", "newer")
    assert refused.code == 3 and "upgrade" in refused.err
    assert v4(home, "pull", "newer").code == 3 and (models / "newer" / MANIFEST).exists()
    text = v4(home, "ls").out
    assert len(text.splitlines()) == 1 + len(rows) and "incomplete, 9 of 10 parts" in text


def test_show_a_store(v4, home):
    about = json.loads(v4(home, "show", "little", "--json").out)
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
    assert v4(home, "show").out == v4(home, "show", "little").out  # the one model pulled is the default
    by_path = json.loads(v4(home, "show", folder, "--json").out)
    assert by_path | {"model": "little"} == about


def test_show_a_release_that_is_not_here(v4, home):
    about = json.loads(v4(home, "show", "flash", "--json").out)
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
    assert library.model_folder("little") == home / "models" / "little"
    assert library.model_folder("./little") == Path("little")
    assert library.model_folder("nano") == paths.NANO
    for name in ("", "nano", "a/b", "..", ".x", "/"):
        assert library.named_folder(name) is None
    for name, hint in (("flash", "v4 pull flash"), ("nothing", "v4 ls"), ("", "v4 ls")):
        with pytest.raises(ModelError) as caught:
            library.model_folder(name)
        assert hint in caught.value.hint


def test_verify_names_the_damage_and_its_command_mends_it(v4, source, tmp_path):
    """The printed command is run as it stands."""
    assert v4(tmp_path, "pull", source, "--name", "made").code == 0
    folder = tmp_path / "models" / "made"
    fine = v4(tmp_path, "verify", "made")
    assert fine.code == 0 and "nothing is wrong" in fine.out
    names = ["layer-001.safetensors", "config.json", MANIFEST]
    for name in names:
        flip(folder / name)
    found = v4(tmp_path, "verify", "made", "--json")
    assert found.code == 3 and "not as recorded" in found.err
    damage = {item["file"]: item["repair"] for item in json.loads(found.out)["damage"]}
    assert sorted(damage) == sorted(names)
    for name in names:
        command = shlex.split(damage[name])
        assert command[0] == "v4" and v4(tmp_path, *command[1:]).code == 0
    assert v4(tmp_path, "verify", "made").code == 0


def forget_tokenizer(folder):
    """As stores were made of sources without one."""
    manifest = Manifest.load(folder)
    del manifest.files["tokenizer.json"]
    manifest.save(folder)
    (folder / "tokenizer.json").unlink()


def test_a_store_without_tokenizer_is_not_complete_and_is_mended(v4, source, tmp_path):
    assert v4(tmp_path, "pull", source, "--name", "made").code == 0
    folder = tmp_path / "models" / "made"
    forget_tokenizer(folder)
    (row,) = [row for row in json.loads(v4(tmp_path, "ls", "--json").out) if row["name"] == "made"]
    assert not row["complete"] and row["state"] == "damaged: tokenizer.json is missing"
    shutil.rmtree(tmp_path / "models" / "little")
    assert only_model(tmp_path / "models") is None
    assert json.loads(v4(tmp_path, "show", "made", "--json").out)["state"] == row["state"]
    ran = v4(tmp_path, "run", "-m", "made", "hi")
    assert ran.code == 3 and "tokenizer.json is missing" in ran.err and "v4 verify" in ran.err
    found = v4(tmp_path, "verify", "made", "--json")
    (damage,) = json.loads(found.out)["damage"]
    assert found.code == 3 and (damage["file"], damage["problem"]) == ("tokenizer.json", "is missing")
    assert v4(tmp_path, *shlex.split(damage["repair"])[1:]).code == 0
    assert v4(tmp_path, "verify", "made").code == 0
    forget_tokenizer(folder)
    assert v4(tmp_path, "pull", "made").code == 0 and (folder / "tokenizer.json").is_file()


def test_verify_opens_small_files_as_run_does(v4, source, tmp_path):
    assert v4(tmp_path, "pull", source, "--name", "made").code == 0
    folder = tmp_path / "models" / "made"
    manifest, text = Manifest.load(folder), b"{}"
    (folder / "tokenizer.json").write_bytes(text)
    manifest.files["tokenizer.json"] = {"bytes": 2, "sha256": hashlib.sha256(text).hexdigest()}
    manifest.save(folder)
    for target in ("made", shutil.copytree(source, tmp_path / "official")):
        if target != "made":
            (target / "tokenizer.json").write_bytes(text)
        found = v4(tmp_path, "verify", target, "--json")
        (damage,) = json.loads(found.out)["damage"]
        assert found.code == 3 and damage["file"] == "tokenizer.json" and "model" in damage["problem"]
    (tmp_path / "official" / "tokenizer.json").unlink()
    about = json.loads(v4(tmp_path, "show", tmp_path / "official", "--json").out)
    assert about["state"] == "incomplete: tokenizer.json is missing"


def test_pull_goes_on_with_any_name_that_ls_lists(v4, source, tmp_path):
    assert v4(tmp_path, "pull", source, "--name", "mine", "--quant", "q4").code == 0
    folder = tmp_path / "models" / "mine"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = Manifest.load(folder)
    manifest.complete = False
    for name in [name for name in manifest.files if name.startswith("layer")]:
        (folder / name).unlink()
        del manifest.files[name]
    manifest.save(folder)
    refused = v4(tmp_path, "run", "-m", "mine", "hi")
    assert refused.code == 3 and "incomplete, 2 of 10 parts" in refused.err
    command = refused.err.split("hint: ")[1].removesuffix(" goes on\n")
    assert command == f"v4 pull {source} --name mine"
    for wrong, says in (("--quant", "is q4, not native"), ("--revision", "made from the folder")):
        done = v4(tmp_path, "pull", "mine", wrong, "native")
        assert done.code == 2 and says in done.err
    dry = v4(tmp_path, "pull", "mine", "--dry-run", "--json")
    real = v4(tmp_path, "pull", "mine", "--json")
    assert (dry.code, real.code) == (0, 0)
    assert json.loads(dry.out)["written"] == json.loads(real.out)["written"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    again = v4(tmp_path, "pull", "mine")
    assert again.code == 0 and "nothing to do" in again.err
    assert json.loads(v4(tmp_path, "pull", "mine", "--dry-run", "--json").out)["peak"] == 0


def test_a_dry_run_that_does_not_fit_prints_the_plan_and_exits_4(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("V4_HOME", str(tmp_path / "new"))
    monkeypatch.setattr("v4cli.hardware.disk_free", lambda folder: 1 << 30)
    for as_json, says in ((False, "does not fit"), (True, '"fits": false')):
        with pytest.raises(ResourceError, match="bytes of disk needed"):
            pull_model(PullRequest("flash", None, None, None, True, False, None, 4, as_json))
        assert says in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["file", "below a file", "dangling link"])
def test_where_nothing_can_be_written_pull_doctor_and_plan_say_so(v4, source, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    home = tmp_path / {"file": "file", "below a file": "file/x", "dangling link": "link"}[place]
    for arguments in (("pull", source, "--name", "m"), ("pull", source, "--name", "m", "--dry-run")):
        done = v4(home, *arguments)
        assert done.code == 4 and "not a folder" in done.err and "V4_HOME" in done.err
    checks = {row["check"]: row for row in json.loads(v4(home, "doctor", "--json").out)}
    assert checks["disk"]["status"] == "fail" and str(home) in checks["disk"]["detail"]
    assert "V4_HOME" in checks["disk"]["fix"]
    planned = v4(home, "plan", "flash", "--ram", "64G", "--vram", "0")
    assert planned.code == 0 and "no model can be brought to" in planned.out
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_permission_is_noticed(tmp_path, monkeypatch):
    def refused(**_):
        raise PermissionError(13, "Permission denied")

    assert hardware.not_writable(tmp_path / "a" / "b") is None and not (tmp_path / "a").exists()
    monkeypatch.setattr("v4cli.hardware.tempfile.TemporaryFile", refused)
    assert "Permission denied" in hardware.not_writable(tmp_path / "a" / "b")


def test_doctor_speaks_of_the_disk_of_the_models_not_of_home(home, monkeypatch):
    asked = []

    def usage(path):
        asked.append(Path(path))
        return shutil._ntuple_diskusage(1 << 40, 0, 1 << 39)

    monkeypatch.setenv("V4_HOME", str(home / "new"))
    monkeypatch.setattr("v4cli.cli.doctor.shutil.disk_usage", usage)
    name, status, detail, _ = doctor._disk()
    assert (name, status, asked) == ("disk", "ok", [home]) and str(home / "new" / "models") in detail


@pytest.mark.parametrize(
    ("has_bwrap", "switches", "fix"),
    [
        (False, {}, "apt install bubblewrap"),
        (True, {"kernel/unprivileged_userns_clone": "0\n"}, "sysctl -w kernel.unprivileged_userns_clone=1"),
        (True, {"user/max_user_namespaces": "0\n"}, "sysctl -w user.max_user_namespaces="),
        (True, {"kernel/apparmor_restrict_unprivileged_userns": "1\n", "user/max_user_namespaces": "9\n"},
         "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
        (True, {}, "container"),
    ],
)  # fmt: skip
def test_doctor_tells_a_missing_bubblewrap_from_a_kernel_that_forbids_it(monkeypatch, has_bwrap, switches, fix):
    monkeypatch.setattr("v4cli.agent.sandbox.missing", lambda: "no sandbox")
    monkeypatch.setattr("v4cli.cli.doctor.shutil.which", lambda name: "/usr/bin/bwrap" if has_bwrap else None)
    monkeypatch.setattr(hardware, "system_text", lambda path: switches.get(path.removeprefix("/proc/sys/"), ""))
    _, status, detail, told = doctor._sandbox()
    assert status == "warn" and "no sandbox" in detail and fix in told
    assert ("apt install" in told) != has_bwrap


def test_verify_checkpoints_says_what_it_cannot_know(v4, home):
    done = v4(home, "verify", "nano")
    assert done.code == 0 and "no checksums" in done.out
    broken = shutil.copytree(NANO, home / "broken")
    shard = next(broken.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert v4(home, "verify", broken).code == 3


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


def test_rm_asks_and_deletes_pulled_models_only(v4, home, monkeypatch):
    folder = home / "models" / "little"
    refused = v4(home, "rm", "little")
    assert refused.code == 2 and "--yes" in refused.err and folder.is_dir()
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


def test_rm_waits_for_no_pull_and_keeps_what_a_link_points_to(v4, home):
    models = home / "models"
    with FileLock(models / ".little.lock"):
        busy = v4(home, "rm", "little", "-y")
    assert busy.code == 3 and "running" in busy.err and (models / "little" / MANIFEST).exists()
    (models / "link").symlink_to(models / "little")
    assert v4(home, "rm", "link", "-y").code == 0
    assert not (models / "link").exists() and (models / "little" / MANIFEST).exists()
    (models / "little" / MANIFEST).unlink()  # as a crash within rm leaves it
    assert v4(home, "rm", "little", "-y").code == 0 and not (models / "little").exists()


def test_plan_a_release_on_this_machine_and_others(v4, home):
    done = v4(home, "plan", "flash", "--ram", "20G", "--vram", "0", "--ctx", "1048576", "--json")
    plan = json.loads(done.out)
    assert plan["quant"] == "native" and plan["state"] == "not on this machine"
    tiers = {tier["tier"]: tier for tier in plan["tiers"]}
    assert tiers["RAM"]["budget"] == 20 << 30
    entries = 3_688_172_544  # of the official layout; rows to spare and tails add a little
    assert entries < tiers["RAM"]["holds"]["KV"] < 1.01 * entries
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
        (["little", "--ram", "12"], 2, "--ram 12G"),
        (["little", "--ram", "0"], 2, "no memory"),
        (["little", "--vram", "8"], 2, "--vram 8G"),
        (["little", "--ctx", "0"], 2, "4k"),
        (["little", "--ctx", "-5"], 2, "4k"),
        (["little", "--ctx", "many"], 2, "4k"),
        (["little", "--vram", "-3"], 2, "--vram"),
        (["little", "--quant", "q1"], 2, "q4"),
        (["nano", "--ctx", "1048577"], 2, "--ctx 1048576"),
        (["nowhere"], 3, "v4 ls"),
    ],
)
def test_plan_says_what_would_fit(v4, home, args, code, says):
    done = v4(home, "plan", *args)
    assert done.code == code and says in done.err
    assert "Traceback" not in done.err and done.out == ""


def test_the_hinted_context_is_the_longest_that_fits(v4, home):
    failed = v4(home, "plan", "little", "--ram", "340M", "--vram", "0", "--ctx", "1048576")
    longest = int(failed.err.split("--ctx ")[1].split()[0])
    assert failed.code == 4 and longest > 1000
    fits, short = (
        v4(home, "plan", "little", "--ram", "340M", "--vram", "0", "--ctx", n) for n in (longest, longest + 1)
    )
    assert fits.code == 0 and short.code == 4
    assert "64 GB + RTX 4090" in fits.out and "tokens/s" in fits.out
