"""Sources: the real client against a hub on loopback that fails in every way."""

import os
import threading
import time
from pathlib import Path

import pytest
from hub_server import Fault, quick_client, serving
from huggingface_hub import constants, hf_hub_download
from tiny import STORE_LIKE, random_checkpoint

from v4cli.errors import Interrupted, ModelError, NetworkError, UsageError
from v4cli.pull import transfer
from v4cli.pull.hub import FolderSource, HubSource, parse_target

SHARD = "model-00001-of-00001.safetensors"
BYTES = bytes(range(256)) * 1200


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running hub with one repository; the client's cache is empty and its waits are short."""
    quick_client(monkeypatch, tmp_path)
    folder = tmp_path / "official"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "deepseek_v4"}')
    (folder / SHARD).write_bytes(BYTES)
    with serving() as running:
        running.add("org/model", folder)
        yield running


def fetch(hub, tmp_path, name=SHARD, cancelled=lambda: False, **options):
    """Fetch one file into tmp_path/staging; returns its path and the progress told."""
    heard = []
    source = HubSource("org/model", endpoint=hub.url, **options)
    return source.fetch(name, tmp_path / "staging", heard.append, cancelled), sum(heard)


def test_listing_has_commit_sizes_and_checksums(hub):
    source = HubSource("org/model", endpoint=hub.url)
    assert source.revision == hub.repos["org/model"].commit
    assert source.files[SHARD].n_bytes == len(BYTES) and len(source.files[SHARD].sha256) == 64
    assert source.files["config.json"].sha256 is None and len(source.files["config.json"].git_oid) == 40
    assert HubSource("org/model", "main", endpoint=hub.url).revision == source.revision


@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_fetch_is_verified_and_counts_every_byte(hub, tmp_path, name):
    path, heard = fetch(hub, tmp_path, name)
    assert path.read_bytes() == hub.repos["org/model"].files[name] and heard == path.stat().st_size
    HubSource("org/model", endpoint=hub.url).drop(name, tmp_path / "staging")
    assert not path.exists()


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        ([Fault("status", 429, headers={"Retry-After": "0"})], ["", ""]),
        ([Fault("status", 503, times=3)], [""] * 4),
        ([Fault("status", 500), Fault("status", 408), Fault("status", 502)], [""] * 4),
        ([Fault("cut", 1000)], ["", "bytes=1000-"]),
        ([Fault("cut", 70000), Fault("cut", 70000)], ["", "bytes=70000-", "bytes=140000-"]),
        ([Fault("stall", 500)], ["", "bytes=500-"]),
        ([Fault("stall", 0)], ["", ""]),
        ([Fault("cut", 1000), Fault("whole")], ["", "bytes=1000-"]),
        ([Fault("corrupt", 5000)], ["", ""]),
        ([Fault("size", 10)], ["", ""]),
        ([Fault("size", -10)], ["", ""]),
    ],
)
def test_passing_troubles_are_survived(hub, tmp_path, faults, ranges, monkeypatch):
    if faults[0].kind == "stall":
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1.0)
    hub.faults[SHARD] = faults
    path, heard = fetch(hub, tmp_path)
    assert path.read_bytes() == BYTES and heard == len(BYTES)
    assert hub.gets(SHARD) == ranges


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("status", 503, times=99), "503"),
        (Fault("status", 429, times=99), "429"),
        (Fault("status", 429, 99, {"Retry-After": "9000"}), "wait 9000 s"),
        (Fault("cut", 0, times=99), "broke"),
        (Fault("stall", 0, times=99), "no answer"),
        (Fault("corrupt", 5000, times=99), "checksum"),
        (Fault("size", 10, times=99), f"{len(BYTES) + 10} bytes"),
        (Fault("size", -10, times=99), f"{len(BYTES) - 10} bytes"),
        (Fault("status", 418, 99), "418"),
    ],
)
def test_lasting_troubles_end_in_one_line_that_names_the_file(hub, tmp_path, fault, says, monkeypatch):
    if fault.kind == "stall":
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    hub.faults[SHARD] = [fault]
    with pytest.raises(NetworkError) as caught:
        fetch(hub, tmp_path)
    assert says in str(caught.value) and SHARD in str(caught.value) and "\n" not in str(caught.value)
    assert transfer.AGAIN in caught.value.hint or fault.value == 418


@pytest.mark.parametrize("left", [0, 1, 70000, len(BYTES) - 1, len(BYTES)])
def test_partial_files_are_gone_on_with(hub, tmp_path, left):
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / SHARD).write_bytes(BYTES[:left])
    assert HubSource("org/model", endpoint=hub.url).missing(SHARD, tmp_path / "staging") == len(BYTES) - left
    path, heard = fetch(hub, tmp_path)
    assert path.read_bytes() == BYTES and heard == len(BYTES)
    expected = [] if left == len(BYTES) else [f"bytes={left}-" if left else ""]
    assert hub.gets(SHARD) == expected


