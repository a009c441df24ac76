"""nano's own drafter, as it ships: the same guesses by the plain statement and the engine, and right ones."""

import random

import pytest
import torch
from guessing import heed
from v4kernels import native
from v4kernels.reference import ReferenceOps

from v4cli.chat.encoding import encode_april
from v4cli.chat.tokenizer import Tokenizer
from v4cli.engine.engine import Engine
from v4cli.engine.sampler import Sampler, Sampling
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.nano.dialogues import meeting
from v4cli.nano.heads import Heads, features_of
from v4cli.nano.timelines import assistant_targets
from v4cli.paths import NANO
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.sources import DenseSource

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the kernel library")
PLACES, SURE = 40, 0.95  # of a dialogue; the confidence from which on roundings change nothing


@pytest.fixture(scope="module")
def engine():
    return Engine.open(NANO, "cpu", drafts="model")


@pytest.fixture(scope="module")
def dialogue():
    """Tokens of a held-out dialogue, and those that the assistant says, or -100."""
    tokenizer, its = Tokenizer.from_file(NANO / "tokenizer.json"), meeting(random.Random(11), "heldout")
    ids = tokenizer.encode_prompt(encode_april(its.messages, thinking_mode=its.thinking_mode))
    return ids, assistant_targets(ids, tokenizer, its.thinking_mode == "thinking")


def test_reference_and_engine_guess_the_same(engine, dialogue):
    """The engine rounds activations to int8, so a guess between equals may differ: none that either is sure of."""
    ids, targets = dialogue
    places = [p for p, target in enumerate(targets[:-1]) if target >= 0 and p > 10][:PLACES]
    checkpoint = Checkpoint.open(NANO)
    source = DenseSource(checkpoint, lazy=False)
    heads = Heads(checkpoint.config, source)
    with torch.inference_mode():
        features, _ = features_of(
            V4(checkpoint.config, ReferenceOps(build(checkpoint.config, source))), torch.tensor(ids)
        )
        at = torch.tensor(places)
        known = torch.tensor(ids)[at + 1]
        said, chances = heads.guess(heads.hidden(features, known, at), known)
    session = engine.session()
    heed(session, [session.drafting.head], 0)
    head, same = session.drafting.head, 0
    head.sampler = Sampler(Sampling(0.0))
    for i, p in enumerate(places):
        session.sync(ids[: p + 1])
        draft = head.draft(ids[: p + 1], ids[p + 1], 5)
        agree = 0
        while agree < 5 and draft.tokens[agree] == said[i, agree]:
            agree += 1
        sure = 0
        while sure < 5 and chances[i, sure] >= SURE:
            sure += 1
        assert agree >= sure, (p, draft.tokens, said[i].tolist(), chances[i].tolist())
        same += draft.tokens[0] == said[i, 0]
    assert same >= 0.9 * len(places) >= 9


def test_its_guesses_are_accepted_and_change_nothing(engine, dialogue):
    """More than one at every other step, though some are verified that it doubts."""
    ids, targets = dialogue
    start = next(p for p, target in enumerate(targets) if target >= 0) + 1
    answers, taken = [], 0
    for drafts in ("off", "model"):
        engine.drafts, session = drafts, engine.session()
        heed(session, [session.drafting.head], 1)
        session.sync(ids[:start])
        answers.append([(step.token, step.logprob) for step in session.generate(Sampling(0.0), 120)])
        taken = session.drafting.done.accepted / max(session.drafting.done.steps, 1)
    assert answers[0] == answers[1] and taken > 0.5
