"""The draft models on the cpu backend: the reference's guesses, but for what its numerics round."""

import numpy as np
import pytest
from tiny import STORE_LIKE, golden_tiny, random_checkpoint, with_drafts
from v4kernels import native
from v4kernels.reference import Reference
from v4kernels.reference.draft import ReferenceDrafts

from v4cli.engine.engine import Engine
from v4cli.model.draft import DraftModel
from v4cli.model.weights import build, build_draft
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.sources import DenseSource

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the kernel library")


def of_reference(folder) -> DraftModel:
    source = DenseSource(Checkpoint.open(folder), lazy=False)
    config = source.checkpoint.config
    draft = build_draft(config, source, Reference().bind(build(config, source)).tree)
    return DraftModel(draft, ReferenceDrafts(draft), config.num_hidden_layers - 1)


def test_dspark_guesses_what_the_reference_does(tmp_path):
    folder = with_drafts(random_checkpoint(tmp_path / "trunk", STORE_LIKE), tmp_path / "model")
    cpu, reference = Engine.open(folder, "cpu").model.head, of_reference(folder)
    assert cpu.watched == reference.watched == ("layers.1.ffn", "layers.2.ffn", "layers.3.ffn")
    rng, at = np.random.default_rng(0), 0
    features = rng.standard_normal((300, 3 * 256)).astype(np.float32)
    ids, timelines = rng.integers(0, 512, 301).tolist(), [head.new_timeline() for head in (cpu, reference)]
    same = []
    for n in (1, 3, 128, 7):
        rows: list[list] = [[], []]

        def best(row, i, to=rows[1]):
            to.append(row)
            return int(row.argmax())

        some = features[at : at + n], ids[at + 1 : at + n + 1]
        said, chances = reference.guesses(*some, timelines[1], at, best)

        def the_same(row, i, to=rows[0], said=said):
            to.append(row)
            return said[i]

        _, others = cpu.guesses(*some, timelines[0], at, the_same)
        at += n
        same += [int(row.argmax()) == token for row, token in zip(rows[0], said)]
        assert np.abs(np.stack(rows[0]) - np.stack(rows[1])).max() < 0.15 < np.std(rows[1])
        assert np.abs(np.subtract(chances, others)).max() < 0.06
    assert np.mean(same) > 0.9, "but for near ties"


def test_mtp_guesses_what_the_reference_does(golden, tmp_path):
    folder = golden_tiny(golden, tmp_path / "model", "april")
    cpu, reference = Engine.open(folder, "cpu").model.head, of_reference(folder)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((150, 4 * 256)).astype(np.float32)
    ids = rng.integers(0, 512, 150).tolist()
    with reference.ops.inference():
        wanted = reference.mtp(features, ids, reference.new_timeline(), 0, 150)
    found = cpu.mtp(features, ids, cpu.new_timeline(), 0, 150)
    assert np.median(np.abs(found - wanted)) < 0.05 < 0.5 < np.std(wanted)
    assert np.mean(found.argmax(1) == wanted.argmax(1)) > 0.9