@pytest.mark.parametrize("left", [b"\0" * 70000, BYTES[:-1] + b"x", b"y" * (len(BYTES) + 5)])
def test_damaged_leftovers_are_thrown_away(hub, tmp_path, left):
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / SHARD).write_bytes(left)
    path, heard = fetch(hub, tmp_path)
    assert path.read_bytes() == BYTES and heard == len(BYTES)


def test_token_goes_to_the_hub_but_not_to_the_cdn(hub, tmp_path):
    hub.repos["org/model"].token = "secret"
    path, _ = fetch(hub, tmp_path, token="secret")
    assert path.read_bytes() == BYTES
    assert {sent for where, sent in hub.log if where.startswith("/cdn/")} == {False}
    assert {sent for where, sent in hub.log if not where.startswith("/cdn/")} == {True}


def test_refusals_say_what_to_do(hub, tmp_path):
    repo = hub.repos["org/model"]
    source = HubSource("org/model", endpoint=hub.url)
    assert source.files
    for repository, revision, error, says in (
        ("org/nothing", None, NetworkError, "401"),
        ("org/model", "v9", ModelError, "no such revision"),
        ("org/..model", None, UsageError, "not a repository name"),
    ):
        with pytest.raises(error, match=says) as caught:
            assert HubSource(repository, revision, endpoint=hub.url).files
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="no such repository"):
        assert HubSource("org/nothing", endpoint=hub.url, token="wrong").files
    repo.gated = True
    with pytest.raises(NetworkError, match=r"403 GatedRepo") as caught:
        source.fetch(SHARD, tmp_path, lambda n: None, lambda: False)
    assert "licence" in caught.value.hint
    repo.gated = False
    del repo.files[SHARD]
    with pytest.raises((ModelError, NetworkError), match="no such"):
        source.fetch(SHARD, tmp_path, lambda n: None, lambda: False)


def test_no_network_no_hub_and_offline(hub, tmp_path, monkeypatch):
    for endpoint, says in (
        ("http://127.0.0.1:9", "cannot connect"),
        ("http://no.such.host.invalid", "cannot connect"),
        ("nonsense", "org/model"),
    ):
        with pytest.raises(NetworkError, match=says):
            assert HubSource("org/model", endpoint=endpoint).files
    hub.faults["api"] = [Fault("status", 200, headers={"Content-Type": "text/html"})]
    with pytest.raises(NetworkError, match="not that of a hub"):
        assert HubSource("org/model", endpoint=hub.url).files
    hub.faults["api"] = [Fault("stall", times=99)]
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    with pytest.raises(NetworkError, match=r"no answer for 0\.3 s"):
        assert HubSource("org/model", endpoint=hub.url).files
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE"):
        assert HubSource("org/model", endpoint=hub.url).files


