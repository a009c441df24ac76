"""One stored context as a file to carry elsewhere: whole, damaged, hostile."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from stored_contexts import IDS, SHAPE, damage, imported_by, open_engine, session, stored_at
from tiny import random_checkpoint

from v4cli.engine.stats import peak_rss_bytes
from v4cli.errors import SnapshotError, UsageError
from v4cli.prefixes import archive, kvfile
from v4cli.prefixes.prefixes import CHUNK, Folder, remove


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
