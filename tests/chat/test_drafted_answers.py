"""Answers with drafts are those without: text, tools, stop strings and grammars, whatever is verified."""

import random

import numpy as np
import pytest
from guessing import heed, pieces
from v4kernels import native

from v4cli.chat.turn import Chat
from v4cli.engine.draft import NGram
from v4cli.nano.dialogues import generate
from v4cli.options import Options

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the kernel library")
STOPS = ((), (), (" the",), ("1", "e "))


class Eager(NGram):
    """Guesses without any ground, too: what was said last."""

    def draft(self, tokens, last, most):
        found = super().draft(tokens, last, most)
        return (
            found if found.tokens or not tokens else type(found)(list(tokens[-most:]), [0.5] * len(tokens[-most:]), 4)
        )


def question(rng: random.Random) -> tuple[list[dict], list[dict] | None, Options]:
    dialogue = generate(rng, "heldout")
    tools = next((m["tools"] for m in dialogue.messages if "tools" in m), None)
    plain = [{k: v for k, v in m.items() if k != "tools"} for m in dialogue.messages]
    at = rng.choice(list(dialogue.skills))
    sampling = {"temperature": rng.choice([0.0, 0.6, 1.3]), "seed": rng.randrange(1 << 30), "stop": rng.choice(STOPS)}
    answer = Options(thinking=rng.random() < 0.5, max_tokens=60, constrain=rng.random() < 0.6, **sampling)
    return plain[:at], tools, answer


def told(chat: Chat, asked) -> list:
    """All that an answer is, and where the session is after it."""
    events = list(chat.reply(asked[0], asked[2], asked[1]))
    session = chat.session
    marks = {name: array.tobytes() for name, array in session.state.checkpoint().arrays.items()}
    assert session.state.n_tokens == len(session.tokens)
    return [events, chat.message, chat.finish, chat.ids, chat.logprobs, list(session.tokens), marks,
            session.logits.tobytes()]  # fmt: skip


@pytest.mark.parametrize("seeds", pieces(6), ids=str)
def test_answers_are_the_same(chat, seeds):
    pytest.importorskip("llguidance")
    accepted = verified = 0
    for seed in seeds:
        asked = question(random.Random(seed))
        plain, other = chat.twin(), chat.twin()
        other.constraints = plain.constraints = chat.constraints
        chat.engine.drafts = "off"
        wanted = told(plain, asked)
        chat.engine.drafts = "auto"
        heed(other.session, [Eager()], seed)
        assert told(other, asked) == wanted, seed
        accepted += other.session.drafting.done.accepted
        verified += other.session.drafting.done.verified
    assert verified > 10 * len(seeds) and accepted > len(seeds)


def test_what_copies_takes_fewer_steps(chat):
    text = " ".join(np.random.default_rng(1).choice("river stone cloud seven lamp green under walk".split(), 24))
    options = Options(thinking=False, temperature=0.0, max_tokens=120)
    asked = [{"role": "user", "content": f"repeat: {text}"}], None, options
    chat.engine.drafts = "off"
    wanted = told(chat.twin(), asked)
    chat.engine.drafts, other = "ngram", chat.twin()
    heed(other.session, [NGram()], 0)
    assert told(other, asked) == wanted
    assert other.stats.drafts.accepted > 10 and other.stats.to_dict()["drafts"]["steps"] < len(wanted[3])
