"""What tells the numbers of one model from those of another, of older kernels, or of files that changed."""

import json
import os
import shutil

import numpy as np
import pytest
from stored_contexts import IDS, SHAPE, imported_by, open_engine, stored_at
from tiny import make_store, random_checkpoint
from v4kernels import backend, native

from v4cli.engine.engine import Engine, identity_of
from v4cli.prefixes import archive
from v4cli.store.store import open_model


def test_identity_tells_models_apart(engine, prefixes, tmp_path, model):
    identity = json.loads(json.dumps(engine.identity))
    other = open_engine(random_checkpoint(tmp_path / "other", SHAPE, seed=9, shards=1))
    assert other.identity != identity and Engine.open(model, "reference").identity != identity
    assert other.prefixes(prefixes.root, 1, 1).folder != prefixes.folder


def test_backends_whose_numbers_are_the_same_share_an_identity(engine):
    checkpoint = open_model(engine.path)

    class Other:
        name, numerics = "other", backend("cpu").numerics

    assert identity_of(checkpoint, Other()) == engine.identity == identity_of(checkpoint, backend("cpu"))


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
