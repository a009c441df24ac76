"""The texts of a calibration: generated, the same for everyone. Dialogues with and without thinking and tools (nano's
generator, made-up values that its tests never see), programs, tables and JSON, sentences in several languages.

They need not be good texts: what counts is which inputs occur together, and that every expert is asked. Nothing here is
an item of an evaluation.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from v4cli import files
from v4cli.chat.encoding import encode_april
from v4cli.chat.tokenizer import Tokenizer
from v4cli.errors import UsageError
from v4cli.nano import dialogues

SEED = 20
TOKENS = 1 << 16
LENGTHS = (256, 512, 512, 1024, 1024, 2048, 4096)  # of texts, in tokens
MAX_BYTES = 256 << 20  # of a file

NAMES = (
    "count total index value item result buffer offset table cache node queue weight score limit width path key".split()
)
VERBS = "read write find merge split sort count load store parse join move check build clear".split()
PROGRAMS = (
    """def {f}({a}, {b}={n}):
    \"\"\"Return the {b} of {a}.\"\"\"
    {c} = []
    for i, {d} in enumerate({a}):
        if {d} > {b} and i % {m} == 0:
            {c}.append({d} * {m} - {n})
    return sorted({c})[:{b}]
""",
    """class {C}:
    def __init__(self, {a}: int, {b}: str = "{c}") -> None:
        self.{a} = {a}
        self.{b} = {b}

    def {f}(self) -> dict[str, int]:
        return {{self.{b}: self.{a} + {n}}}
""",
    """static int {f}(const int *{a}, size_t n) {{
    int {b} = {n};
    for (size_t i = 0; i < n; i++) {{
        if ({a}[i] > {m})
            {b} += {a}[i] << {k};
    }}
    return {b};
}}
""",
    """export async function {f}({a}, {{ {b} = {n} }} = {{}}) {{
  const {c} = await fetch(`/api/{d}/${{{a}}}`);
  if (!{c}.ok) throw new Error("{d} failed: " + {c}.status);
  return {c}.json().filter((x) => x.{b} >= {m});
}}
""",
    """pub fn {f}({a}: &[u32], {b}: usize) -> Option<u32> {{
    {a}.iter().skip({b}).map(|x| x.wrapping_mul({n})).max()
}}
""",
    """SELECT {a}, COUNT(*) AS {b} FROM {c} JOIN {d} ON {c}.id = {d}.{a}_id
WHERE {d}.{b} > {n} GROUP BY {a} ORDER BY {b} DESC LIMIT {m};
""",
    """#!/bin/sh
set -eu
for {a} in "$@"; do
  {f} --{b} {n} "${a}" | sort -u > "{c}/${a}.{d}" || exit {k}
done
""",
    """diff --git a/{a}.py b/{a}.py
