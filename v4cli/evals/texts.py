"""Texts of any length from a seed, by grammars of our own: stories, code, records, logs, dialogues; some sentences are
of other languages.

A document has a cast that it keeps coming back to, so that what was said long ago helps with what is said now.
"""

import json
import random
from collections.abc import Callable, Iterator

from v4cli.chat.tokenizer import Tokenizer

VERSION = 1  # counts up when a text changes
FIRST = (
    "Amira Boris Chen Dalia Emil Farah Goran Hana Idris Jonas Katya Leila Marek Nadia Oskar Priya Quentin Rosa".split()
)
LAST = (
    "Abara Brandt Castell Duarte Eklund Ferrer Gruber Haddad Ivanov Jansen Kovac Lindqvist Moreau Novak Okoye".split()
)
TRADES = "baker,surveyor,nurse,clockmaker,pilot,librarian,gardener,welder,cartographer,midwife,judge,potter".split(",")
TOWNS = "Arlow Bresk Calder Dunmore Elsby Fenwick Garrick Holm Istria Jorvik Kelmar Lorne Marlo Norden".split()
THINGS = "lantern,ledger,violin,barometer,kettle,compass,ladder,map,telescope,bicycle,loom,hourglass".split(",")
TIMES = (
    "before dawn",
    "at noon",
    "late in the evening",
    "on the first day of spring",
    "during the storm",
    "last winter",
)
VERBS = ("repaired", "sold", "hid", "painted", "lost", "found", "borrowed", "weighed", "described", "returned")
WHY = (
    "because the bridge had been closed", "although nobody had asked for it", "so that the others could rest",
    "after the council had voted", "while the rain kept the streets empty", "since the old one no longer worked",
)  # fmt: skip
SAYINGS = {
    "de": "{a} aus {t} hat das Haus im Jahr {n} gekauft und es {b} gezeigt. Danach sprachen sie oft über {u}.",
    "fr": "{a}, qui habite à {t}, a vendu {n} billets à {b}. Personne à {u} ne savait pourquoi le train était là.",
    "es": "{a} vive en {t} y trabaja con {b} desde hace {n} años. Los domingos toman juntos el tren hacia {u}.",
    "zh": "{a}住在{t}，今年{n}岁。{b}昨天从{u}回来，带来了一封信。",
    "pl": "{a} z miasta {t} ma {n} książek, a {b} pożycza je co tydzień. W {u} nikt o tym nie wie.",
}  # fmt: skip
NOUNS = "order,invoice,sensor,route,ticket,parcel,account,session,report,sample".split(",")
FIELDS = "weight,total,status,owner,priority,created,region,retries".split(",")
LEVELS = ("DEBUG", "INFO", "INFO", "INFO", "WARN", "ERROR")


