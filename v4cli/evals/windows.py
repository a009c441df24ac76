"""Parts `kld` and `ppl`: how far a model's next-token distribution is from a reference's, and how well it predicts, by
the length of what comes before.

Of a text the last `scored` positions before each length count, so that figures at two lengths are about positions that
have so much before them, and not about all up to there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from v4cli.engine.engine import Engine
from v4cli.engine.session import Session
from v4cli.errors import Interrupted, ModelError
from v4cli.evals.floor import can_nudge, nudged
from v4cli.evals.items import Item, Subject
from v4cli.evals.material import Material, Text
from v4cli.evals.teacher import Rows, Teacher, divergence

PIECE = 128  # positions whose logits are held at a time


@dataclass(frozen=True)
class Window:
    """The positions of text number `text` from `first` on that come before length `end`."""

    text: int
    first: int
    end: int

    @property
    def name(self) -> str:
        return f"{self.text}.{self.first}-{self.end}"

    @classmethod
    def all(cls, texts: Sequence[Sequence[int]], scored: int) -> list["Window"]:
        """Of texts with these lengths."""
        return [cls(number, max(0, end - scored), end) for number, ends in enumerate(texts) for end in ends]


class Reader:
    """Reads windows in order, on one timeline for each text."""

    def __init__(self, session: Callable[[], Session], text: Callable[[int, int], Text], cancelled):
        """`text(number, n)`: n tokens of it. `cancelled`: whether somebody wants an early end."""
        self.new_session, self.text, self.cancelled = session, text, cancelled
        self._session: Session | None = None
        self._number = -1

    def rows(self, window: Window, ids_of: Rows | None = None) -> Rows:
        """Of the window's positions; about the tokens of `ids_of`, else about the likeliest. Interrupted."""
        if self._session is None or self._number != window.text:
            self._session, self._number = self.new_session(), window.text
        ids, session = self.text(window.text, window.end + 1).ids, self._session
        if window.first and not session.sync(ids[: window.first], cancelled=self.cancelled):
            raise Interrupted("interrupted")
        if len(session.tokens) > window.first:  # the same text was read further
            self._session = session = self.new_session()
        pieces = []
        for at in range(window.first, window.end, PIECE):
            if self.cancelled():
                raise Interrupted("interrupted")
            end = min(at + PIECE, window.end)
            logits = session.feed(ids[at:end], all_logits=True)
            about = None if ids_of is None else ids_of.ids[at - window.first : end - window.first]
            pieces.append(Rows.of(logits, ids[at + 1 : end + 1], about))
        return Rows.joined(pieces)


def missing(teacher: Teacher, windows: Sequence[Window], floor: bool = False) -> list[Window]:
    """Windows that the file lacks, or of which it lacks the noise floor."""
    return [
        window for window in windows if not teacher.has(window.name) or (floor and not teacher.has(window.name, True))
    ]


def record(
    engine: Engine,
    teacher: Teacher,
    windows: Sequence[Window],
    material: Material,
    session: Callable[[], Session],
    cancelled: Callable[[], bool],
    told: Callable[[str], None],
) -> None:
    """Have the reference's windows in the file, and the floor of each where that can be measured. `session` makes a
    timeline of it; `told` hears what is done. Interrupted, OSError."""
    text = partial(material.text, teacher.about["seed"])
    reader = Reader(session, text, cancelled)
    for window in missing(teacher, windows):
        told(f"reference {window.name}")
        teacher.put(window.name, reader.rows(window))
    if not can_nudge(engine):
        return
    with nudged(engine, teacher.about["seed"]):
        reader = Reader(engine.session, text, cancelled)
        for window in missing(teacher, windows, floor=True):
            told(f"noise floor {window.name}")
            rows = teacher.rows(window.name)
            moved = reader.rows(window, rows)
            teacher.put_floor(window.name, divergence(rows, moved), moved.best == rows.best)


def items(subject: Subject, windows: Sequence[Window], teacher: Teacher | None, parts: Sequence[str]) -> list[Item]:
    """One for each window: `kld` where there is a teacher, and `ppl`."""
    reader = Reader(subject.session, partial(subject.material.text, subject.seed), subject.cancelled)
    chosen = tuple(part for part in ("kld", "ppl") if part in parts and (part == "ppl" or teacher))
    if not chosen:
        return []
    teacher = teacher if "kld" in chosen else None
    against = f" against {teacher.id}" if teacher else ""
    return [
        Item(chosen, window.name + against, window.end, partial(_measure, reader, window, teacher))
        for window in windows
    ]


def _measure(reader: Reader, window: Window, teacher: Teacher | None) -> dict[str, dict]:
    """Of the positions that count."""
    where, counts = {"length": window.end}, np.array(reader.text(window.text, window.end + 1).counts)
    counts = counts[window.first : window.end]
    if teacher is None:
        return {"ppl": where | {"nll": reader.rows(window).nll[counts].tolist()}}
    rows = teacher.rows(window.name)
    if len(rows.nll) != window.end - window.first:
        raise ModelError(f"{teacher.path}: window {window.name} has other positions", "remove it, and measure again")
    own = reader.rows(window, rows)
    kld = {"kld": divergence(rows, own), "same": own.best == rows.best} | teacher.floor(window.name)
    ppl = {"nll": own.nll, "reference": rows.nll}
    return {
        part: where | {name: values[counts].tolist() for name, values in arrays.items()}
        for part, arrays in (("kld", kld), ("ppl", ppl))
    }
