"""Stored prefixes: exact continuation, sharing, budgets, damage, crashes, and carrying them elsewhere."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import SMALL, make_store, random_checkpoint
from v4kernels import BACKENDS, native

from v4cli.engine.engine import Engine
from v4cli.engine.sampler import Sampling
from v4cli.engine.stats import peak_rss_bytes
from v4cli.errors import SnapshotError, UsageError
from v4cli.prefixes import archive, kvfile
from v4cli.prefixes.prefixes import CHUNK, Folder, remove, stored, trim

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
    made = session(engine, prefixes)
    assert not made.sync(IDS[:3000], cancelled=lambda: len(made.tokens) >= 1024)
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

    monkeypatch.setattr("v4cli.prefixes.prefixes.write_atomically", full)
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


# Whose numbers they are


def overwritten(folder, other):
    """The weights of another model at the same path, of equal size and, as far as that can be set, time."""
    for path in folder.glob("*.safetensors"):
        before = path.stat()
        with path.open("r+b") as file:  # the same inode, too
            file.write((other / path.name).read_bytes())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("kind", ["checkpoint", "store"])
def test_other_weights_at_the_same_path_are_not_taken_for_the_old_ones(model, tmp_path, kind, monkeypatch):
    folder, other = shutil.copytree(model, tmp_path / "m"), random_checkpoint(tmp_path / "o", SHAPE, seed=9, shards=1)
    if kind == "store":
        folder, other = make_store(folder, tmp_path / "ms"), make_store(other, tmp_path / "os")
    root, one = tmp_path / "cache", open_engine(folder)
    stored_at(one, one.prefixes(root, 1 << 30, 1 << 30), IDS[:1100])
    again = open_engine(folder)
    assert again.identity == one.identity, "opened again it is the same model"
    del again
    overwritten(folder, other)
    engine = open_engine(folder)
    back = stored_at(engine, engine.prefixes(root, 1 << 30, 1 << 30), IDS[:1100])
    fresh = engine.session()
    fresh.sync(IDS[:1100])
    assert back.stats.restored_tokens == 0 and np.array_equal(back.logits, fresh.logits)
    content = [engine.identity["weights"]["content"] for engine in (one, engine)]
    assert content[0] != content[1], "even if no time told"


def test_numbers_of_other_arithmetic_are_not_taken_up_and_an_archive_of_them_is_told_apart(
    engine, model, tmp_path, monkeypatch
):
    with monkeypatch.context() as earlier:
        earlier.setattr(native, "ABI_VERSION", native.ABI_VERSION - 1)
        old = open_engine(model)
    kept = old.prefixes(tmp_path / "cache", 1 << 30, 1 << 30)
    archive.write(tmp_path / "x.v4kv", kept, stored_at(old, kept, IDS[:1100]).stored[-1])
    back = stored_at(engine, engine.prefixes(tmp_path / "cache", 1 << 30, 1 << 30), IDS[:1100])
    assert back.stats.restored_tokens == 0
    _, same = imported_by(engine, tmp_path / "x.v4kv", engine.prefixes(tmp_path / "elsewhere", 1 << 30, 1 << 30))
    assert not same


def test_an_edit_that_no_sample_meets_changes_the_identity_too(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "m")
    before, path = open_engine(folder).identity, folder / "model-00001-of-00001.safetensors"
    data, stat = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert open_engine(folder).identity != before


def test_kernels_that_compute_otherwise_do_not_go_on_from_old_numbers(model, engine, prefixes, monkeypatch):
    stored_at(engine, prefixes, IDS[:1100])
    monkeypatch.setattr("v4cli.engine.engine._arithmetic", lambda ops: "another")
    later = open_engine(model)
    assert stored_at(later, later.prefixes(prefixes.root, 1 << 30, 1 << 30), IDS[:1100]).stats.restored_tokens == 0


def test_nothing_is_stored_for_files_that_changed_while_in_use(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "m")
    engine = open_engine(folder)
    prefixes = engine.prefixes(tmp_path / "cache", 1 << 30, 1 << 30)
    (folder / "model-00001-of-00001.safetensors").touch()
    made = stored_at(engine, prefixes, IDS[:1100])
    assert made.notes == ["not stored: the model's files changed while in use"] and not prefixes.folder.exists()


# Hostile archives and files


@pytest.fixture(scope="module")
def exported(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    prefixes = engine.prefixes(folder / "cache", 1 << 30, 1 << 30)
    archive.write(folder / "x.v4kv", prefixes, stored_at(engine, prefixes, IDS[:1500]).stored[-1])
    return folder / "x.v4kv"


def members_of(path):
    with tarfile.open(path) as tar:
        return [(member.name, bytearray(tar.extractfile(member).read())) for member in tar]


def tar_of(path, members):
    """Members as (name or TarInfo, data)."""
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def changed(data, change):
    about, arrays = kvfile.decoded(data, Path("x"))
    change(about, arrays)
    return kvfile.encoded(arrays, about)


def fill(name, value):
    def change(about, arrays):
        arrays[name].ravel()[-1] = value

    return change


FORGED = {
    "logits": lambda a, b: b.update(logits=b["logits"][:-1]),
    "finite": fill("logits", np.nan),
    "not finite": fill("layers.1.main.tail", np.inf),
    "values that are not": lambda a, b: b["layers.0.window"][:, :3].fill(0xFF),
    "that are not finite": lambda a, b: b["rest.layers.1.main.entries"].fill(0xFF),
    "are not finite": lambda a, b: b["rest.layers.1.index.scales"].fill(0xFF),
    "another shape": lambda a, b: b.update({"layers.0.window": b["layers.0.window"][:, :-1]}),
    "of another shape": lambda a, b: b.pop("layers.2.main.tail"),
    "no such layer": lambda a, b: b.update({"layers.7.window": b["layers.0.window"]}),
    "outside the vocabulary": lambda a, b: a["tokens"].append(512),
    "no token ids": lambda a, b: a.update(tokens=[-1] * 476),
    "are no token": lambda a, b: a.update(tokens={"a": 1}),
    "a snapshot of": lambda a, b: a["tokens"].extend([1] * CHUNK),
}


@pytest.mark.parametrize("words", FORGED)
def test_archive_with_arrays_of_no_such_model_is_refused(engine, exported, tmp_path, words):
    members = members_of(exported)
    members[-1] = "snapshot", changed(members[-1][1], FORGED[words])
    target = engine.prefixes(tmp_path / "here", 1 << 30, 1 << 30)
    with pytest.raises(SnapshotError, match=words):
        imported_by(engine, tar_of(tmp_path / "y", members), target)
    assert not target.folder.exists()


def test_archive_of_anything_but_plain_members_is_refused_at_once(engine, exported, tmp_path):
    members, target = members_of(exported), engine.prefixes(tmp_path / "here", 1 << 30, 1 << 30)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"S", b"L"):
        link = tarfile.TarInfo("0000.chunk")
        link.type, link.linkname = kind, "/etc/passwd"
        path = tar_of(tmp_path / "y", [members[0], (link, b""), *members[1:]])
        with pytest.raises(SnapshotError):
            imported_by(engine, path, target)
    for others in (members[1:], members[:-1], [members[0], *members], [*members[:2], *members[1:]], members[::-1]):
        with pytest.raises(SnapshotError):
            imported_by(engine, tar_of(tmp_path / "y", others), target)
    for name in ("../0000.chunk", "/0000.chunk", "1.chunk", "0000.chunk/"):
        with pytest.raises(SnapshotError):
            imported_by(engine, tar_of(tmp_path / "y", [members[0], (name, members[1][1]), members[2]]), target)
    assert not target.folder.exists() and not list(tmp_path.rglob("*.chunk"))


def test_members_that_claim_more_than_there_is_cost_nothing(engine, exported, tmp_path):
    """Sparse ones by either convention, sizes beyond the file, holes in the file itself, endless headers."""
    members, target = members_of(exported), engine.prefixes(tmp_path / "here", 1 << 30, 1 << 30)
    sparse = tarfile.TarInfo("0000.chunk")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    claims = tar_of(tmp_path / "claims", [members[0], (sparse, b"1\n0\n1099511627776\n" + bytes(600)), members[2]])
    holes = tmp_path / "holes"
    big = tarfile.TarInfo("0000.chunk")
    big.size = 7 << 30
    with holes.open("wb") as file:
        file.write(tar_of(tmp_path / "y", members[:1]).read_bytes()[:1024] + big.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(16 << 30)
    beyond = tmp_path / "beyond"
    beyond.write_bytes(holes.open("rb").read(1536) + bytes(4096))
    headers = tmp_path / "headers"
    long = tarfile.TarInfo("x")
    long.type, long.size = tarfile.XHDTYPE, 7 << 30
    with headers.open("wb") as file:
        file.write(long.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(8 << 30)
    before = peak_rss_bytes()
    for path in (claims, holes, beyond, headers, Path("/dev/zero"), tmp_path):
        with pytest.raises(SnapshotError):
            imported_by(engine, path, target)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SnapshotError, match="not a regular file"):
        imported_by(engine, tmp_path / "pipe", target)
    assert peak_rss_bytes() - before < 64 << 20 and not target.folder.exists()


def test_older_archives_with_extended_headers_are_read(engine, exported, tmp_path):
    members = []
    for name, data in members_of(exported):
        info = tarfile.TarInfo(name)
        info.mtime = 1.5  # needs one
        members.append((info, data))
    snapshot, same = imported_by(
        engine, tar_of(tmp_path / "y", members), engine.prefixes(tmp_path / "h", 1 << 30, 1 << 30)
    )
    assert snapshot.n_tokens == 1500 and same


def test_export_follows_no_link_and_is_for_its_owner(engine, exported, prefixes, tmp_path):
    snapshot, victim = stored_at(engine, prefixes, IDS[:1100]).stored[-1], tmp_path / "victim"
    victim.write_text("mine")
    target = tmp_path / "x.v4kv"
    for name in ("x.v4kv.tmp", "x.v4kv.partial"):
        (tmp_path / name).symlink_to(victim)
    archive.write(target, prefixes, snapshot)
    assert victim.read_text() == "mine" and target.stat().st_mode & 0o777 == 0o600
    for planted in (tmp_path / "to-victim", tmp_path / "to-nothing"):
        planted.symlink_to(victim if "victim" in planted.name else tmp_path / "nothing")
        with pytest.raises(UsageError, match="exists already"):
            archive.write(planted, prefixes, snapshot)
        assert planted.is_symlink() and victim.read_text() == "mine" and not (tmp_path / "nothing").exists()
    with pytest.raises(UsageError, match="no such folder"):
        archive.write(tmp_path / "none" / "x", prefixes, snapshot)
    assert not list(tmp_path.glob("*.v4kv.*.tmp")) and exported.stat().st_mode & 0o777 == 0o600


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


def test_contexts_are_for_their_owner_only(engine, prefixes):
    stored_at(engine, prefixes, IDS[:1500])
    modes = {path.name: path.stat().st_mode & 0o777 for path in prefixes.root.rglob("*")}
    assert all(mode == (0o700 if name == prefixes.key else 0o600) for name, mode in modes.items()), modes
