"""Stored prefixes: exact continuation, sharing, budgets, damage, crashes, and carrying them elsewhere."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny import SMALL, random_checkpoint
from v4kernels import BACKENDS, native

from v4cli.cache import archive, kvfile
from v4cli.cache.prefixes import CHUNK, Folder, remove, stored, trim
from v4cli.engine.engine import Engine
from v4cli.engine.sampler import Sampling
from v4cli.errors import SnapshotError, UsageError

SHAPE = SMALL | {
    "head_dim": 128, "hidden_size": 128, "num_hidden_layers": 3, "compress_ratios": [0, 4, 128], "index_topk": 8,
    "num_attention_heads": 2, "o_groups": 1, "q_lora_rank": 64, "o_lora_rank": 64, "index_n_heads": 2,
}  # fmt: skip
IDS = np.random.default_rng(3).integers(0, 512, 6 * CHUNK).tolist()


def open_engine(folder, backend="cpu", numerics=None):
    if backend == "cpu" and not native.available():
        pytest.skip(native.reason())
    return Engine.open(folder, backend, numerics)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("m") / "model", SHAPE, seed=4, shards=1)


@pytest.fixture(scope="module")
def engine(model):
    return open_engine(model)


@pytest.fixture
def prefixes(engine, tmp_path):
    return engine.prefixes(tmp_path / "cache", 1 << 30, 1 << 30)


def session(engine, prefixes):
    return engine.session(prefixes=prefixes, worth_s=0.0)


def stored_at(engine, prefixes, ids, anchors=()):
    made = session(engine, prefixes)
    made.sync(ids, anchors=anchors)
    return made


def imported_by(engine, path, prefixes):
    return archive.read(path, prefixes, engine.config, engine.model.new_state())


def greedy(session, n):
    return [step.token for step in session.generate(Sampling(temperature=0.0), n)]


# What comes back


@pytest.mark.parametrize("backend, numerics", [*((backend, None) for backend in BACKENDS), ("reference", "official")])
def test_save_and_load_continue_with_the_same_bytes(model, tmp_path, backend, numerics):
    engine = open_engine(model, backend, numerics)
    prefixes = engine.prefixes(tmp_path, 1 << 30, 1 << 30)
    n = 2 * CHUNK + 77 if backend == "cpu" else CHUNK + 77
    whole = stored_at(engine, prefixes, IDS[:n])
    logits = whole.logits.copy()
    back = session(engine, prefixes)
    assert back.sync(IDS[:n])
    assert (back.stats.restored_tokens, back.stats.prefill_tokens) == (n, 0)
    assert np.array_equal(back.logits, logits)
    assert greedy(back, 100) == greedy(whole, 100)


@pytest.mark.parametrize("n", [1, 3, 127, 128, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + 130])
def test_any_place_can_be_stored_and_gone_on_from(engine, prefixes, n):
    stored_at(engine, prefixes, IDS[:n])
    back = session(engine, prefixes)
    back.sync(IDS[: n + 40])
    assert back.stats.restored_tokens == n
    fresh = engine.session()
    fresh.sync(IDS[: n + 40])
    assert np.array_equal(back.logits, fresh.logits)


def test_longest_fitting_place_is_taken_and_no_other(engine, prefixes):
    stored_at(engine, prefixes, IDS[:3000], anchors=(500, 1100, 2048))
    for ids, expected in (
        (IDS[:3000], 3000), (IDS[:2999], 2048), ([*IDS[:2048], *IDS[:9]], 2048), (IDS[:2047], 1100), (IDS[1:], 0),
        ([*IDS[:1100], IDS[1100] ^ 1], 1100), (IDS[:499], 0),
    ):  # fmt: skip
        found = prefixes.longest(ids, 0)
        assert (found.n_tokens if found else 0) == expected
    assert prefixes.longest(IDS[:3000], 3000) is None


def test_kept_in_a_folder_it_is_the_same(engine, prefixes, tmp_path):
    folder = tmp_path / "kv"
    folder.mkdir()
    on_disk = engine.session(kv_dir=folder)
    in_ram = engine.session()
    for one in (on_disk, in_ram):
        one.sync(IDS[:1500])
    assert np.array_equal(on_disk.logits, in_ram.logits)
    twin = on_disk.fork()
    twin.sync(IDS[:1600])
    in_ram.sync(IDS[:1600])
    assert np.array_equal(twin.logits, in_ram.logits)
    with pytest.raises(UsageError, match="cpu backend"):
        Engine.open(engine.path, "reference").session(kv_dir=folder)


def test_what_a_cancelled_prefill_computed_is_stored(engine, prefixes):
    stop = iter([False, False, True])
    made = session(engine, prefixes)
    assert not made.sync(IDS[:3000], cancelled=lambda: next(stop))
    back = session(engine, prefixes)
    assert back.sync(IDS[:3000]) and back.stats.restored_tokens == 1024


# Sharing


def test_interleaved_conversations_compute_and_write_everything_once(engine, prefixes):
    system = IDS[:2500]
    conversations = [list(system) for _ in range(10)]
    prefilled = written = 0
    for turn in range(3):
        for i, conversation in enumerate(conversations):
            conversation += IDS[3000 + 100 * i + 30 * turn :][:30]
            before = prefixes.written_today()
            made = stored_at(engine, prefixes, conversation, anchors=(len(system),))
            prefilled += made.stats.prefill_tokens
            written += prefixes.written_today() - before
    assert prefilled == len(system) + 10 * 3 * 30
    chunks = list(prefixes.folder.glob("*.chunk"))
    assert len(chunks) == 2  # those of the system prompt; the rest of each conversation is in its snapshots
    assert written == sum(path.stat().st_size for path in prefixes.folder.glob("*.*") if path.suffix != ".json")


def test_going_back_finds_places_on_disk(engine, prefixes):
    one = stored_at(engine, prefixes, IDS[:3000], anchors=(1000, 2000))
    back = session(engine, prefixes)
    back.sync(IDS[:3000])
    back.sync(IDS[:2100])
    assert back.stats.restored_tokens == 2000
    assert [s.n_tokens for s in one.stored] == [1000, 2000, 3000]
    assert [s.n_tokens for s in back.stored] == [2000, 2100]


# Budgets


def test_disk_budget_drops_what_was_used_longest_ago(engine, tmp_path):
    root = tmp_path / "cache"
    prefixes = engine.prefixes(root, 1 << 30, 1 << 30)
    made = [stored_at(engine, prefixes, IDS[i:][: CHUNK + 10]).stored[0] for i in range(3)]
    for age, snapshot in zip((30, 10, 20), made):
        os.utime(snapshot.path, (time.time() - age,) * 2)
    whole = sum(path.stat().st_size for path in prefixes.folder.glob("*-*.chunk")) + sum(s.size for s in made)
    trim(root, whole - 1)
    assert [prefixes.longest(IDS[i:][: CHUNK + 10], 0) is not None for i in range(3)] == [False, True, True]
    assert len(Folder(prefixes.folder).chunks) == 2


def test_budgets_that_are_too_small_are_said_and_cost_nothing(engine, tmp_path):
    for disk, writes, match in ((1000, 1 << 30, "disk budget"), (1 << 30, 1000, "per day")):
        made = session(engine, engine.prefixes(tmp_path / str(disk), disk, writes))
        assert made.sync(IDS[:1200])
        assert any(match in note for note in made.notes)
        assert not list((tmp_path / str(disk)).rglob("*.snapshot"))


def test_full_disk_is_said_and_leaves_nothing_half_done(engine, prefixes, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("v4cli.cache.prefixes.write_atomically", full)
    made = session(engine, prefixes)
    assert made.sync(IDS[:1200]) and made.notes == ["not stored: No space left on device"]
    assert greedy(made, 3)


def test_cheap_contexts_are_not_stored(engine, prefixes):
    made = engine.session(prefixes=prefixes, worth_s=1e9)
    made.sync(IDS[:1200])
    assert not prefixes.folder.exists() and made.keep(0.0) is not None


# Damage


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[-9] ^= 1
    elif how == "header":
        data[12] ^= 0xFF
    elif how == "truncate":
        del data[len(data) // 2 :]
    else:
        data.clear()
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["flip", "header", "truncate", "empty"])
@pytest.mark.parametrize("which", ["chunk", "snapshot"])
def test_damaged_file_is_named_removed_and_computed_again(engine, prefixes, which, how):
    stored_at(engine, prefixes, IDS[:1500])
    path = next(prefixes.folder.glob(f"*.{which}"))
    damage(path, how)
    back = session(engine, prefixes)
    assert back.sync(IDS[:1500])
    assert path.name in back.notes[0] and back.stats.restored_tokens == 0
    fresh = engine.session()
    fresh.sync(IDS[:1500])
    assert np.array_equal(back.logits, fresh.logits)
    again = session(engine, prefixes)
    again.sync(IDS[:1500])
    assert again.stats.restored_tokens == 1500 and not again.notes


def test_file_under_another_name_is_refused(engine, prefixes):
    stored_at(engine, prefixes, IDS[:1500])
    chunk = next(prefixes.folder.glob("*.chunk"))
    other = kvfile.encoded({}, {"tokens": IDS[1:1025]})
    chunk.write_bytes(other)
    back = session(engine, prefixes)
    back.sync(IDS[:1500])
    assert "other tokens" in back.notes[0]


SAVER = """
import sys
from pathlib import Path
from v4cli.engine.engine import Engine
engine = Engine.open(Path(sys.argv[1]), "cpu")
prefixes = engine.prefixes(Path(sys.argv[2]), 1 << 40, 1 << 40)
ids = [int(i) % 512 for i in range(100_000)]
session = engine.session(prefixes=prefixes, worth_s=0.0)
session.sync(ids[:3000])
print("first", flush=True)
for n in range(3001, 100_000):
    session.sync(ids[:n])
