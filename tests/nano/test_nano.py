"""The embedded model: its dialogues, its training and what it ships."""

import random

import pytest
import torch
from v4kernels.reference import Equations, ReferenceOps

from v4cli.chat import special
from v4cli.chat.encoding import encode_april
from v4cli.chat.tokenizer import Tokenizer
from v4cli.chat.turn import Chat, Options
from v4cli.engine.engine import Engine
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.nano import recipe
from v4cli.nano.average import average
from v4cli.nano.dialogues import generate
from v4cli.nano.muon import Muon, orthogonalize
from v4cli.nano.parameters import Parameters
from v4cli.nano.timelines import assistant_targets
from v4cli.nano.tools import TOOLS
from v4cli.nano.train import export
from v4cli.nano.training_ops import TrainingOps
from v4cli.nano.words import COMMON, Words
from v4cli.paths import NANO

MAX_BYTES = 12 << 20


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(NANO / "tokenizer.json")


@pytest.fixture(scope="module")
def chat():
    return Chat.open(NANO)


def test_forward_in_training_is_the_engine_s_on_the_exported_checkpoint(tmp_path):
    config = recipe.config()
    parameters = Parameters(config, seed=3)
    for tensor in parameters.tensors.values():  # silent sublayers would hide their weights
        if tensor.is_floating_point() and tensor.dim() == 2 and not tensor.any():
            tensor.data.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    parameters.requantize()
    ids = torch.randint(0, config.vocab_size, (200,), generator=torch.Generator().manual_seed(2))
    model = V4(config, ReferenceOps(build(config, parameters)))
    logits = model.logits(model.forward([(ids, model.new_state())])).detach()
    export(parameters, tmp_path)
    served = torch.tensor(Engine.open(tmp_path, "reference").session().feed(ids.tolist(), all_logits=True))
    # bf16 storage of embedding, head, norms and compressors is the only difference
    assert (served - logits).abs().mean() < 0.02 * logits.std()


def test_every_trained_tensor_gets_a_gradient_except_the_indexer():
    """The indexer chooses entries; with nothing to choose from it has no part in the logits. Nor has an expert that
    no token chose."""
    config = recipe.config()
    parameters = Parameters(config, seed=1)
    for name, tensor in parameters.tensors.items():
        if tensor.is_floating_point() and not tensor.any() and not name.endswith("gate.bias"):
            tensor.data.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    model = V4(config, ReferenceOps(build(config, parameters)))
    ids = torch.randint(0, config.vocab_size, (300,), generator=torch.Generator().manual_seed(2))
    model.logits(model.forward([(ids, model.new_state())])).square().mean().backward()
    idle = {n for n, t in parameters.tensors.items() if isinstance(t, torch.nn.Parameter) and t.grad is None}
    assert idle and {name for name in idle if ".indexer." not in name and ".experts." not in name} == set()


def test_muon_updates_are_nearly_orthogonal_and_forgive_experts_without_tokens():
    g = torch.randn((3, 24, 40), generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalize(g))
    assert values.min() > 0.3 and values.max() < 1.4
    a, b = (torch.nn.Parameter(torch.ones(24, 40)) for _ in range(2))
    a.grad = g[0]
    Muon([a, b], lr=0.1).step()
    assert not torch.equal(a, torch.ones(24, 40)) and torch.equal(b, torch.ones(24, 40))


def test_targets_are_exactly_what_the_assistant_writes(tokenizer):
    rng = random.Random(4)
    for _ in range(20):
        dialogue = generate(rng)
        thinking = dialogue.thinking_mode == "thinking"
        prompt = encode_april(dialogue.messages, thinking_mode=dialogue.thinking_mode)
        ids = tokenizer.encode_prompt(prompt)
        targets = assistant_targets(ids, tokenizer, thinking)
        assert all(target in (-100, after) for target, after in zip(targets, ids[1:]))
        assert targets[-1] == -100
        spoken = tokenizer.decode([target for target in targets if target >= 0])
        last = dialogue.messages[-1]
        assert spoken.endswith(last["content"] + special.EOS)
        assert special.USER not in spoken


def test_held_out_made_up_values_are_never_trained():
    made = {split: Words(random.Random(1), split) for split in ("train", "heldout")}
    values = {split: {words.word() for _ in range(3000)} for split, words in made.items()}
    assert not values["train"] & values["heldout"] - set(COMMON)


def test_checkpoint_is_small_and_speaks_of_itself(chat):
    assert sum(file.stat().st_size for file in NANO.iterdir()) < MAX_BYTES
    for _ in chat.reply([{"role": "user", "content": "Hello, who are you?"}], Options(thinking=False)):
        pass
    assert chat.finish == "stop"
    assert "nano" in chat.message["content"]


def test_checkpoint_calls_a_tool_and_uses_its_result(chat):
    messages = [{"role": "user", "content": "What is 17*23?"}]
    for _ in chat.reply(messages, Options(thinking=True), TOOLS):
        pass
    (call,) = chat.message["tool_calls"]
    assert call["function"]["name"] == "calculator"
    assert call["function"]["arguments"] == '{"expression": "17*23"}'
    messages += [chat.message, {"role": "tool", "tool_call_id": call["id"], "content": "391"}]
    for _ in chat.reply(messages, Options(thinking=True), TOOLS):
        pass
    assert "391" in chat.message["content"]


@pytest.mark.parametrize("inverse", [False, True])
def test_training_rotates_as_the_reference_does(inverse):
    """Compiled loops know no complex numbers."""
    draw = torch.Generator().manual_seed(3)
    q, angles = torch.randn((5, 2, 32), generator=draw), 9 * torch.randn((5, 8), generator=draw)
    turns = torch.polar(torch.ones_like(angles), angles)
    turned = TrainingOps._turned(None, q, turns.real, -turns.imag if inverse else turns.imag)
    torch.testing.assert_close(turned, Equations("exact").rope(q, turns, inverse))


def test_an_average_lies_between_two_checkpoints(tmp_path):
    """Norms are stored as bf16 and tell the share exactly; what chooses experts by hash is no number."""
    made = {}
    for name, value in (("before", 1.0), ("after", 2.0)):
        parameters = Parameters(recipe.config(), seed=1)
        for norm in (t for n, t in parameters.tensors.items() if n.endswith("norm.weight")):
            norm.data.fill_(value)
        export(parameters, tmp_path / name)
        made[name] = parameters.tensors
    mixed = average(tmp_path / "before", tmp_path / "after", 0.25).tensors
    assert all((t == 1.25).all() for n, t in mixed.items() if n.endswith("norm.weight"))
    assert all(torch.equal(t, made["before"][n]) for n, t in mixed.items() if n.endswith("tid2eid"))
