"""A small model, prefixes of it, and one context as an archive."""

import pytest
from stored_contexts import IDS, SHAPE, open_engine, stored_at
from tiny import random_checkpoint

from v4cli.prefixes import archive


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("m") / "model", SHAPE, seed=4, shards=1)


@pytest.fixture(scope="module")
def engine(model):
    return open_engine(model)


@pytest.fixture
def prefixes(engine, tmp_path):
    return engine.prefixes(tmp_path / "cache", 1 << 30, 1 << 30)


@pytest.fixture(scope="module")
def exported(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    prefixes = engine.prefixes(folder / "cache", 1 << 30, 1 << 30)
    archive.write(folder / "x.v4kv", prefixes, stored_at(engine, prefixes, IDS[:1500]).stored[-1])
    return folder / "x.v4kv"
