"""Pulling: what comes out, what is refused, and what is said about it."""

import contextlib
import json
import shutil
import subprocess

import pytest
from hub_server import Fault
from pulling import REPO, Listener, command, contents, leftovers, v4
from tiny import STORE_LIKE, random_checkpoint

from v4cli.errors import ModelError, UsageError
from v4cli.pull.hub import FolderSource
from v4cli.pull.pull import STAGING, pull
from v4cli.pull.sizes import plan_known
from v4cli.store.checkpoint import INDEX, Checkpoint
from v4cli.store.recipe import RECIPES
from v4cli.store.store import MANIFEST, SMALL, Manifest, Store

# What comes out


def test_folder_becomes_a_store_and_is_left_alone(official, reference):
    before = {p.name: p.stat().st_mtime_ns for p in official.iterdir()}
    store = Store.open(reference)
    assert {p.name: p.stat().st_mtime_ns for p in official.iterdir()} == before
    assert set(store.manifest.files) == {p.file for p in store.parts.values()} | {
        "config.json", "generation_config.json", "tokenizer.json"}  # fmt: skip
    assert (reference / "tokenizer.json").read_bytes() == (official / "tokenizer.json").read_bytes()
    assert not leftovers(reference)


def test_hub_gives_the_same_store_and_progress_adds_up(client, hub, reference, tmp_path, monkeypatch):
    monkeypatch.setattr("v4cli.pull.official.RATE_FROM", 1)
    listener = Listener()
    plan = pull(client(), tmp_path / "m", reporter=listener)
    assert contents(tmp_path / "m") == contents(reference) and not leftovers(tmp_path / "m")
    assert listener.done == listener.sizes and listener.plans == [plan] and plan.rate > 0
    assert plan.fetched == plan.read == plan.freed == sum(n for name, n in listener.sizes.items() if "model-" in name)
    assert plan.written == sum(n for name, n in listener.sizes.items() if "model-" not in name)
    source = Manifest.load(tmp_path / "m").source
    assert (source["repo"], source["revision"]) == (REPO, hub.repos[REPO].commit)
    assert all(len(about["sha256"]) == 64 for name, about in source["files"].items() if name.endswith(".safetensors"))
    assert pull(client(), tmp_path / "m", reporter=listener) is None and "nothing to do" in listener.lines[-1]


def bytes_in(folder, pattern):
    """Bytes of the files there now, each once, though others rename and remove them meanwhile."""
    sizes = {}
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            sizes[stat.st_ino] = stat.st_size
    return sum(sizes.values())


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_disk_holds_no_more_than_planned(client, official, tmp_path, jobs):
    """Sampled whenever a shard or part is finished; shards held are at most jobs + 1."""
    dest, most, held = tmp_path / "m", 0, 0

    def sample(name):
        nonlocal most, held
        most = max(most, bytes_in(dest, "*.safetensors*") + bytes_in(dest / STAGING, "*.safetensors"))
        held = max(held, len(list((dest / STAGING).glob("*.safetensors"))))

    plan = pull(client(), dest, reporter=Listener(sample), jobs=jobs)
    assert held <= jobs + 1 and most <= plan.peak <= plan.written + plan.fetched


def test_parts_that_need_more_shards_than_the_limit_are_made_all_the_same(reference, tmp_path, official):
    scattered = random_checkpoint(tmp_path / "scattered", STORE_LIKE, shards=12)
    shutil.copy(official / "tokenizer.json", scattered)
    pull(FolderSource(scattered), tmp_path / "m", reporter=Listener(), jobs=1)
    assert contents(tmp_path / "m") == contents(reference)


def test_single_file_checkpoints_work(tmp_path):
    folder = random_checkpoint(tmp_path / "single", STORE_LIKE, shards=1)
    (folder / INDEX).unlink()
    next(folder.glob("*.safetensors")).rename(folder / "model.safetensors")
    pull(FolderSource(folder), tmp_path / "m", reporter=Listener())
    assert Store.open(tmp_path / "m").manifest.complete


def test_kept_source_is_an_official_checkpoint(client, tmp_path):
    plan = pull(client(), tmp_path / "m", reporter=Listener(), keep_source=True)
    small = sum((tmp_path / "m" / name).stat().st_size for name in SMALL if (tmp_path / "m" / name).exists())
    assert plan.freed == 0 and plan.peak == plan.fetched + plan.written + small
    official = Checkpoint.open(tmp_path / "m" / STAGING)
    pull(client(), tmp_path / "m", reporter=Listener())
    pull(client(), tmp_path / "m", reporter=Listener(), only="layer-002")
    assert Store.open(tmp_path / "m") and Checkpoint.open(tmp_path / "m" / STAGING).places == official.places


# Refusals


def test_another_quantization_revision_or_folder_is_refused(client, official, reference, tmp_path):
    dest = shutil.copytree(reference, tmp_path / "m")
    with pytest.raises(UsageError, match="is native, not q4") as caught:
        pull(FolderSource(official), dest, RECIPES["q4"], reporter=Listener())
    assert "another name" in caught.value.hint and "v4 rm m" in caught.value.hint
    with pytest.raises(UsageError, match="was made from"):
        pull(client(), dest, reporter=Listener())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a store"):
        pull(client(), tmp_path / "full", reporter=Listener())
    with pytest.raises(UsageError, match="no store to repair"):
        pull(client(), tmp_path / "new", reporter=Listener(), only="embed")
    with pytest.raises(UsageError, match="has no part"):
        pull(FolderSource(official), dest, reporter=Listener(), only="layer-099")