def test_headers_that_trickle_and_bodies_that_hardly_come_end_in_time(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr("v4cli.pull.hub.LIST_TRIES", 2)
    monkeypatch.setattr(transfer, "TRIES", 2)
    for name, ask in (("api", lambda: HubSource("org/model", endpoint=hub.url).files), (SHARD, None)):
        hub.faults[name] = [Fault("drip", times=99)]
        with pytest.raises(NetworkError, match=r"no whole answer within 0\.6 s"):
            ask() if ask else fetch(hub, tmp_path)
        hub.faults.clear()
    monkeypatch.setattr(transfer, "PACE_S", 0.2)
    source = HubSource("org/model", endpoint=hub.url)
    assert source.files
    hub.rate = 500
    with pytest.raises(NetworkError, match=r"only \d+ bytes in 0\.2 s"):
        source.fetch(SHARD, tmp_path, lambda n: None, lambda: False)


@pytest.mark.parametrize(
    "answer",
    [b"[]", b"{}", b'{"sha": 1, "siblings": []}', b'{"sha": "' + b"a" * 40 + b'", "siblings": [3]}',
     b'{"sha": "' + b"a" * 40 + b'", "siblings": [{"rfilename": "x", "size": -1}]}',
     b'{"sha": "' + b"a" * 40 + b'", "siblings": [{"rfilename": "x", "size": 1e99}]}', b"[" * 100_000, b"\xff\xfe"],
)  # fmt: skip
def test_answers_of_something_else_than_a_hub_are_one_line(hub, answer, monkeypatch):
    monkeypatch.setattr(HubSource, "_ask", lambda self: answer)
    with pytest.raises(NetworkError) as caught:
        assert HubSource("org/model", endpoint=hub.url).files
    assert "\n" not in str(caught.value) and "HF_ENDPOINT" in caught.value.hint


def test_the_users_cache_is_used_and_left_alone(hub, tmp_path, monkeypatch):
    cached = hf_hub_download("org/model", SHARD, endpoint=hub.url)
    hf_hub_download("org/model", "config.json", endpoint=hub.url)
    seen = len(hub.gets(SHARD))
    path, heard = fetch(hub, tmp_path)
    source = HubSource("org/model", endpoint=hub.url)
    assert str(path) == cached and heard == len(BYTES) and len(hub.gets(SHARD)) == seen
    assert source.missing(SHARD, tmp_path / "staging") == 0
    source.drop(SHARD, tmp_path / "staging")
    assert path.exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = HubSource("org/model", endpoint=hub.url)
    assert (offline.revision, offline.files[SHARD]) == (source.revision, source.files[SHARD])
    assert offline.fetch(SHARD, tmp_path / "staging", lambda n: None, lambda: False) == path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path.resolve().write_bytes(b"z" * len(BYTES))
    again, heard = fetch(hub, tmp_path)
    assert again == tmp_path / "staging" / SHARD and again.read_bytes() == BYTES and heard == len(BYTES)
    assert path.read_bytes() == b"z" * len(BYTES)


def test_cancelling_ends_waits_and_transfers_quickly(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "BACKOFF_S", 60)
    hub.faults[SHARD] = [Fault("status", 503)]
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    start = time.monotonic()
    with pytest.raises(Interrupted):
        fetch(hub, tmp_path, cancelled=stop.is_set)
    assert 0.2 < time.monotonic() - start < transfer.BACKOFF_S / 2
    hub.rate = 50_000
    staged = tmp_path / "staging" / SHARD
    with pytest.raises(Interrupted):
        fetch(hub, tmp_path, cancelled=lambda: staged.is_file() and staged.stat().st_size > 0)
    assert 0 < staged.stat().st_size < len(BYTES)


def test_folder_source_never_deletes_and_notices_changes(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    source = FolderSource(tmp_path)
    assert source.fetch("config.json", tmp_path, lambda n: None, lambda: False) == tmp_path / "config.json"
    source.drop("config.json", tmp_path)
    assert (tmp_path / "config.json").exists() and FolderSource(tmp_path).revision == source.revision
    (tmp_path / "config.json").write_text("{} ")
    assert FolderSource(tmp_path).revision != source.revision
    with pytest.raises(ModelError, match="changed while in use"):
        source.fetch("config.json", tmp_path, lambda n: None, lambda: False)
    with pytest.raises(ModelError, match="no such folder"):
        FolderSource(tmp_path / "nothing")


def test_other_weights_of_the_same_size_and_time_are_another_folder(tmp_path):
    folder, other = (random_checkpoint(tmp_path / str(seed), STORE_LIKE, seed=seed, shards=2) for seed in (1, 2))
    before = FolderSource(folder).revision
    for name in ("model-00002-of-00002.safetensors", "config.json"):
        path, data = folder / name, (folder / name).read_bytes()
        new = (other / name).read_bytes() if path.suffix == ".safetensors" else data.replace(b"10000", b"10001", 1)
        assert len(new) == len(data) and new != data
        for content, is_same in ((new, False), (data, True)):
            stat = path.stat()
            path.write_bytes(content)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            assert (FolderSource(folder).revision == before) is is_same


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_a_small_file_that_is_none_is_not_left_out_without_a_word(tmp_path, name):
    (tmp_path / name).symlink_to("gone")
    with pytest.raises(ModelError, match=f"{name}: not a regular file"):
        FolderSource(tmp_path)


def test_targets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "flash").mkdir()
    flash = parse_target("flash")
    assert (flash.name, flash.place) == ("flash", "deepseek-ai/DeepSeek-V4-Flash-0731")
    assert parse_target("flash@abc").revision == parse_target("flash", "abc").revision == "abc"
    assert parse_target("./flash").place == Path("flash")
    assert parse_target("org/model@v1").place == "org/model" and parse_target("org/model@v1").revision == "v1"
    assert parse_target("deepseek-ai/DeepSeek-V4-Pro").name == "pro-preview"
    assert parse_target("here").name == "here"
    assert parse_target("nano").name == "nano-store"
    for text, revision in (("nothing", None), ("a/b/c", None), ("org/model@", None), ("here", "v1"), ("a/b@c", "d")):
        with pytest.raises(UsageError):
            parse_target(text, revision)
