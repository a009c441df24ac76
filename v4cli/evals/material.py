"""What a model is asked: generated for any, and nano's own world for nano, which knows no other."""

import hashlib
import random
from dataclasses import dataclass
from typing import Protocol

from v4cli.chat.tokenizer import Tokenizer
from v4cli.evals import cases, needles, programs, texts
from v4cli.evals.cases import Case
from v4cli.evals.needles import Needle
from v4cli.paths import NANO

CASE_KINDS = ("single", "parallel", "irrelevant", "multi-turn", "long result")


@dataclass(frozen=True)
class Text:
    """Token ids, and of each whether predicting the next one counts."""

    ids: list[int]
    counts: list[bool]


class Material(Protocol):
    """All of it is a function of the seed. `name` says what it is, and its version; a context has `n_questions`."""

    name: str
    n_questions: int

    def text(self, seed: int, number: int, n_tokens: int) -> Text:
        """Text `number`, n_tokens of it. A longer one begins with a shorter."""
        ...

    def case(self, seed: int, kind: str, number: int, long: int) -> Case:
        """Tool case `number` of a kind; of `long` tokens where a result is long."""
        ...

    def haystack(self, seed: int, number: int, n_tokens: int) -> list[Needle]:
        """Questions about context `number` of about n_tokens."""
        ...


class General:
    """Texts, schemas and contexts by grammars."""

    name = f"generated {texts.VERSION}.{cases.VERSION}.{needles.VERSION}.{programs.VERSION}"
    n_questions = needles.QUESTIONS

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def text(self, seed: int, number: int, n_tokens: int) -> Text:
        ids = [self.tokenizer.bos_id]
        for paragraph in texts.paragraphs(drawn(seed, "text", number)):
            if len(ids) >= n_tokens:
                break
            ids += self.tokenizer.encode(paragraph)
        return Text(ids[:n_tokens], [True] * n_tokens)

    def case(self, seed: int, kind: str, number: int, long: int) -> Case:
        rng = drawn(seed, f"tools {kind}", number)
        if kind == "long result":
            return cases.long_result(rng, self.tokenizer, long)
        draw = {
            "single": cases.single,
            "parallel": cases.parallel,
            "irrelevant": cases.irrelevant,
            "multi-turn": cases.multi_turn,
        }
        return draw[kind](rng)

    def haystack(self, seed: int, number: int, n_tokens: int) -> list[Needle]:
        return needles.haystack(drawn(seed, f"needle {n_tokens}", number), self.tokenizer, n_tokens)


def material_for(tokenizer: Tokenizer) -> Material:
    """nano's for what has nano's vocabulary."""
    nano = hashlib.sha256((NANO / "tokenizer.json").read_bytes()).hexdigest()
    if tokenizer.digest == nano:
        from v4cli.evals.of_nano import OfNano

        return OfNano(tokenizer)
    return General(tokenizer)


def drawn(seed: int, what: str, number: int) -> random.Random:
    """The generator of one thing: independent of all others."""
    return random.Random(f"{seed} {what} {number}")
