"""nano's drafter: its forward against the official code's on the golden checkpoint."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import golden_tiny
from v4kernels.reference import ReferenceOps

from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.nano import recipe
from v4cli.nano.acceptance import Walked
from v4cli.nano.heads import Heads, features_of
from v4cli.nano.parameters import Parameters
from v4cli.nano.train_heads import Both, drawn_places, heads_loss
from v4cli.paths import NANO
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.sources import DenseSource

FIRST = 300  # the official code drafts after each of eight positions from here on


@pytest.fixture(scope="module")
def tiny(golden, tmp_path_factory):
    folder = golden_tiny(golden, tmp_path_factory.mktemp("drafter"))
    config = json.loads((folder / "config.json").read_text())
    short = json.loads((golden / "tiny" / "config.json").read_text())["config"]["dspark"]
    keys = ("block_size", "noise_token_id", "target_layer_ids", "markov_rank")
    (folder / "config.json").write_text(json.dumps(config | {f"dspark_{key}": short[key] for key in keys}))
    shards = {"a.safetensors": "main", "b.safetensors": "mtp_dspark"}
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for shard, name in shards.items():
        shutil.copyfile(golden / "tiny" / f"{name}.safetensors", folder / shard)
        weight_map |= dict.fromkeys(load_file(folder / shard), shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return Checkpoint.open(folder), load_file(golden / "tiny" / "golden.safetensors")


def test_drafts_equal_the_official_code_s(tiny):
    checkpoint, wanted = tiny
    config, source = checkpoint.config, DenseSource(checkpoint, lazy=False)
    ids = wanted["input_ids"][0].long()
    with torch.inference_mode():
        features, _ = features_of(V4(config, ReferenceOps(build(config, source))), ids)
        heads, places = Heads(config, source), torch.arange(FIRST, FIRST + 8)
        known = ids[places + 1]
        hidden = heads.hidden(features, known, places)
        said, _ = heads.guess(hidden, known)
        before = torch.cat((known[:, None], said[:, :-1]), 1)
        logits, confidence = heads.logits(hidden, before), heads.confidence(hidden, before)
    assert torch.equal(said, wanted["exact.dspark_ids"][:, 1:].long())
    assert (logits - wanted["exact.dspark_logits"]).abs().max() < 1e-4
    assert (confidence - wanted["exact.dspark_confidence"]).abs().max() < 1e-4


def test_the_loss_reaches_every_tensor_of_the_drafter_and_no_other():
    config, source = recipe.config_with_drafter(), DenseSource(Checkpoint.open(NANO), lazy=False)
    drafter = Parameters(config, seed=1, drafter=True)
    for tensor in drafter.tensors.values():  # silent parts would hide those before them
        if not tensor.any():
            tensor.data.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    heads = Heads(config, Both(source, drafter))
    ids = torch.randint(0, config.vocab_size, (80,), generator=torch.Generator().manual_seed(2))
    model = V4(config, ReferenceOps(build(config, source)))
    with torch.no_grad():
        features, hidden = features_of(model, ids)
        said = model.logits(hidden)
    targets = torch.cat((ids[1:], torch.tensor([-100])))
    places = drawn_places(targets, 12, random.Random(3))
    heads_loss(heads, ids, targets, places, features, said).backward()
    idle = {name for name, tensor in drafter.tensors.items() if tensor.requires_grad and tensor.grad is None}
    assert all(".experts." in name for name in idle) and len(drafter.tensors) > 100


def test_guesses_are_taken_until_the_first_that_the_trunk_would_not_say():
    spoken = torch.tensor([-100, 5, 6, 7, 8, 9, -100, -100])  # positions 1 to 5 speak
    best = torch.tensor([0, 5, 6, 7, 8, 9, 0, 0])
    said = torch.full((8, 5), 99)
    said[1] = torch.tensor([6, 7, 0, 9, 9])  # after the token 5: two right, one wrong
    said[4] = torch.tensor([9, 1, 1, 1, 1])  # after the token 8: the last one
    walked = Walked()
    assert walked.walk(said, torch.zeros((8, 5)), best, spoken, 1) == 6
    assert (walked.steps, walked.tokens, walked.tried, walked.right) == (2, 5, [2, 1, 1, 0, 0], [2, 1, 0, 0, 0])
