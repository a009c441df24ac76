"""What a manifest may say of formats, and stores of layout 1, which said nothing."""

import os
import shutil

import pytest
import tiny
from pull.pulling import Listener, contents, leftovers
from v4kernels.formats import FORMATS

from v4cli.cli.models import describe
from v4cli.engine.engine import Engine
from v4cli.errors import Interrupted, ModelError
from v4cli.model.schema import TensorSpec, expected_tensors
from v4cli.pull import repack
from v4cli.pull.hub import FolderSource
from v4cli.pull.pull import plan_pull, pull
from v4cli.store import store as store_module
from v4cli.store.library import inspect
from v4cli.store.recipe import RECIPES, formats_by
from v4cli.store.record import from_record, recorded
from v4cli.store.store import MANIFEST, MANIFEST_COPY, Manifest, Store
from v4cli.store.verify import verify_store

W1, W2 = "layers.2.ffn.experts.*.w1", "layers.3.ffn.experts.*.w2"
N_EXPERTS = tiny.STORE_LIKE["n_routed_experts"]


@pytest.fixture(scope="module")
def mixed(source, tmp_path_factory):
    return tiny.make_store(source, tmp_path_factory.mktemp("mixed") / "m", "own", recipe=tiny.MIXED)


@pytest.fixture
def work(mixed, tmp_path):
    return shutil.copytree(mixed, tmp_path / "m")


def write(folder, formats):
    manifest = Manifest.load(folder)
    manifest.formats = formats
    manifest.save(folder)


def test_what_is_recorded_is_read_again_to_the_same(mixed, source):
    manifest, config = Manifest.load(mixed), Engine.open(source, "reference").config
    official = expected_tensors(config, with_mtp=False)
    for recipe in (*(one.rules for one in RECIPES.values()), tiny.MIXED, ()):
        formats = formats_by(recipe, official)
        assert from_record(recorded(formats), official) == formats
    assert manifest.formats[W1] == ["int4" if e in (1, 3) else "fp4" for e in range(N_EXPERTS)]
    assert manifest.formats["layers.0.ffn.experts.*.w2"] == "int8" and manifest.formats["embed"] == "int4"


WRONG = {
    "unknown name": ({"head": "q9"}, r"formats: head: 'q9' is no number format"),
    "no name": ({"head": 7}, r"formats: head: no number format"),
    "unknown among experts": ({W1: ["fp4"] * (N_EXPERTS - 1) + ["q9"]}, r"experts.*w1: 'q9' is no number format"),
    "too few experts": ({W1: ["fp4"] * (N_EXPERTS - 1)}, r"experts.*w1: no number format"),
    "too many experts": ({W1: ["fp4"] * (N_EXPERTS + 1)}, r"formats for another number of experts"),
    "a list in a list": ({W1: [["fp4"]] * N_EXPERTS}, r"experts.*w1: no number format"),
    "a list for one matrix": ({"head": ["fp4"]}, r"formats: head: no number format"),
    "not convertible": ({W2: "fp8"}, r"fp8 does not fit"),
    "no scales": ({W2: "bf16"}, r"bf16 does not fit"),
    "of no matrix": ({"layers.0.attn.wq_c": "int8"}, r"'layers.0.attn.wq_c' is no matrix of this model"),
    "of a vector": ({"norm": "bf16"}, r"'norm' is no matrix of this model"),
    "another size": ({"layers.1.attn.wq_b": "int8"}, r"layer-001.safetensors: \d+ bytes, expected \d+"),
    "another size of experts": ({W2: "int4"}, r"layer-003-experts.safetensors: \d+ bytes, expected \d+"),
    "of the same size": ({"embed": "fp4"}, r"embed.safetensors: (\d+ bytes, expected|the header)"),
}


@pytest.mark.parametrize("what", WRONG)
def test_formats_that_are_wrong_are_one_line_wherever_they_are_asked_for(work, what):
    change, says = WRONG[what]
    write(work, Manifest.load(work).formats | change)
    for asked in (Store.open, lambda folder: describe(str(folder)), lambda folder: Engine.open(folder, "reference")):
        with pytest.raises(ModelError, match=says) as caught:
            asked(work)
        assert "\n" not in str(caught.value) and str(work) in str(caught.value)
    assert {item.file for item in verify_store(work).damage} == {MANIFEST}
    assert inspect(work).manifest is not None


