"""Verification: damage to any byte of any file of a store is found, and nothing ever ends in a traceback."""

import json
import random
import shutil

import pytest
from tiny import STORE_LIKE, make_store, random_checkpoint

from v4cli.cli.models import describe
from v4cli.errors import V4Error
from v4cli.store import library, store
from v4cli.store.store import MANIFEST, MANIFEST_COPY, Manifest
from v4cli.store.verify import verify_store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return make_store(random_checkpoint(root / "source", STORE_LIKE), root / "little")


@pytest.fixture
def work(made, tmp_path):
    return shutil.copytree(made, tmp_path / "little")


def flip(path, rng):
    """Change one random bit of one byte; returns a way back."""
    before = path.read_bytes()
    after = bytearray(before)
    after[rng.randrange(len(after))] ^= 1 << rng.randrange(8)
    path.write_bytes(after)
    return lambda: path.write_bytes(before)


def damaged(folder):
    return {item.file: item for item in verify_store(folder).damage}


def test_a_whole_store_is_fine_and_every_byte_was_read(made):
    heard = []
    report = verify_store(made, heard.append)
    parts = [path for path in made.iterdir() if path.name not in (MANIFEST, MANIFEST_COPY)]
    assert report.damage == [] and report.n_files == len(parts)
    assert sum(heard) == report.n_bytes == sum(path.stat().st_size for path in parts)


def test_one_flipped_bit_in_any_file_is_found_and_only_there(work):
    rng = random.Random(11)
    names = sorted(path.name for path in work.iterdir())
    for name in names + rng.choices(names, k=24):
        undo = flip(work / name, rng)
        found = damaged(work)
        assert list(found) in ([name], [name, MANIFEST_COPY]), name
        part = "" if name.startswith("manifest") else f" --part {name.removesuffix('.safetensors')}"
        assert found[name].repair == "v4 pull test/model@abc --name little" + part
        undo()
    assert damaged(work) == {}


def test_every_byte_of_the_manifest_counts(work):
    """White space, keys, values: whatever differs from what was written is refused."""
    text = (work / MANIFEST).read_bytes()
    for at in range(0, len(text), 7):
        (work / MANIFEST).write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        with pytest.raises(V4Error):
            Manifest.load(work)


def test_missing_cut_longer_strange_and_swapped_files(work):
    (work / "head.safetensors").unlink()
    with (work / "embed.safetensors").open("ab") as file:
        file.write(b"x")
    with (work / "layer-000.safetensors").open("r+b") as file:
        file.truncate(1000)
    a, b = (work / f"layer-00{i}-experts.safetensors" for i in (1, 2))
    data = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(data)
    (work / "notes.txt").write_text("mine")
    (work / ".hidden").write_text("not judged")
    found = {name: item.problem for name, item in damaged(work).items()}
    assert found.pop("layer-000.safetensors").startswith("1000 bytes, expected")
    assert found.pop("embed.safetensors").endswith("expected " + str((work / "embed.safetensors").stat().st_size - 1))
    assert found == {
        "head.safetensors": "is missing",
        a.name: "checksum differs",
        b.name: "checksum differs",
        "notes.txt": "does not belong to this store",
    }


def test_what_the_manifest_does_not_record_is_not_taken_for_verified(work):
    manifest = Manifest.load(work)
    del manifest.files["config.json"], manifest.files["layer-002.safetensors"]
    manifest.save(work)
    found = {name: item.problem for name, item in damaged(work).items()}
    assert found == {"config.json": "has no checksum", "layer-002.safetensors": "is not recorded"}
    manifest.complete = False
    manifest.save(work)
    assert damaged(work)[MANIFEST].problem == "the store is incomplete"
    assert library.inspect(work).state == "incomplete, 9 of 10 parts"


def test_both_manifests_damaged_is_said_in_one_line(work):
    for name in (MANIFEST, MANIFEST_COPY):
        (work / name).write_text("{}")
    with pytest.raises(V4Error, match="both damaged"):
        verify_store(work)


def test_an_interrupt_ends_it(work):
    def stop(n):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_store(work, stop)


def test_random_manifests_never_crash(work, monkeypatch):
    """200 mutations, half of them with a right digest: a V4Error or an answer, never anything else."""
    rng = random.Random(5)
    original = json.loads((work / MANIFEST).read_text())
    junk = [None, True, -1, 10**40, 1.5, "x", "", "\n", "../up", [], [[]], {}, {"a": []}, {"bytes": 1}]
    outcomes = set()
    for i in range(200):
        tree = json.loads(json.dumps(original))
        for _ in range(rng.randint(1, 2)):
            target = tree
            while True:
                key = rng.choice(list(target)) if isinstance(target, dict) else rng.randrange(len(target))
                if not isinstance(target[key], (dict, list)) or not target[key] or rng.random() < 0.3:
                    break
                target = target[key]
            target[key] = rng.choice(junk)
            if isinstance(target, dict) and rng.random() < 0.2:
                target[rng.choice(["..", "a/b", "", "new"])] = target.pop(key)
        text = store._manifest_bytes(tree) if i % 2 else json.dumps(tree).encode()
        for name in (MANIFEST, MANIFEST_COPY):
            (work / name).write_bytes(text)
        for action in (verify_store, library.inspect, lambda folder: describe(str(folder))):
            try:
                action(work)
                outcomes.add("answer")
            except V4Error as error:
                assert "\n" not in str(error)
                outcomes.add("refused")
    assert outcomes == {"answer", "refused"}
