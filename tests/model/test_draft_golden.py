"""The draft models of the tiny golden checkpoint against the official code's outputs."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import golden_tiny
from v4kernels.reference import Reference
from v4kernels.reference.draft import ReferenceDrafts

from v4cli.model.config import V4Config
from v4cli.model.draft import DraftModel
from v4cli.model.v4 import V4
from v4cli.model.weights import build, build_draft
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.sources import DenseSource

N_PREFILL = 300


def opened(golden, folder, kind: str):
    """The trunk, its draft model, what the trunk's layers gave for all tokens, the tokens, and what is wanted."""
    path = golden_tiny(golden, folder, kind)
    config, source = V4Config.load(path), DenseSource(Checkpoint.open(path), lazy=False)
    trunk = build(config, source)
    model = V4(config, Reference().bind(trunk))
    draft = build_draft(config, source, trunk)
    head = DraftModel(draft, ReferenceDrafts(draft), config.num_hidden_layers - 1)
    wanted = load_file(golden / "tiny" / "golden.safetensors")
    ids, seen = wanted["input_ids"][0].tolist(), []
    with model.ops.inference():
        model.forward(
            [(ids, model.new_state())],
            watch=lambda name, streams: seen.append(head.noted(streams)) if name in head.watched else None,
        )
    return head, np.concatenate(seen, axis=1), ids, wanted


def test_mtp_equals_the_official_logits(golden, tmp_path):
    head, features, ids, wanted = opened(golden, tmp_path, "april")
    with head.ops.inference():
        whole = head.mtp(features[:N_PREFILL], ids[1 : N_PREFILL + 1], head.new_timeline(), 0, N_PREFILL)
        assert np.abs(whole - wanted["exact.mtp_logits"]).max() < 1e-4
        timeline, at = head.new_timeline(), 0
        for n in (7, 150):
            some = head.mtp(features[at : at + n], ids[at + 1 : at + n + 1], timeline, at, 1)
            at += n
            assert np.abs(some[0] - whole[at - 1]).max() < 1e-4


def test_dspark_equals_the_official_drafts(golden, tmp_path):
    head, features, ids, wanted = opened(golden, tmp_path, "dspark")
    timeline, at = head.new_timeline(), 0
    for i, last in enumerate(range(N_PREFILL, N_PREFILL + 8)):
        rows: list = []

        def pick(row, i, rows=rows):
            rows.append(row)
            return int(row.argmax())

        features_here, following = features[at : last + 1], ids[at + 1 : last + 2]
        tokens, chances = head.guesses(features_here, following, timeline, at, pick)
        at = last + 1
        assert [ids[last + 1], *tokens] == wanted["exact.dspark_ids"][i].tolist()
        assert np.abs(np.stack(rows) - wanted["exact.dspark_logits"][i]).max() < 1e-4
        confidence = 1 / (1 + np.exp(-wanted["exact.dspark_confidence"][i]))
        assert chances == pytest.approx(confidence.tolist(), abs=1e-4)
