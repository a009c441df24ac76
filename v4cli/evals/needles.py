"""Questions about long contexts from a seed; every answer is one that only the context has.

| kind  | asked for                                                              |
|-------|------------------------------------------------------------------------|
| key   | the code of one of several names, told at some depth                   |
| chain | the value that a variable has through three others                     |
| count | how many parcels arrived in a town                                     |
| copy  | a file, given in the middle, with one line changed                     |
"""

import random
from dataclasses import dataclass
from itertools import pairwise

from v4cli.chat.tokenizer import Tokenizer
from v4cli.evals import texts

VERSION = 1  # counts up when a question changes
DEPTHS = (0.1, 0.5, 0.9)  # of the keys that are asked for
KEYS = 8
QUESTIONS = len(DEPTHS) + 3  # about a context
ROOM = 400  # tokens for what is put into the document, and for the question


@dataclass(frozen=True)
class Needle:
    """Messages that end with a question, and the answer that is right."""

    kind: str
    depth: float | None  # of what is asked for; None where that is all over the context
    messages: list[dict]
    answer: str
    max_tokens: int = 32

    def right(self, said: str) -> bool:
        """Whether the answer is that, to the character; a code or number may stand in a sentence, alone of its kind."""
        if self.kind == "copy":
            return said.strip().removeprefix("```").removesuffix("```").strip() == self.answer
        words = [word.strip("\"'`*.,:;!()") for word in said.split()]
        codes = [word for word in words if any(character.isdigit() for character in word)]
        return codes == [self.answer]


def haystack(rng: random.Random, tokenizer: Tokenizer, n_tokens: int) -> list[Needle]:
    """Questions about one document of about n_tokens."""
    names = rng.sample(texts.FIRST, KEYS)
    codes = {name: "".join(rng.choices("abcdefghkmnpqrstuvwxyz", k=3)) + str(rng.randint(100, 999)) for name in names}
    depths = [*DEPTHS, *(rng.random() for _ in range(KEYS - len(DEPTHS)))]
    told = [(depth, f"The access code of {name} is {codes[name]}.") for depth, name in zip(depths, names)]
    variables, value = rng.sample([f"v{i}" for i in range(10, 100)], 4), str(rng.randint(10_000, 99_999))
    steps = [f"Let {variables[0]} be {value}."]
    steps += [f"Let {new} be the same as {old}." for old, new in pairwise(variables)]
    told += list(zip(sorted(rng.random() for _ in steps), steps))
    town, n_there = rng.choice(texts.TOWNS), rng.randint(3, 7)
    others = [place for place in texts.TOWNS if place != town]
    arrived = [town] * n_there + [rng.choice(others) for _ in range(5)]
    told += [(rng.random(), f"Parcel {rng.randint(1000, 9999)} arrived in {place}.") for place in arrived]
    file, changed = _file(rng)
    at = rng.random()
    told.append((at, f"<file>\n{file}\n</file>"))
    document = _with(texts.document(rng, tokenizer, n_tokens - ROOM), told)
    asked = [
        ("key", depth, f"What is the access code of {name}? Answer with the code only.", codes[name])
        for depth, name in zip(DEPTHS, names)
    ]
    asked += [
        ("chain", None, f"What is the value of {variables[-1]}? Answer with the number only.", value),
        ("count", None, f"How many parcels arrived in {town}? Answer with the number only.", str(n_there)),
        ("copy", at, f"Repeat the file exactly, but with {changed[0]} in place of {changed[1]}. Nothing else.",
         file.replace(changed[1], changed[0])),
    ]  # fmt: skip
    return [
        Needle(
            kind,
            depth,
            [{"role": "user", "content": f"{document}\n\n{question}"}],
            answer,
            200 if kind == "copy" else 32,
        )
        for kind, depth, question, answer in asked
    ]


def _with(paragraphs: list[str], told: list[tuple[float, str]]) -> str:
    """The document with lines put in at their depths."""
    at: dict[int, list[str]] = {}
    for depth, line in sorted(told, key=lambda pair: pair[0]):
        at.setdefault(min(int(depth * (len(paragraphs) + 1)), len(paragraphs)), []).append(line + "\n\n")
    pieces = []
    for i in range(len(paragraphs) + 1):
        pieces += [*at.get(i, ()), *paragraphs[i : i + 1]]
    return "".join(pieces).strip()


def _file(rng: random.Random) -> tuple[str, tuple[str, str]]:
    """A short file of settings, and a line of it as it is to be and as it is."""
    names = rng.sample(texts.FIELDS, 5)
    lines = [f"{name} = {rng.randint(100, 999)}" for name in names]
    name = rng.choice(names)
    old = next(line for line in lines if line.startswith(name + " "))
    return "\n".join([f"# {rng.choice(texts.NOUNS)} settings", *lines]), (f"{name} = {rng.randint(1000, 9999)}", old)