@@ -{n},{m} +{n},{k} @@
-    return {b}
+    return {c} if {d} else {b}
""",
)
SENTENCES = {
    "en": ("The {n} boxes in the {p} were counted twice, because {w} did not trust the first list. ",
           "In {y}, {w} moved from {p} to the coast and wrote {n} letters about the weather. ",
           "If the pressure falls below {n} units, close the valve and call {w} in {p}. "),
    "de": ("Im Jahr {y} zog {w} nach {p} und eröffnete dort {n} kleine Läden, von denen keiner lange bestand. ",
           "Die {n} Kisten, die gestern aus {p} kamen, hat {w} noch nicht ausgepackt. "),
    "fr": ("En {y}, {w} a quitté {p} avec {n} livres et l'idée d'écrire l'histoire de la ville. ",
           "Les {n} caisses arrivées de {p} n'ont pas encore été ouvertes par {w}. "),
    "es": ("En {y}, {w} llegó a {p} con {n} cajas y ninguna intención de quedarse. ",
           "Si quedan menos de {n} litros, hay que avisar a {w} antes de salir de {p}. "),
    "ru": ("В {y} году {w} переехал в {p} и купил {n} книг, которых никто не читал. ",),
    "zh": ("{y}年，{w}从{p}出发，带着{n}本书和一张旧地图，走了很远的路。",
           "如果温度低于{n}度，请先关闭阀门，再通知{p}的{w}。"),
    "ja": ("{y}年に{w}は{p}へ引っ越し、{n}冊の本を買いました。", "{p}から届いた{n}個の箱は、まだ{w}が開けていません。"),
    "ar": ("في عام {y} انتقل {w} إلى {p} ومعه {n} كتابا. ",),
    "hi": ("{y} में {w} {p} गया और उसने {n} किताबें खरीदीं। ",),
}  # fmt: skip
PLACES = "Lisbon Osaka Bergen Quito Tbilisi Perth Tromsø Graz Hanoi Kraków Nairobi Yazd".split()
PEOPLE = "Mara Ilse Tomás Yuki Anwar Olga Pradeep Chen Lucía Noor Sven Amara".split()


def generated(tokenizer: Tokenizer, n_tokens: int = TOKENS) -> list[list[int]]:
    """Texts as ids, n_tokens in all."""
    chance = random.Random(SEED)
    kinds = (_dialogue, _dialogue, _dialogue, _programs, _sentences, _tables)
    texts, left = [], n_tokens
    while left > 0:
        make, length = kinds[len(texts) % len(kinds)], min(left, chance.choice(LENGTHS))
        texts.append(_of_length(lambda make=make: make(chance, tokenizer), length))
        left -= length
    return texts


def of_files(tokenizer: Tokenizer, paths: list[Path], n_tokens: int = TOKENS) -> list[list[int]]:
    """Texts of one's own, a file after the other in equal shares, cut like the generated ones. UsageError."""
    texts: list[list[int]] = []
    for path in paths:
        ids = tokenizer.encode(files.decoded(files.contents(path, MAX_BYTES, UsageError), str(path)))
        ids = ids[: -(-n_tokens // len(paths))]
        texts += [ids[at : at + LENGTHS[-1]] for at in range(0, len(ids), LENGTHS[-1])]
    if not texts:
        raise UsageError("the files of --text hold no text", "give others")
    return texts


def _of_length(make: Callable[[], list[int]], length: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < length:
        ids += make()
    return ids[:length]


def _dialogue(chance: random.Random, tokenizer: Tokenizer) -> list[int]:
    """Begins with BOS, as every prompt does."""
    dialogue = dialogues.generate(chance, split="train", tools_share=0.6)
    return tokenizer.encode_prompt(encode_april(dialogue.messages, thinking_mode=dialogue.thinking_mode))


def _programs(chance: random.Random, tokenizer: Tokenizer) -> list[int]:
    names = chance.sample(NAMES, 4)
    verb = chance.choice(VERBS)
    text = chance.choice(PROGRAMS).format(
        a=names[0], b=names[1], c=names[2], d=names[3], f=f"{verb}_{names[2]}", C=(verb + names[1]).title(),
        n=chance.randrange(1000), m=chance.randrange(2, 100), k=chance.randrange(1, 8),
    )  # fmt: skip
    return tokenizer.encode(text + "\n\n")


def _sentences(chance: random.Random, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode("".join(_paragraph(chance, chance.choice(list(SENTENCES)))) + "\n\n")


def _paragraph(chance: random.Random, language: str) -> Iterator[str]:
    for _ in range(chance.randrange(3, 8)):
        yield chance.choice(SENTENCES[language]).format(
            n=chance.randrange(2, 2000),
            y=chance.randrange(1850, 2030),
            p=chance.choice(PLACES),
            w=chance.choice(PEOPLE),
        )


def _tables(chance: random.Random, tokenizer: Tokenizer) -> list[int]:
    keys = chance.sample(NAMES, 3)

    def value() -> object:
        return chance.choice((chance.randrange(10_000), chance.choice(PEOPLE), chance.random() < 0.5))

    rows = [{key: value() for key in keys} for _ in range(chance.randrange(3, 9))]
    if chance.random() < 0.5:
        return tokenizer.encode(json.dumps(rows, indent=chance.choice((None, 2)), ensure_ascii=False) + "\n\n")
    lines = ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows]
    return tokenizer.encode("\n".join(["| " + " | ".join(keys) + " |", "|---" * len(keys) + "|", *lines]) + "\n\n")
