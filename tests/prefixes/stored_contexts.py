"""A small model and its stored contexts, for tests of them."""

import numpy as np
import pytest
from tiny import SMALL
from v4kernels import native

from v4cli.engine.engine import Engine
from v4cli.prefixes import archive
from v4cli.prefixes.prefixes import CHUNK

SHAPE = SMALL | {
    "head_dim": 128, "hidden_size": 128, "num_hidden_layers": 3, "compress_ratios": [0, 4, 128], "index_topk": 8,
    "num_attention_heads": 2, "o_groups": 1, "q_lora_rank": 64, "o_lora_rank": 64, "index_n_heads": 2,
}  # fmt: skip

IDS = np.random.default_rng(3).integers(0, 512, 6 * CHUNK).tolist()


def open_engine(folder, backend="cpu", numerics=None):
    if backend == "cpu" and not native.available():
        pytest.skip(native.reason())
    return Engine.open(folder, backend, numerics)


def session(engine, prefixes):
    return engine.session(prefixes=prefixes, worth_s=0.0)


def stored_at(engine, prefixes, ids, anchors=()):
    made = session(engine, prefixes)
    made.sync(ids, anchors=anchors)
    return made


def imported_by(engine, path, prefixes):
    return archive.read(path, prefixes, engine.config, engine.model.new_state())


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