class Cast:
    """Who and what a document is about."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        names = [f"{first} {last}" for first, last in zip(rng.sample(FIRST, 8), rng.sample(LAST, 8))]
        self.people = {name: (rng.choice(TRADES), rng.choice(TOWNS), rng.choice(THINGS)) for name in names}

    def person(self) -> str:
        return self.rng.choice(list(self.people))

    def two(self) -> list[str]:
        return self.rng.sample(list(self.people), 2)


def story(cast: Cast) -> str:
    rng, lines = cast.rng, []
    for _ in range(rng.randint(3, 6)):
        (a, b), when = cast.two(), rng.choice(TIMES)
        trade, town, thing = cast.people[a]
        lines.append(
            rng.choice(
                (
                    f"{when.capitalize()}, {a} the {trade} {rng.choice(VERBS)} the {thing} {rng.choice(WHY)}.",
                    f"{b} came to {town} {when} to see {a}, but the {trade} had already left.",
                    f"The {thing} belonged to {a}, who had lived in {town} for {rng.randint(2, 60)} years.",
                    f'"We should go back to {town}," said {a}. "{b.split()[0]} is waiting there with the {thing}."',
                    f"Nobody in {cast.people[b][1]} remembered that {a} and {b} had once been friends.",
                )
            )
        )
    return " ".join(lines)


def elsewhere(cast: Cast) -> str:
    """A sentence or two of another language."""
    a, b = cast.two()
    about = {"a": a, "b": b, "t": cast.people[a][1], "u": cast.people[b][1], "n": cast.rng.randint(12, 1990)}
    return " ".join(cast.rng.choice(list(SAYINGS.values())).format(**about) for _ in range(cast.rng.randint(1, 2)))


def program(cast: Cast) -> str:
    rng = cast.rng
    noun, field, limit = rng.choice(NOUNS), rng.choice(FIELDS), rng.randint(2, 500)
    python = (
        f"def {field}_of_{noun}s({noun}s: list[dict], limit: int = {limit}) -> list[dict]:\n"
        f'    """The {noun}s whose {field} is above the limit, the largest first."""\n'
        f'    chosen = [{noun} for {noun} in {noun}s if {noun}["{field}"] > limit]\n'
        f'    return sorted(chosen, key=lambda {noun}: {noun}["{field}"], reverse=True)\n'
    )
    c = (
        f"static int count_{noun}s(const struct {noun} *items, size_t n) {{\n    int count = 0;\n"
        f"    for (size_t i = 0; i < n; i++)\n        if (items[i].{field} > {limit})\n            count++;\n"
        f"    return count;\n}}\n"
    )
    sql = (
        f"SELECT {field}, COUNT(*) AS n FROM {noun}s\nWHERE {field} > {limit} GROUP BY {field}\n"
        f"ORDER BY n DESC LIMIT {rng.randint(5, 50)};\n"
    )
    return rng.choice((python, c, sql))


def records(cast: Cast) -> str:
    """JSON, or a table."""
    rng = cast.rng
    noun, fields = rng.choice(NOUNS), rng.sample(FIELDS, 3)
    rows = [
        {"id": rng.randint(1000, 9999), "owner_name": cast.person()} | {name: rng.randint(0, 999) for name in fields}
        for _ in range(rng.randint(3, 6))
    ]
    if rng.random() < 0.5:
        return json.dumps({f"{noun}s": rows}, indent=2, ensure_ascii=False)
    head = list(rows[0])
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    return "\n".join([*lines, *(" | ".join(str(row[name]) for name in head) for row in rows)])


def log(cast: Cast) -> str:
    rng, minute, lines = cast.rng, cast.rng.randint(0, 1300), []
    for _ in range(rng.randint(4, 8)):
        minute += rng.randint(0, 9)
        who = cast.person().split()[0].lower()
        what = f"{rng.choice(NOUNS)} {rng.randint(1000, 9999)} {rng.choice(('opened', 'closed', 'rejected', 'queued'))}"
        lines.append(f"{minute // 60 % 24:02}:{minute % 60:02} {rng.choice(LEVELS)} user={who} {what}")
    return "\n".join(lines)


def dialogue(cast: Cast) -> str:
    rng, (a, b) = cast.rng, cast.two()
    trade, town, thing = cast.people[b]
    turns = (
        f"{a}: Where does {b} work now?\n{b}: I am still a {trade} in {town}.",
        f"{a}: Did you bring the {thing}?\n{b}: No, I left it in {town}, with the other papers.",
        f"{a}: How many are left?\n{b}: I counted {rng.randint(2, 90)} this morning.",
    )
    return "\n".join(rng.sample(turns, rng.randint(1, 3)))


KINDS: tuple[Callable[[Cast], str], ...] = (story, story, story, program, records, log, dialogue, elsewhere)


def paragraphs(rng: random.Random) -> Iterator[str]:
    """An endless document."""
    cast = Cast(rng)
    while True:
        yield rng.choice(KINDS)(cast) + "\n\n"


def document(rng: random.Random, tokenizer: Tokenizer, n_tokens: int) -> list[str]:
    """Paragraphs of about n_tokens together, and not more."""
    chosen, length = [], 0
    for paragraph in paragraphs(rng):
        length += len(tokenizer.encode(paragraph))
        if length > n_tokens:
            return chosen
        chosen.append(paragraph)
    raise AssertionError("paragraphs have no end")
