"""Grammars of wordings: `[list|show] [the |]files` gives every way through; a part of them is held out of training.

A wording is held out by a hash of its own text, its slots (`{file}`) still empty: what fills them does not count.
"""

import random
import zlib
from functools import cache

HELD_OUT = 8  # one wording in this many is never trained
TRIES = 200


@cache
def parsed(grammar: str) -> tuple:
    """A sequence of texts and of tuples of alternatives, which are sequences themselves."""
    sequence, end = _sequence(grammar, 0)
    if end != len(grammar):
        raise ValueError(f"unbalanced brackets: {grammar}")
    return sequence


def _sequence(text: str, at: int) -> tuple[tuple, int]:
    parts, plain = [], ""
    while at < len(text) and text[at] not in "|]":
        if text[at] == "[":
            alternatives = []
            while text[at] != "]":
                part, at = _sequence(text, at + 1)
                alternatives.append(part)
            parts += [plain, tuple(alternatives)]
            plain = ""
        else:
            plain += text[at]
        at += 1
    return (*parts, plain), at


def expanded(rng: random.Random, grammar: str) -> str:
    """One way through a grammar."""
    return _expanded(rng, parsed(grammar))


def _expanded(rng: random.Random, sequence: tuple) -> str:
    return "".join(part if isinstance(part, str) else _expanded(rng, rng.choice(part)) for part in sequence)


def is_held_out(wording: str) -> bool:
    """Whether a wording is kept for evaluation."""
    return zlib.crc32(wording.encode()) % HELD_OUT == 0


def wording(rng: random.Random, grammars: tuple[str, ...], held_out: bool) -> str:
    """A wording of one of the grammars, of those held out or of the others. A grammar that has none is not asked twice
    as often: it is passed over."""
    for _ in range(TRIES):
        found = expanded(rng, rng.choice(grammars))
        if is_held_out(found) == held_out:
            return found
    raise ValueError(f"no wording that is {'' if held_out else 'not '}held out: {grammars}")


def one_of(rng: random.Random, pairs: tuple[tuple[tuple[str, ...], object], ...], held_out: bool) -> tuple[str, object]:
    """A wording of one of the (grammars, what they mean) pairs, and what it means; of some, no wording is held out."""
    while True:
        grammars, meaning = rng.choice(pairs)
        try:
            return wording(rng, grammars, held_out), meaning
        except ValueError:
            continue
