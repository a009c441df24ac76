"""Damaged and hostile stores, configs, tokenizers, archives and prefixes: never a hang, a traceback, more memory than
there is to have, or a wrong result without a word.

`V4_FUZZ=store:17 pytest tests/fuzz -k one` runs one mutant again.
"""

import hashlib
import json
import os
import random
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from driver import mutants, run
from mutants import TABLE, change_json
from tiny import STORE_LIKE, random_checkpoint
from v4kernels import native

from v4cli import paths
from v4cli.chat.turn import Chat
from v4cli.cli.models import describe
from v4cli.engine.engine import Engine, unloaded
from v4cli.model.config import V4Config
from v4cli.prefixes import archive
from v4cli.prefixes.prefixes import Prefixes, stored
from v4cli.pull.hub import FolderSource
from v4cli.pull.pull import plan_pull, pull
from v4cli.store.library import entries
from v4cli.store.verify import verify_store

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
SHAPE = STORE_LIKE | {
    "vocab_size": 1024, "hidden_size": 64, "n_routed_experts": 4, "moe_intermediate_size": 32, "head_dim": 128,
    "max_position_embeddings": 8192, "q_lora_rank": 32, "o_lora_rank": 32, "num_attention_heads": 4, "index_n_heads": 2,
}  # fmt: skip
IDS = np.random.default_rng(3).integers(0, 1000, 1100).tolist()
TEXTS = (
    "What is 17*23?\n\n  <think> caf\u00e9 \u4e16\u754c \U0001f642 <\uff5cUser\uff5c>",
    " \t\n",
    "x" * 300,
    "12345 a1b2",
)
BUDGET = 1 << 30
SILENT = MagicMock()  # a reporter


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """What is mutated, by kind, the model that contexts are of, and what is right of each."""
    root = tmp_path_factory.mktemp("fuzz")
    model = root / "model"
    made = run(lambda: _make(model, root), 120)  # in a child: threads of this process would not be there in others
    assert made.word == "right", made.details
    tokenizer = root / "tokenizer"
    tokenizer.mkdir()
    shutil.copyfile(model / "tokenizer.json", tokenizer / "tokenizer.json")
    return {"store": root / "store", "config": model, "tokenizer": tokenizer, "root": root} | {
        kind: root / kind for kind in ("archive", "prefixes")
    }


def _make(model: Path, root: Path) -> str:
    random_checkpoint(model, SHAPE, seed=4, shards=2)
    shutil.copyfile(paths.NANO / "tokenizer.json", model / "tokenizer.json")
    pull(FolderSource(model), root / "store", reporter=SILENT)
    engine = Engine.open(model, "cpu")
    prefixes = engine.prefixes(root / "prefixes", BUDGET, BUDGET)
    session = engine.session(prefixes=prefixes, worth_s=0.0)
    session.sync(IDS)
    (root / "archive").mkdir()
    archive.write(root / "archive" / "x.v4kv", prefixes, session.stored[-1])
    np.save(root / "logits.npy", session.logits)
    for name, folder in (("model", model), ("store", root / "store")):
        (root / f"{name}.said").write_text(_said(folder))
    tokenizer = Chat.open(model, "cpu").tokenizer
    (root / "ids.json").write_text(json.dumps([tokenizer.encode(text) for text in TEXTS]))
    return "right"


def _said(folder: Path) -> str:
    """Digest of what a model makes of a text."""
    chat = Chat.open(folder, "cpu")
    logits = chat.session.feed(chat.tokenizer.encode(TEXTS[0]))
    return hashlib.sha256(logits.tobytes()).hexdigest()


def use_store(folder: Path, root: Path) -> str:
    entries(folder.parent)
    try:
        describe(str(folder))
        if _said(folder) == (root / "store.said").read_text():
            return "right"
    finally:
        damage = verify_store(folder).damage
    return "named" if damage else "wrong"