"""


def test_kill_during_a_save_never_loses_the_one_before(model, engine, tmp_path):
    root, ids = tmp_path / "cache", [i % 512 for i in range(100_000)]
    for delay in (0.0, 0.02, 0.05, 0.1):
        process = subprocess.Popen([sys.executable, "-c", SAVER, model, root], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "first\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        back = engine.session(prefixes=engine.prefixes(root, 1 << 40, 1 << 40))
        back.sync(ids[:5000])
        assert back.stats.restored_tokens >= 3000 and not back.notes


def test_chunk_that_names_itself_as_its_parent_is_not_followed_for_ever(engine, prefixes):
    snapshot = stored_at(engine, prefixes, IDS[:1500]).stored[0]
    chunk = next(prefixes.folder.glob("*.chunk"))
    key = chunk.stem.split("-")[1]
    chunk.rename(chunk.with_name(f"{key}-{key}.chunk"))
    assert Folder(prefixes.folder).path_of(snapshot) == [key]
    back = session(engine, prefixes)
    assert back.sync(IDS[:1500]) and "other tokens" in back.notes[0]


# Looking after them


def test_removing_one_leaves_what_others_need(engine, prefixes):
    stored_at(engine, prefixes, IDS[:2500])
    other = stored_at(engine, prefixes, [*IDS[:1024], *IDS[:1200]]).stored[-1]
    remove(Folder(prefixes.folder), [other])
    assert prefixes.longest(IDS[:2500], 0).n_tokens == 2500
    assert len(Folder(prefixes.folder).chunks) == 2
    assert [p.folder for p in stored(prefixes.root)] == [prefixes.folder]


def test_archive_carries_a_context_to_other_weights_of_the_shape(engine, prefixes, model, tmp_path):
    snapshot = stored_at(engine, prefixes, IDS[:2500]).stored[-1]
    archive.write(tmp_path / "x.v4kv", prefixes, snapshot)
    here, same = imported_by(engine, tmp_path / "x.v4kv", engine.prefixes(tmp_path / "elsewhere", 1 << 30, 1 << 30))
    assert same and here.n_tokens == 2500
    twin = open_engine(random_checkpoint(tmp_path / "twin", SHAPE, seed=5, shards=1))
    there = twin.prefixes(tmp_path / "elsewhere", 1 << 30, 1 << 30)
    imported, same = imported_by(twin, tmp_path / "x.v4kv", there)
    back = session(twin, there)
    back.sync(IDS[:2510])
    assert not same and back.stats.restored_tokens == 2500 and imported.id != here.id
    wide = open_engine(random_checkpoint(tmp_path / "wide", SHAPE | {"index_topk": 16}, shards=1))
    with pytest.raises(SnapshotError, match="another shape"):
        imported_by(wide, tmp_path / "x.v4kv", wide.prefixes(tmp_path / "elsewhere", 1 << 30, 1 << 30))


def test_damaged_archives_are_refused(engine, prefixes, tmp_path):
    snapshot = stored_at(engine, prefixes, IDS[:1500]).stored[-1]
    whole = tmp_path / "x.v4kv"
    archive.write(whole, prefixes, snapshot)
    data, target = whole.read_bytes(), engine.prefixes(tmp_path / "elsewhere", 1 << 30, 1 << 30)
    rng = np.random.default_rng(0)
    for i in range(60):
        bad = bytearray(data)
        at = int(rng.integers(0, len(bad)))
        if i % 2:
            bad[at] ^= 1 << int(rng.integers(8))
        else:
            del bad[at:]
        whole.write_bytes(bad)
        try:
            imported_by(engine, whole, target)
        except SnapshotError:
            assert not list(tmp_path.rglob("*.snapshot")) or target.longest(IDS[:1500], 0) is None
        else:  # the padding of the tar has no checksum; what came through must be whole
            back = session(engine, target)
            back.sync(IDS[:1500])
            assert back.stats.restored_tokens == 1500 and not back.notes
            remove(Folder(target.folder), Folder(target.folder).all_snapshots())
    whole.unlink()
    damage(snapshot.path, "flip")
    with pytest.raises(SnapshotError, match="corrupt"):
        archive.write(tmp_path / "y.v4kv", prefixes, snapshot)
    assert not (tmp_path / "y.v4kv").exists()


def test_identity_tells_models_apart(engine, prefixes, tmp_path, model):
    identity = json.loads(json.dumps(engine.identity))
    other = open_engine(random_checkpoint(tmp_path / "other", SHAPE, seed=9, shards=1))
    assert other.identity != identity and Engine.open(model, "reference").identity != identity
    assert other.prefixes(prefixes.root, 1, 1).folder != prefixes.folder
