"""Drafts: tokens guessed to come next, so that one step can verify several. Who drafts never decides what is said: a
guess is right where the model, its sampling and its grammar give that very token, and is forgotten where not.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

LEAST_MATCH, MOST_MATCH = 4, 32  # tokens that have to agree with an earlier place; longer ones count as the most
CANDIDATES = 16  # earlier places that are compared, the latest
MOST_DRAFT = 64  # tokens
FADE = 0.9  # of what was seen of guesses of a kind, kept from one to the next
DOUBT = 4.0  # how many sightings the first assumption weighs


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed tokens, and of each the chance that it is right if those before it are. `key`: for who made it."""

    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    key: int = 0


class Drafter(Protocol):
    """Guesses for one timeline. `effort`: share of the model's layers that a draft goes through, and for how many rows;
    what it takes, until that was measured."""

    name: str
    effort: tuple[float, int]

    def draft(self, tokens: Sequence[int], last: int, most: int) -> Draft:
        """Up to `most` tokens after these and `last`, which the model has not computed yet."""

    def seen(self, draft: Draft, i: int, right: bool) -> None:
        """Guess number i of a draft, those before it being right, turned out to be right or wrong. Guesses that nobody
        verified may be told of, too."""

    def back(self, n_tokens: int) -> None:
        """The timeline has gone back: of its tokens only the first n are the same."""


class NGram:
    """Prompt lookup: what followed the earlier place that the latest tokens agree with, over as many of them as there
    are. A match goes on as long as it is right. How often that is, is counted by its length, in octaves."""

    name = "ngram"
    effort = 0.0, 1

    def __init__(self) -> None:
        self._ids = array("i")  # of the timeline
        self._latest = array("i", [-1]) * 1024  # by the last four tokens, hashed: where they came last
        self._before = array("i", [-1] * (LEAST_MATCH - 1))  # by index: where they had come before
        self._place = self._length = 0  # of the token that a match goes on with, and how many agree before it
        self._right, self._seen = [0.0] * 8, [0.0] * 8  # by octave
        self._chances = [0.0] * (MOST_MATCH + MOST_DRAFT)  # by length
        for octave in range(LEAST_MATCH.bit_length(), 8):
            self._judge(octave)

    def draft(self, tokens: Sequence[int], last: int, most: int) -> Draft:
        self.back(len(tokens))
        n, ids, place = len(self._ids), self._ids, self._place
        ids.extend(tokens[n:])
        ids.append(last)
        self._index(n)
        new = len(ids) - n
        if self._length and ids[place : place + new] == ids[n:]:
            self._place, self._length = place + new, self._length + new
        else:
            self._search()
        if not self._length or most < 1:
            return Draft()
        most, length = min(most, MOST_DRAFT), min(self._length, MOST_MATCH)
        said = ids[self._place : self._place + most].tolist()
        said *= -(-most // len(said))  # what goes on beyond the end repeats itself
        return Draft(said[:most], self._chances[length : length + most], length)

    def _index(self, start: int) -> None:
        """Note where the tokens from index `start` on came, with the three before each."""
        ids, before = self._ids, self._before
        if len(ids) > len(self._latest):
            self._latest, start = array("i", [-1]) * (4 * len(ids)), 0
            del before[LEAST_MATCH - 1 :]
        latest, slots, some = self._latest, len(self._latest), ids[max(start - LEAST_MATCH + 1, 0) :]
        for i, gram in enumerate(zip(some, some[1:], some[2:], some[3:]), len(before)):
            slot = hash(gram) % slots
            before.append(latest[slot])
            latest[slot] = i

    def _search(self) -> None:
        """The longest match of the latest tokens, the latest of equals."""
        self._length, place = 0, self._before[-1]
        for _ in range(CANDIDATES):
            if place < 0 or self._length >= MOST_MATCH:
                break
            length = self._agreeing(place)
            if length > max(self._length, LEAST_MATCH - 1):
                self._place, self._length = place + 1, length
            place = self._before[place]

    def _agreeing(self, place: int) -> int:
        """How many tokens up to an earlier place are those up to the last one."""
        ids, n, most = self._ids, 0, min(place + 1, MOST_MATCH)
        while n < most and ids[place - n] == ids[-1 - n]:
            n += 1
        return n

    def seen(self, draft: Draft, i: int, right: bool) -> None:
        octave = (draft.key + i).bit_length()
        self._right[octave] = FADE * self._right[octave] + right
        self._seen[octave] = FADE * self._seen[octave] + 1
        self._judge(octave)

    def _judge(self, octave: int) -> None:
        """What a guess after a match of 4 to 7, 8 to 15, ... tokens is worth."""
        assumed = 1 - 4 / 2**octave
        chance = (self._right[octave] + DOUBT * assumed) / (self._seen[octave] + DOUBT)
        lengths = range(*slice(2**octave // 2, 2**octave).indices(len(self._chances)))
        self._chances[lengths.start : lengths.stop] = [chance] * len(lengths)

    def back(self, n_tokens: int) -> None:
        ids, before, latest = self._ids, self._before, self._latest
        if n_tokens < len(ids):
            self._length = 0
        for last in range(len(ids) - 1, n_tokens - 1, -1):
            if last >= LEAST_MATCH - 1:
                latest[hash(tuple(ids[last - LEAST_MATCH + 1 : last + 1])) % len(latest)] = before.pop()
            ids.pop()
