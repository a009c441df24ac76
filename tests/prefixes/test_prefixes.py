"""Stored prefixes: exact continuation, sharing, budgets, damage and crashes."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from stored_contexts import IDS, damage, open_engine, session, stored_at
from v4kernels import BACKENDS

from v4cli.engine.engine import Engine
from v4cli.engine.sampler import Sampling
from v4cli.errors import SnapshotError, UsageError
from v4cli.prefixes import kvfile
from v4cli.prefixes.prefixes import CHUNK, Folder, remove, stored, trim


def greedy(session, n):
    return [step.token for step in session.generate(Sampling(temperature=0.0), n)]


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


def test_a_folder_that_has_not_changed_is_not_read_again(engine, prefixes, monkeypatch):
    read, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: read.append(path) or scandir(path))
    stored_at(engine, prefixes, IDS[:200])
    os.utime(prefixes.folder, (1e9, 1e9))
    del read[:]
    assert [prefixes.longest(IDS[:300], 0).n_tokens for _ in range(3)] == [200] * 3 and len(read) == 1
    stored_at(engine, prefixes, IDS[:250])
    assert prefixes.longest(IDS[:300], 0).n_tokens == 250
    del read[:]
    assert prefixes.longest(IDS[:300], 0).n_tokens == 250 and len(read) == 1  # too new to be sure


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
    made = session(engine, prefixes)
    assert not made.sync(IDS[:3000], cancelled=lambda: len(made.tokens) >= 1024)
    back = session(engine, prefixes)
    assert back.sync(IDS[:3000]) and back.stats.restored_tokens == 1024


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

    monkeypatch.setattr("v4cli.prefixes.prefixes.write_atomically", full)
    made = session(engine, prefixes)
    assert made.sync(IDS[:1200]) and made.notes == ["not stored: No space left on device"]
    assert greedy(made, 3)


def test_cheap_contexts_are_not_stored(engine, prefixes):
    made = engine.session(prefixes=prefixes, worth_s=1e9)
    made.sync(IDS[:1200])
    assert not prefixes.folder.exists() and made.keep(0.0) is not None


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


def test_removing_one_leaves_what_others_need(engine, prefixes):
    stored_at(engine, prefixes, IDS[:2500])
    other = stored_at(engine, prefixes, [*IDS[:1024], *IDS[:1200]]).stored[-1]
    remove(Folder(prefixes.folder), [other])
    assert prefixes.longest(IDS[:2500], 0).n_tokens == 2500
    assert len(Folder(prefixes.folder).chunks) == 2
    assert [p.folder for p in stored(prefixes.root)] == [prefixes.folder]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "zeros"])
@pytest.mark.parametrize("which", ["chunk", "snapshot"])
def test_what_is_no_file_of_ours_is_not_opened(engine, prefixes, tmp_path, which, kind):
    stored_at(engine, prefixes, IDS[:1500])
    path = next(prefixes.folder.glob(f"*.{which}"))
    path.rename(tmp_path / "kept")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "kept" if kind == "link" else "/dev/zero")
    with pytest.raises(SnapshotError):
        kvfile.read(path)
    assert stored(prefixes.root)
    back = session(engine, prefixes)
    assert back.sync(IDS[:1500]) and back.stats.restored_tokens == 0
    assert kind == "folder" or kvfile.read(path), "written anew in its place"


def test_reference_state_checks_what_it_is_given(model, tmp_path):
    engine = Engine.open(model, "reference")
    prefixes = engine.prefixes(tmp_path, 1 << 30, 1 << 30)
    snapshot = stored_at(engine, prefixes, IDS[:300]).stored[-1]
    about, arrays = kvfile.read(snapshot.path)
    for name in arrays:
        if name != "logits":
            bad = arrays | {name: arrays[name][:, :-1].copy()}
            snapshot.path.write_bytes(kvfile.encoded(bad, about))
            back = session(engine, prefixes)
            back.sync(IDS[:300])
            assert "another shape" in back.notes[0], name


def test_the_reference_takes_entries_up_where_it_has_computed_others(model):
    session = Engine.open(model, "reference").session()
    session.feed(list(range(128)))
    compressed = [layer for layer in session.state.layers if layer.main is not None]
    for layer in compressed:
        before = {name: rows.copy() for name, rows in layer.entries(0, 128).items()}
        layer.put(0, 128, before)
        after = layer.entries(0, 128)
        assert before and all((after[name] == rows).all() for name, rows in before.items())
    assert compressed


def test_contexts_are_for_their_owner_only(engine, prefixes):
    stored_at(engine, prefixes, IDS[:1500])
    modes = {path.name: path.stat().st_mode & 0o777 for path in prefixes.root.rglob("*")}
    assert all(mode == (0o700 if name == prefixes.key else 0o600) for name, mode in modes.items()), modes
