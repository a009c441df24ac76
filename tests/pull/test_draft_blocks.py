"""The blocks that guess tokens: pulled with the rest, or left out."""

import numpy as np
import pytest
from pulling import Listener
from tiny import STORE_LIKE, random_checkpoint, with_drafts

from v4cli.engine.engine import Engine
from v4cli.errors import UsageError
from v4cli.pull.hub import FolderSource
from v4cli.pull.pull import pull
from v4cli.store.store import Store


def test_they_come_with_a_model_unless_they_are_left_out(tmp_path):
    source = with_drafts(random_checkpoint(tmp_path / "trunk", STORE_LIKE), tmp_path / "official")
    whole, without = tmp_path / "whole", tmp_path / "without"
    pull(FolderSource(source), whole, reporter=Listener())
    pull(FolderSource(source), without, reporter=Listener(), drafts=False)
    parts = set(Store.open(whole).parts) - set(Store.open(without).parts)
    assert parts == {f"mtp-{i}{kind}" for i in range(3) for kind in ("", "-experts")}
    assert pull(FolderSource(source), without, reporter=Listener()) is None, "a store stays what it was made"
    with pytest.raises(UsageError, match="has the blocks that --no-drafts leaves out"):
        pull(FolderSource(source), whole, reporter=Listener(), drafts=False)
    engines = [Engine.open(folder, "cpu") for folder in (source, whole, without)]
    heads = [engine.model.head for engine in engines]
    features = np.random.default_rng(0).standard_normal((9, 3 * 256)).astype(np.float32)
    said = [
        head.guesses(features, list(range(9)), head.new_timeline(), 0, lambda row, i: int(row.argmax()))
        for head in heads[:2]
    ]
    assert said[0] == said[1] and heads[2] is None
    with pytest.raises(UsageError, match="no draft model"):
        engines[2].guess_by("model")
