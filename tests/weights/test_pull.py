"""Pulling: stores are the same however often and wherever the pull was stopped, and failures say what to do."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest
from hub_server import Fault, quick_client, serving
from safetensors.torch import load_file, save_file
from tiny import FLASH_LIKE, random_checkpoint

from v4cli.config import V4Config
from v4cli.errors import Interrupted, ModelError, NetworkError, ResourceError, UsageError
from v4cli.weights import pull_plan
from v4cli.weights import store as store_module
from v4cli.weights.checkpoint import INDEX, Checkpoint
from v4cli.weights.hub import FolderSource, HubSource
from v4cli.weights.pull import REPAIR, STAGING, plan_pull, pull
from v4cli.weights.pull_plan import plan_known
from v4cli.weights.store import MANIFEST, MANIFEST_COPY, Manifest, Store, layout

SHAPE = FLASH_LIKE | {"head_dim": 128, "num_hidden_layers": 4, "compress_ratios": [0, 4, 128, 4], "vocab_size": 256}
REPO = "org/model"
V4 = [sys.executable, "-m", "v4cli"]
Usage = namedtuple("Usage", "total used free")


class Listener:
    """A reporter that remembers, and may interfere."""

    def __init__(self, on_finish=lambda name: None):
        self.lines, self.plans, self.sizes, self.done, self.on_finish = [], [], {}, {}, on_finish

    def say(self, text):
        self.lines.append(text)

    def plan(self, plan):
        self.plans.append(plan)

    def start(self, name, n_bytes, fetching):
        self.sizes[name], self.done[name] = n_bytes, 0

    def advance(self, name, n_bytes):
        self.done[name] += n_bytes

    def finish(self, name):
        self.on_finish(name)


def by_block(path):
    """Divide a checkpoint as the official ones are: embed, one shard per layer, the rest."""
    tensors = {name: value for shard in path.glob("*.safetensors") for name, value in load_file(shard).items()}
    for shard in path.glob("*.safetensors"):
        shard.unlink()
    groups = {}
    for part in layout(V4Config.load(path), "native", False).values():
        groups.setdefault(part.name.removesuffix("-experts"), []).extend(part.sources)
    weight_map = {}
    for i, names in enumerate(groups.values(), 1):
        file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: tensors[name] for name in names}, path / file)
        weight_map |= dict.fromkeys(names, file)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """An official checkpoint, one block a shard, with a tokenizer."""
    path = by_block(random_checkpoint(tmp_path_factory.mktemp("official"), SHAPE, shards=1))
    (path / "tokenizer.json").write_text(json.dumps({"model": "x" * 30_000}))
    return path


@pytest.fixture(scope="module")
def reference(official, tmp_path_factory):
    """The store of it, made from the folder in one go."""
    dest = tmp_path_factory.mktemp("reference") / "m"
    pull(FolderSource(official), dest, reporter=Listener())
    return dest


@pytest.fixture(scope="module")
def hub(official):
    with serving() as running:
        running.add(REPO, official)
        yield running


@pytest.fixture(autouse=True)
def calm(request):
    """No fault is left over from another test."""
    yield
    if "hub" in request.fixturenames:
        running = request.getfixturevalue("hub")
        running.faults.clear()
        running.asked.clear()
        running.rate, running.repos[REPO].token = float("inf"), None


@pytest.fixture
def client(hub, tmp_path, monkeypatch):
    """Makes sources of the hub, through the real client with an empty cache and short waits."""
    quick_client(monkeypatch, tmp_path)
    return lambda: HubSource(REPO, endpoint=hub.url)


def contents(folder):
    """Every file of a store; of manifests all but where it came from."""
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and "manifest" not in p.name}
    manifest = Manifest.load(folder)
    assert manifest == Manifest.load(folder, MANIFEST_COPY)
    return files, manifest.files, manifest.quant, manifest.complete


def leftovers(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(".") or p.suffix == ".tmp"]


def command(hub, home, *args):
    """Arguments and environment of a real `v4` process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"} | hub.environment(home)
    return {"args": [*V4, *map(str, args)], "env": environment, "stdin": subprocess.DEVNULL}


def v4(hub, home, *args):
    return subprocess.run(**command(hub, home, *args), capture_output=True, text=True, timeout=120)


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
    monkeypatch.setattr("v4cli.weights.pull.RATE_FROM", 1)
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


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_disk_holds_no_more_than_planned(client, official, tmp_path, jobs):
    """Sampled whenever a shard or part is finished; shards held are at most jobs + 1."""
    dest, most, held = tmp_path / "m", 0, 0

    def sample(name):
        nonlocal most, held
        most = max(most, sum(p.stat().st_size for p in dest.glob("*.safetensors*"))
                   + sum(p.stat().st_size for p in (dest / STAGING).glob("*.safetensors")))  # fmt: skip
        held = max(held, len(list((dest / STAGING).glob("*.safetensors"))))

    plan = pull(client(), dest, reporter=Listener(sample), jobs=jobs)
    assert held <= jobs + 1 and most <= plan.peak <= plan.written + plan.fetched