def use_config(folder: Path, root: Path) -> str:
    described = describe(str(folder))
    plan_pull(FolderSource(folder), folder / "none", reporter=SILENT)
    right = _said(folder) == (root / "model.said").read_text()
    same = V4Config.load(folder) == V4Config.load(root / "model") and described
    return "right" if right else "wrong" if same and _same_weights(folder, root / "model") else "other"


def _same_weights(one: Path, other: Path) -> bool:
    return all((one / path.name).read_bytes() == path.read_bytes() for path in other.glob("*.safetensors"))


def use_tokenizer(folder: Path, root: Path) -> str:
    from v4cli.chat.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    ids = [tokenizer.encode(text) for text in TEXTS]
    if ids == json.loads((root / "ids.json").read_text()):
        return "right"
    plain = all(not tokenizer.special_ids.intersection(some) for some in ids)
    whole = [tokenizer.decode(some) for some in ids] == list(TEXTS)
    return "other" if plain and whole else "wrong"


def use_archive(folder: Path, root: Path) -> str:
    target = folder / "imported"
    identity, config, state = unloaded(root / "model")
    prefixes = Prefixes(target, identity, BUDGET, BUDGET)
    try:
        archive.read(folder / "x.v4kv", prefixes, config, state)
    finally:
        left = list(target.rglob("*.snapshot")) if target.exists() else []
    return _goes_on(root, target) if left else "wrong"


def use_prefixes(folder: Path, root: Path) -> str:
    for prefixes in stored(folder):
        prefixes.written_today()
    return _goes_on(root, folder)


def _goes_on(root: Path, cache: Path) -> str:
    engine = Engine.open(root / "model", "cpu")
    session = engine.session(prefixes=engine.prefixes(cache, BUDGET, BUDGET), worth_s=0.0)
    session.sync(IDS)
    return "right" if np.array_equal(session.logits, np.load(root / "logits.npy")) else "wrong"


USES = {
    "store": use_store, "config": use_config, "tokenizer": use_tokenizer, "archive": use_archive,
    "prefixes": use_prefixes,
}  # fmt: skip


def fuzz(kind: str, folders: dict, seeds: range, scratch: Path) -> Counter:
    words, bad = Counter(), []
    for seed, said, folder in mutants(folders[kind], TABLE[kind], seeds, scratch):
        outcome = run(partial(USES[kind], folder, folders["root"]))
        words[outcome.word] += 1
        if not outcome.fine:
            bad.append(f"{kind}:{seed} {said}: {outcome.word} {outcome.details}")
    assert not bad, f"{len(bad)} of {len(seeds)}\n" + "\n".join(bad[:20])
    return words


@pytest.mark.parametrize("kind", TABLE)
def test_mutants_are_refused_or_right(kind, folders, tmp_path):
    assert run(lambda: USES[kind](_copy(folders[kind], tmp_path), folders["root"])).word == "right"
    words = fuzz(kind, folders, range(20), tmp_path)
    assert words["right"] if kind == "prefixes" else words["refused"]  # of prefixes what is damaged is computed again


def test_a_changed_file_has_an_end():
    for seed in range(300):
        data, rng = {"a": {"b": [{"c": 1}, 2]}, "d": [[3], {}]}, random.Random(seed)
        for _ in range(4):
            change_json(data, rng)
            json.dumps(data)  # raises if something stands within itself
            data = data or {"a": 1}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TABLE)
def test_six_hundred_mutants_are_refused_or_right(kind, folders, tmp_path):
    words = fuzz(kind, folders, range(1000, 1600), tmp_path)
    print(kind, dict(words))


@pytest.mark.skipif("V4_FUZZ" not in os.environ, reason="V4_FUZZ=KIND:SEED names none")
def test_one_mutant(folders, tmp_path):
    kind, seed = os.environ["V4_FUZZ"].split(":")
    print(fuzz(kind, folders, range(int(seed), int(seed) + 1), tmp_path))


def _copy(folder: Path, scratch: Path) -> Path:
    return shutil.copytree(folder, scratch / "mutant", symlinks=True)
