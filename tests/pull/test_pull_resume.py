"""Stores are the same however often and wherever the pull was stopped, and damage is mended part by part."""

import errno
import json
import random
import shutil
import signal
import subprocess
import time

import pytest
from hub_server import Fault
from pulling import REPO, Listener, Usage, command, contents, leftovers, v4

from v4cli import hardware
from v4cli.errors import Interrupted, ModelError, NetworkError, ResourceError, UsageError
from v4cli.pull.hub import FolderSource, HubSource
from v4cli.pull.pull import REPAIR, STAGING, plan_pull, pull
from v4cli.store import parts
from v4cli.store import store as store_module
from v4cli.store.store import MANIFEST, MANIFEST_COPY, Manifest, Store

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
            patch.setattr("v4cli.pull.transfer.Partial.flush", full)
        elif where == "conversion":
            patch.setattr("v4cli.pull.making.convert_part", full)
        else:
            patch.setattr("v4cli.store.store.write_atomically", full)
        with pytest.raises(ResourceError, match="the disk is full"):
            pull(client(), tmp_path / "m", reporter=Listener())
    pull(client(), tmp_path / "m", reporter=Listener())
    assert contents(tmp_path / "m") == contents(reference)


def test_too_small_a_disk_is_refused_before_any_shard_comes(client, hub, tmp_path, monkeypatch):
    need = plan_pull(client(), tmp_path / "m", reporter=Listener()).peak
    assert not (tmp_path / "m").exists()
    hub.asked.clear()
    monkeypatch.setattr(hardware.shutil, "disk_usage", lambda path: Usage(1 << 40, 0, need - 1))
    with pytest.raises(ResourceError, match="bytes of disk needed"):
        pull(client(), tmp_path / "m", reporter=Listener())
    assert not [name for name, _ in hub.asked if name.endswith(".safetensors")]
    monkeypatch.setattr(hardware.shutil, "disk_usage", lambda path: Usage(1 << 40, 0, need))
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
    monkeypatch.setattr(store_module, "LAYOUT", 3)
    monkeypatch.setattr(parts, "ALIGN", 256)
    monkeypatch.setattr(parts, "EXPERT_ORDER", parts.EXPERT_ORDER[::-1])
    with pytest.raises(ModelError, match="has layout 2"):
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
