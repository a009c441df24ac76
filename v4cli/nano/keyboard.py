"""Wordings as people type them: capitals, punctuation, quotes and slips."""

import random
import re
from collections.abc import Callable

SLIPS = 0.06  # share of wordings with a mistyped letter
QUOTED = 0.12
QUOTES = ('"{}"', "'{}'", "`{}`")
SLOT = re.compile(r"(\{[a-z0-9]*\})")


def typed(rng: random.Random, wording: str) -> str:
    """A wording with empty slots, differently typed."""
    text = re.sub(r" +", " ", wording).strip()
    if rng.random() < SLIPS:
        text = _outside_slots(text, lambda part: _slip(rng, part))
    if rng.random() < 0.6:
        text = re.sub(r"\bi\b(?!\})", "I", text)
    if rng.random() < 0.15:
        text = _outside_slots(text, lambda part: part.replace("'", ""))
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    elif rng.random() < 0.02:
        text = _outside_slots(text, str.upper)
    if text[-1].isalnum() or text[-1] == "}":
        text += rng.choice(("", "", "", "", "", "?", "?", "?", ".", "!"))
    return text


def _outside_slots(text: str, change: Callable[[str], str]) -> str:
    return "".join(part if SLOT.fullmatch(part) else change(part) for part in SLOT.split(text))


def _slip(rng: random.Random, text: str) -> str:
    """A letter left out, doubled, or exchanged with the next."""
    places = [m.start() + 1 for m in re.finditer(r"[a-z]{4,}", text)]
    if not places:
        return text
    i = rng.choice(places) + rng.randint(0, 1)
    return text[:i] + rng.choice(("", text[i] * 2, text[i + 1 : i + 2] + text[i])) + text[i + 1 :]


def filled(rng: random.Random, text: str, bare: bool, /, **slots: str) -> str:
    """A typed wording with its slots filled. Outside of commands values may stand in quotes."""
    for name, value in slots.items():
        slot = "{" + name + "}"
        if (
            not bare
            and name in ("file", "folder", "word", "place")
            and rng.random() < QUOTED
            and '"' + slot not in text
            and "'" + slot not in text
        ):
            value = rng.choice(QUOTES).format(value)
        if text.endswith((slot + ".", slot + "!")) and not value[-1].isalnum():
            text = text[:-1]
        text = text.replace(slot, value)
    return text