def test_sources_that_are_no_v4_checkpoint_are_refused_before_anything_is_written(official, tmp_path):
    def broken(name, change):
        folder = shutil.copytree(official, tmp_path / name)
        change(folder)
        with pytest.raises(ModelError) as caught:
            pull(FolderSource(folder), tmp_path / "m", reporter=Listener())
        assert "\n" not in str(caught.value) and not (tmp_path / "m" / MANIFEST).exists()
        return str(caught.value)

    def index(change):
        def edit(folder):
            listing = json.loads((folder / INDEX).read_text())
            change(listing["weight_map"])
            (folder / INDEX).write_text(json.dumps(listing))

        return edit

    assert "no config.json" in broken("a", lambda f: (f / "config.json").unlink())
    assert "V4.1" in broken("b", lambda f: (f / "config.json").write_text('{"model_type": "deepseek_v41"}'))
    assert "neither" in broken("c", lambda f: (f / INDEX).unlink())
    assert "weight_map" in broken("d", lambda f: (f / INDEX).write_text("[]"))
    assert "head.weight is missing" in broken("e", index(lambda m: m.pop("head.weight")))
    assert "does not belong" in broken("f", index(lambda m: m.update(stray=m["head.weight"])))
    assert "shard gone is missing" in broken("g", index(lambda m: m.update({"head.weight": "gone"})))


def test_shards_that_contradict_the_index_are_refused(official, tmp_path):
    folder = shutil.copytree(official, tmp_path / "bad")
    listing = json.loads((folder / INDEX).read_text())
    listing["weight_map"]["norm.weight"] = listing["weight_map"]["embed.weight"]
    (folder / INDEX).write_text(json.dumps(listing))
    with pytest.raises(ModelError, match=r"norm\.weight is missing"):
        pull(FolderSource(folder), tmp_path / "m", reporter=Listener())


@pytest.mark.parametrize(
    ("prepare", "args", "code", "says"),
    [
        (lambda hub: setattr(hub.repos[REPO], "token", "t"), [REPO], 5, "HF_TOKEN"),
        (lambda hub: None, [f"{REPO}@v9"], 3, "no such revision"),
        (lambda hub: hub.faults.update(api=[Fault("status", 503, times=3)]), [REPO], 5, "503"),
        (lambda hub: None, ["no-such-model"], 2, "neither a model"),
        (lambda hub: None, [REPO, "--quant", "q9"], 2, "native, q4"),
        (lambda hub: None, ["nano", "--name", "nano"], 2, "--name"),
    ],
)
def test_exit_codes(hub, tmp_path, prepare, args, code, says):
    prepare(hub)
    done = v4(hub, tmp_path, "pull", *args)
    assert done.returncode == code and says in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


# Plans and the terminal


def test_dry_run_of_releases_needs_no_network_and_agrees_with_the_spec(tmp_path):
    for name, payload in (
        ("flash-preview", 159_609_485_896),
        ("flash", 166_878_536_440),
        ("pro-preview", 864_704_792_696),
        ("pro", 892_727_580_904),
    ):
        plan = plan_known(name, tmp_path / "m")
        assert plan.fetched == plan.freed == payload
        assert plan.shards == {"flash": 48, "flash-preview": 46, "pro": 66, "pro-preview": 64}[name]
        assert plan.written < plan.peak < plan.written + 6 * payload / (plan.shards - 4)


def test_plans_of_releases_follow_the_recipe_and_what_is_asked_for(tmp_path):
    native, four_bits = (plan_known("flash-preview", tmp_path / "m", recipe) for recipe in (None, RECIPES["q4"]))
    assert native.quant == "native" and native.written > four_bits.written
    one = plan_known("flash-preview", tmp_path / "m", only="layer-007-experts")
    assert (one.parts, one.shards) == (1, 1) and one.written > 256 * 13_369_344


def test_command_says_what_it_will_do_and_what_it_did(hub, tmp_path, reference):
    dry = v4(hub, tmp_path, "pull", REPO, "--name", "m", "--dry-run", "--json")
    plan = json.loads(dry.stdout)
    assert dry.returncode == 0 and plan["fits"] and not (tmp_path / "v4" / "models" / "m").exists()
    ready = command(hub, tmp_path, "download", REPO, "--name", "m")
    ready["env"] |= {"FORCE_COLOR": "1", "NO_COLOR": ""}
    done = subprocess.run(**ready, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("m: ")
    assert "\r" not in done.stderr, "no line changes in a pipe, coloured or not"
    assert f"from {REPO}@{plan['revision'][:8]}: fetch" in done.stderr
    assert contents(tmp_path / "v4" / "models" / "m") == contents(reference)
    known = v4(hub, tmp_path, "pull", "flash", "--dry-run")
    assert known.returncode == (4 if "does not fit" in known.stdout else 0)
    assert "deepseek-ai/DeepSeek-V4-Flash-0731: fetch 155.42 GiB" in known.stdout