def test_formats_that_are_missing_are_one_line(work):
    formats = Manifest.load(work).formats
    del formats["layers.2.ffn.gate"]
    write(work, formats)
    with pytest.raises(ModelError, match=r"formats: layers.2.ffn.gate: no number format"):
        Store.open(work)
    write(work, {})
    with pytest.raises(ModelError, match="formats is missing, and 'own' is no known recipe"):
        Store.open(work)
    write(work, ["fp4"])
    with pytest.raises(ModelError, match="formats is missing or not valid"):
        Store.open(work)


def test_a_format_of_groups_does_not_fit_rows_of_other_lengths():
    official = {"layers.0.attn.wq_a.weight": TensorSpec("F8_E4M3", (64, 48))}
    assert from_record({"layers.0.attn.wq_a": "fp8"}, official) == {"layers.0.attn.wq_a.weight": FORMATS["fp8"]}
    with pytest.raises(ModelError, match=r"int8 does not fit \[64, 48\] of fp8"):
        from_record({"layers.0.attn.wq_a": "int8"}, official)


# Layout 1


def as_layout_1(folder):
    """Rewrite the manifest as layout 1 had it: without formats."""
    data = {key: value for key, value in vars(Manifest.load(folder)).items() if key != "formats"}
    for name in (MANIFEST, MANIFEST_COPY):
        (folder / name).write_bytes(store_module._manifest_bytes(data | {"format": store_module.FORMAT, "layout": 1}))
    return folder


@pytest.fixture
def official(source):
    return FolderSource(source)


@pytest.fixture(params=["native", "q4"])
def old(request, official, tmp_path):
    """A store of layout 1, and what pulling makes today."""
    today = tmp_path / "today"
    pull(official, today, RECIPES[request.param], reporter=Listener())
    return as_layout_1(shutil.copytree(today, tmp_path / "m")), today


def test_layout_1_is_refused_with_what_to_do_and_brought_along_without_a_byte_written(old, official):
    folder, today = old
    with pytest.raises(ModelError, match="store layout 1, this version reads 2") as caught:
        Store.open(folder)
    assert caught.value.hint.startswith("v4 ") and caught.value.hint.endswith("repacks it")
    with pytest.raises(ModelError, match="layout 1, this version reads 2"):
        verify_store(folder)
    assert inspect(folder).state == "layout 1, this version reads 2"
    assert describe(str(folder))["file_bytes"] == describe(str(today))["file_bytes"]
    with pytest.raises(ModelError, match="has layout 1"):
        plan_pull(official, folder, reporter=Listener())
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.safetensors")}
    listener = Listener()
    assert pull(official, folder, reporter=listener) is None
    assert not listener.done, "nothing was converted"
    assert before == {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.safetensors")}
    assert contents(folder) == contents(today) and not leftovers(folder)
    assert Manifest.load(folder) == Manifest.load(today)
    assert not verify_store(folder).damage


def test_bringing_it_along_goes_on_wherever_it_was_stopped(official, tmp_path, monkeypatch):
    """After every single file that moved."""
    today = tmp_path / "today"
    pull(official, today, reporter=Listener())
    folder, n_moves = as_layout_1(shutil.copytree(today, tmp_path / "m")), 0
    move = os.replace

    def once(source, target):
        nonlocal n_moves
        move(source, target)
        if repack.OLD in f"{source} {target}":
            n_moves += 1
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", once)
    for _ in range(200):
        try:
            pull(official, folder, reporter=Listener())
            break
        except Interrupted:
            pass
    monkeypatch.undo()
    assert n_moves > 20, "out and back"
    assert contents(folder) == contents(today) and not leftovers(folder)
    assert Manifest.load(folder) == Manifest.load(today)


def test_a_part_that_is_damaged_is_not_taken_over(old, official):
    folder, _ = old
    path = folder / "layer-001.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ModelError, match=r"layer-001.safetensors: truncated"):
        pull(official, folder, reporter=Listener())


def test_layout_1_of_an_unknown_recipe_is_refused(source, tmp_path):
    folder = as_layout_1(tiny.make_store(source, tmp_path / "m", "own", recipe=tiny.MIXED))
    with pytest.raises(ModelError, match="quant is missing or not valid"):
        Store.open(folder)
