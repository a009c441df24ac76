"""nano over long contexts: what its last stage of training does, and that the shipped model remembers."""

import random

import pytest
import torch
from v4kernels.api import Span
from v4kernels.reference import Equations

from v4cli.chat.encoding import encode_april
from v4cli.chat.tokenizer import Tokenizer
from v4cli.engine.engine import Engine
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.nano import recipe, skills
from v4cli.nano.long_context import LONGEST, LongOps, trains
from v4cli.nano.parameters import Parameters
from v4cli.nano.recall import ask, haystack
from v4cli.nano.skills import Scene
from v4cli.nano.timelines import told_and_asked, turn_ids
from v4cli.nano.training_ops import TrainingOps
from v4cli.nano.words import Words
from v4cli.paths import NANO

EOS = recipe.CONFIG["eos_token_id"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(NANO / "tokenizer.json")


def drawn_ops(seed: int, tree=None, n: int = 384) -> LongOps:
    ops, ids = LongOps(tree, 1024), torch.zeros(n, dtype=torch.int64)
    ids[20::20] = EOS
    ops.begin(ids, ids > 0, random.Random(seed))
    return ops


def test_turns_joined_are_the_whole_dialogue_encoded(tokenizer):
    scene = Scene(random.Random(3), Words(random.Random(3), "train"), (), {})
    turns = [skills.tell(scene, "dog"), skills.smalltalk(scene), skills.recall(scene, "dog")]
    whole = tokenizer.encode_prompt(encode_april([message for turn in turns for message in turn]))
    assert whole[1:] == [token for turn in turns for token in turn_ids(tokenizer, turn)]


def test_facts_are_told_before_they_are_asked_and_only_once(tokenizer):
    for seed in range(20):
        ids, targets, filler = told_and_asked(tokenizer, 1024, random.Random(seed))
        assert len(ids) == len(targets) == len(filler) == 1024
        assert 200 < sum(target >= 0 for target in targets) < 800
        assert all(target in (-100, after) for target, after in zip(targets, ids[1:]))


def test_positions_jump_between_turns_only_and_reach_a_million():
    spans = []
    for seed in range(40):
        ops = drawn_ops(seed)
        steps = ops.positions.diff()
        jumps = (steps != 1).nonzero().flatten() + 1
        assert set(((jumps - 1) % 20).tolist()) <= {0} and (steps >= 1).all()
        spans.append(ops.positions[-1].item())
    assert max(spans) > LONGEST / 4 and min(spans) == 383


def test_crowding_counts_an_entry_several_times():
    draw = torch.Generator().manual_seed(5)
    q, window = torch.randn((16, 2, 32), generator=draw), torch.randn((16, 32), generator=draw)
    entries, sink = torch.randn((3, 32), generator=draw), torch.zeros(2)
    ops = drawn_ops(1)
    ops.crowd = torch.tensor([5.0, 1.0, 5.0]).log()
    visible = (torch.arange(16) // 4).clamp_max(3)
    repeated_visible = torch.tensor([0, 5, 6, 11])[visible]
    crowded = ops.attention(q, window, 0, entries, visible, None, sink, 8)
    repeated = entries.repeat_interleave(torch.tensor([5, 1, 5]), 0)
    plain = Equations("exact").attention(q, window, 0, repeated, repeated_visible, None, sink, 8)
    torch.testing.assert_close(crowded, plain, rtol=1e-5, atol=1e-5)


def test_attention_in_blocks_and_its_gradients_are_those_of_the_equations():
    """Of a timeline of eight windows, in layers without entries, with few, and with many."""
    draw = torch.Generator().manual_seed(6)

    def tensor(*shape):
        return torch.randn(shape, generator=draw).requires_grad_()

    for ratio in (None, 16, 4):
        inputs = [tensor(128, 2, 32), tensor(128, 32), tensor(2), *([tensor(128 // ratio, 32)] if ratio else [])]
        q, window, sink, entries = *inputs[:3], inputs[3] if ratio else None
        visible = (torch.arange(128) + 1) // ratio if ratio else None
        wanted = torch.randn((128, 2, 32), generator=draw)
        got = []
        for ops in (TrainingOps(None, 128), Equations("exact")):
            out = ops.attention(q, window, 0, entries, visible, None, sink, 16)
            got.append((out.detach(), *torch.autograd.grad((out * wanted).sum(), inputs)))
        for in_blocks, plain in zip(*got):
            torch.testing.assert_close(in_blocks, plain, rtol=1e-4, atol=1e-5)


def test_indexers_learn_from_their_own_loss_alone():
    """It reaches every tensor of an indexer, and nothing else; the answer's loss reaches no indexer."""
    config = recipe.config()
    parameters = Parameters(config, seed=1)
    parameters.freeze(trains)
    ops = drawn_ops(2, build(config, parameters))
    state = V4(config, ops).new_state()
    x = torch.randn((384, config.hidden_size), generator=torch.Generator().manual_seed(2))
    batch = ops.batch([Span(torch.zeros(384, dtype=torch.int64), state.timeline, 0)])
    out = ops.csa_attention(3, x, batch)

    def reached(loss) -> set[str]:
        tensors = {n: t for n, t in parameters.tensors.items() if t.requires_grad}
        grads = torch.autograd.grad(loss, tensors.values(), allow_unused=True)
        return {name for name, grad in zip(tensors, grads) if grad is not None}

    indexer = {name for name in parameters.tensors if name.startswith("layers.3.attn.indexer.")}
    assert reached(ops.own_loss()) == indexer
    others = reached(out.square().sum())
    assert "layers.3.attn.compressor.wkv.weight" in others and others.isdisjoint(indexer)


def test_the_shipped_model_recalls_facts_of_four_thousand_tokens_ago(tokenizer):
    """Most of ten facts among 1,000 entries, of which the indexers choose 512."""
    engine = Engine.open(NANO)
    ids, questions = haystack(random.Random(1), tokenizer, 4000)
    session = engine.session()
    answers = [ask(session, tokenizer, ids, question) for question in questions]
    assert len(ids) // 4 > engine.config.index_topk
    assert sum(answer == question.answer for answer, question in zip(answers, questions)) >= 6