def test_parts_that_need_more_shards_than_the_limit_are_made_all_the_same(reference, tmp_path, official):
    scattered = random_checkpoint(tmp_path / "scattered", SHAPE, shards=12)
    shutil.copy(official / "tokenizer.json", scattered)
    pull(FolderSource(scattered), tmp_path / "m", reporter=Listener(), jobs=1)
    assert contents(tmp_path / "m") == contents(reference)


def test_single_file_checkpoints_work(tmp_path):
    folder = random_checkpoint(tmp_path / "single", SHAPE, shards=1)
    (folder / INDEX).unlink()
    next(folder.glob("*.safetensors")).rename(folder / "model.safetensors")
    pull(FolderSource(folder), tmp_path / "m", reporter=Listener())
    assert Store.open(tmp_path / "m").manifest.complete


def test_kept_source_is_an_official_checkpoint(client, tmp_path):
    plan = pull(client(), tmp_path / "m", reporter=Listener(), keep_source=True)
    assert plan.freed == 0 and plan.peak == plan.fetched + plan.written
    official = Checkpoint.open(tmp_path / "m" / STAGING)
    pull(client(), tmp_path / "m", reporter=Listener())
    pull(client(), tmp_path / "m", reporter=Listener(), only="layer-002")
    assert Store.open(tmp_path / "m") and Checkpoint.open(tmp_path / "m" / STAGING).places == official.places


# Stopping and going on


def test_download_errors_keep_what_is_finished(client, hub, reference, tmp_path):
    last = sorted(name for name in hub.repos[REPO].files if name.endswith(".safetensors"))[-1]
    hub.faults[last] = [Fault("status", 503, times=99)]
    with pytest.raises(NetworkError, match=last):
        pull(client(), tmp_path / "m", reporter=Listener(), jobs=1)
    unfinished = Manifest.load(tmp_path / "m")
    assert not unfinished.complete and "layer-003.safetensors" in unfinished.files
    with pytest.raises(ModelError, match="incomplete"):
        Store.open(tmp_path / "m")
    hub.faults.clear()
    hub.asked.clear()
    pull(client(), tmp_path / "m", reporter=Listener(), jobs=1)
    assert contents(tmp_path / "m") == contents(reference)
    assert {name for name, _ in hub.asked if name.endswith(".safetensors")} == {last}


@pytest.mark.parametrize("where", ["download", "conversion", "manifest"])
def test_full_disk_is_exit_4_and_gone_on_with(client, reference, tmp_path, monkeypatch, where):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "download":
            patch.setattr("v4cli.weights.transfer.Partial.flush", full)
        elif where == "conversion":
            patch.setattr("v4cli.weights.making.convert_part", full)
        else:
            patch.setattr("v4cli.weights.store.write_atomically", full)
        with pytest.raises(ResourceError, match="the disk is full"):
            pull(client(), tmp_path / "m", reporter=Listener())
    pull(client(), tmp_path / "m", reporter=Listener())
    assert contents(tmp_path / "m") == contents(reference)


def test_too_small_a_disk_is_refused_before_any_shard_comes(client, hub, tmp_path, monkeypatch):
    need = plan_pull(client(), tmp_path / "m", reporter=Listener()).peak
    assert not (tmp_path / "m").exists()
    hub.asked.clear()
    monkeypatch.setattr(pull_plan.shutil, "disk_usage", lambda path: Usage(1 << 40, 0, need - 1))
    with pytest.raises(ResourceError, match="bytes of disk needed"):
        pull(client(), tmp_path / "m", reporter=Listener())
    assert not [name for name, _ in hub.asked if name.endswith(".safetensors")]
    monkeypatch.setattr(pull_plan.shutil, "disk_usage", lambda path: Usage(1 << 40, 0, need))
    pull(client(), tmp_path / "m", reporter=Listener())


def test_what_is_here_already_is_not_counted_again(client, hub, tmp_path):
    whole = plan_pull(client(), tmp_path / "m", reporter=Listener())
    last = sorted(name for name in hub.repos[REPO].files if name.endswith(".safetensors"))[-1]
    hub.faults[last] = [Fault("cut", 1000, times=99)]
    with pytest.raises(NetworkError):
        pull(client(), tmp_path / "m", reporter=Listener(), jobs=1)
    hub.faults.clear()
    size, have = len(hub.repos[REPO].files[last]), (tmp_path / "m" / STAGING / last).stat().st_size
    rest = plan_pull(client(), tmp_path / "m", reporter=Listener())
    assert have >= 1000 and rest.fetched == size - have and rest.written < whole.written / 4


def kill_until_done(hub, home, reference, n_kills, rng):
    """Kill pulls at random points, n_kills times; every store that gets finished is the reference."""
    dest, kills = home / "v4" / "models" / "m", 0
    whole = sum(map(len, hub.repos[REPO].files.values()))
    ready = command(hub, home, "pull", REPO, "--name", "m", "--jobs", "2")
    while True:
        process = subprocess.Popen(**ready, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        until, wait = hub.sent + rng.randrange(whole), rng.choice((0, 0, 0.1, 0.3))
        while process.poll() is None and kills < n_kills:
            if hub.sent >= until:
                time.sleep(wait)
                process.kill()
                break
            time.sleep(0.005)
        _, errors = process.communicate(timeout=300)
        if process.returncode == -signal.SIGKILL:
            kills += 1
            continue
        assert process.returncode == 0, errors
        assert contents(dest) == contents(reference) and not leftovers(dest)
        if kills >= n_kills:
            return
        shutil.rmtree(dest)


def test_killed_pulls_go_on_to_the_same_store(hub, reference, tmp_path):
    hub.rate = 4_000_000
    kill_until_done(hub, tmp_path, reference, 4, random.Random(1))


@pytest.mark.slow
def test_fifty_killed_pulls_go_on_to_the_same_store(hub, reference, tmp_path):
    hub.rate = 4_000_000
    kill_until_done(hub, tmp_path, reference, 50, random.Random(2))


def test_ctrl_c_ends_at_once_with_130_even_in_a_stall_and_the_same_command_goes_on(hub, reference, tmp_path):
    last = sorted(name for name in hub.repos[REPO].files if name.endswith(".safetensors"))[-1]
    hub.faults[last] = [Fault("stall", 5000)]
    ready = command(hub, tmp_path, "pull", REPO, "--name", "m", "--jobs", "1")
    ready["env"]["HF_HUB_DOWNLOAD_TIMEOUT"] = "100"
    ready["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where tests run in background
    process = subprocess.Popen(**ready, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while last not in [name for name, _ in hub.asked]:
        time.sleep(0.05)
    time.sleep(0.3)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - sent < 50
    assert "hint: run the same command again to go on" in errors and "Traceback" not in errors
    hub.asked.clear()
    done = v4(hub, tmp_path, "pull", REPO, "--name", "m", "--json")
    assert done.returncode == 0, done.stderr
    assert {"name": "m", "up_to_date": False}.items() <= json.loads(done.stdout).items()
    assert hub.gets(last) == ["bytes=5000-"]
    assert contents(tmp_path / "v4" / "models" / "m") == contents(reference)


def test_a_second_pull_waits_for_the_first(hub, reference, tmp_path):
    hub.rate = 1_000_000
    pair = []
    for _ in range(2):
        ready = command(hub, tmp_path, "pull", REPO, "--name", "m")
        pair.append(subprocess.Popen(**ready, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=120)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    waited = next(text for text in errors if "waiting for it" in text)
    assert "nothing to do" in waited and contents(tmp_path / "v4" / "models" / "m") == contents(reference)


def test_finished_stores_need_no_network_and_begun_ones_keep_their_revision(client, hub, official, reference, tmp_path):
    pull(client(), tmp_path / "whole", reporter=Listener())
    shard = sorted(name for name in hub.repos[REPO].files if name.endswith(".safetensors"))[3]
    hub.faults[shard] = [Fault("status", 503, times=99)]
    with pytest.raises(NetworkError):
        pull(client(), tmp_path / "begun", reporter=Listener(), jobs=1)
    hub.faults.clear()
    before = hub.repos[REPO].commit
    changed = shutil.copytree(official, tmp_path / "changed")
    (changed / "generation_config.json").write_text("{}")
    hub.add(REPO, changed)
    pull(client(), tmp_path / "begun", reporter=Listener())
    assert contents(tmp_path / "begun") == contents(reference)
    listener = Listener()
    unreachable = HubSource(REPO, endpoint="http://127.0.0.1:9")
    assert pull(unreachable, tmp_path / "whole", reporter=listener) is None and "nothing to do" in listener.lines[0]
    with pytest.raises(UsageError, match="was made from") as caught:
        pull(HubSource(REPO, "main", endpoint=hub.url), tmp_path / "whole", reporter=listener)
    assert f"--revision {before}" in caught.value.hint
    hub.add(REPO, official)


# Refusals


def test_another_quantization_revision_or_folder_is_refused(client, official, reference, tmp_path):
    dest = shutil.copytree(reference, tmp_path / "m")
    with pytest.raises(UsageError, match="is native, not q4") as caught:
        pull(FolderSource(official), dest, "q4", reporter=Listener())
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


# Repairs


def test_damage_is_repaired_part_by_part(client, hub, reference, tmp_path):
    dest = tmp_path / "m"
    pull(client(), dest, reporter=Listener())
    (dest / REPAIR).mkdir()  # of a repair that was killed
    (dest / REPAIR / "model-00001-of-00006.safetensors").write_bytes(b"half")
    for damaged in ("layer-002-experts.safetensors", "tokenizer.json"):
        data = bytearray((dest / damaged).read_bytes())
        data[len(data) // 2] ^= 1
        (dest / damaged).write_bytes(data)
        hub.asked.clear()
        listener = Listener()
        pull(client(), dest, reporter=listener, only=damaged.removesuffix(".safetensors"))
        assert contents(dest) == contents(reference) and not leftovers(dest) and listener.lines == []
        shards = {name for name, _ in hub.asked if name.endswith(".safetensors")}
        assert len(shards) == (1 if damaged.startswith("layer") else 0)


def test_a_plain_pull_mends_what_is_missing_small_files_and_either_manifest(official, reference, tmp_path):
    dest = shutil.copytree(reference, tmp_path / "m")
    for harm in (
        lambda: (dest / "layer-001.safetensors").unlink(),
        lambda: (dest / "config.json").write_text("{}"),
        lambda: (dest / MANIFEST).write_text("{}"),
        lambda: (dest / MANIFEST_COPY).unlink(),
    ):
        harm()
        pull(FolderSource(official), dest, reporter=Listener())
        assert contents(dest) == contents(reference)
    (dest / MANIFEST).write_text("{}")
    (dest / MANIFEST_COPY).write_text("{}")
    with pytest.raises(ModelError, match="manifest is damaged") as caught:
        pull(FolderSource(official), dest, reporter=Listener())
    assert "v4 rm m" in caught.value.hint


def test_another_layout_is_repacked_from_what_is_here(client, official, reference, tmp_path, monkeypatch):
    """Interrupted after every single part; no source is asked for anything."""
    dest = shutil.copytree(reference, tmp_path / "m")
    monkeypatch.setattr(store_module, "LAYOUT", 2)
    monkeypatch.setattr(store_module, "ALIGN", 256)
    monkeypatch.setattr(store_module, "EXPERT_ORDER", store_module.EXPERT_ORDER[::-1])
    with pytest.raises(ModelError, match="has layout 1"):
        plan_pull(FolderSource(official), dest, reporter=Listener())
    interruptions = 0

    def interrupt(name):
        if not name.endswith(".safetensors"):
            raise KeyboardInterrupt

    while interruptions < 100:
        try:
            assert pull(FolderSource(official), dest, reporter=Listener(interrupt)) is None
            break
        except Interrupted:
            interruptions += 1
    fresh = tmp_path / "fresh"
    pull(FolderSource(official), fresh, reporter=Listener())
    assert interruptions > 5 and not leftovers(dest) and Store.open(dest)
    files, records, *rest = contents(dest)
    wanted, fresh_records, *fresh_rest = contents(fresh)
    assert files == wanted and rest == fresh_rest
    assert {n: r["sha256"] for n, r in records.items()} == {n: r["sha256"] for n, r in fresh_records.items()}


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
    native, four_bits = (plan_known("flash-preview", tmp_path / "m", quant) for quant in (None, "q4"))
    assert native.quant == "native" and native.written > four_bits.written
    one = plan_known("flash-preview", tmp_path / "m", only="layer-007-experts")
    assert (one.parts, one.shards) == (1, 1) and one.written > 256 * 13_369_344


def test_command_says_what_it_will_do_and_what_it_did(hub, tmp_path, reference):
    dry = v4(hub, tmp_path, "pull", REPO, "--name", "m", "--dry-run", "--json")
    plan = json.loads(dry.stdout)
    assert dry.returncode == 0 and plan["fits"] and not (tmp_path / "v4" / "models" / "m").exists()
    ready = command(hub, tmp_path, "download", REPO, "--name", "m")
    ready["env"] |= {"FORCE_COLOR": "1", "NO_COLOR": ""}  # as on a terminal
    done = subprocess.run(**ready, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("m: ") and "\x1b[" in done.stderr
    assert f"from {REPO}@{plan['revision'][:8]}: fetch" in done.stderr
    assert contents(tmp_path / "v4" / "models" / "m") == contents(reference)
    known = v4(hub, tmp_path, "pull", "flash", "--dry-run")
    assert known.returncode == 0 and "deepseek-ai/DeepSeek-V4-Flash-0731: fetch 155.42 GiB" in known.stdout
