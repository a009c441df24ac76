"""Special tokens of V4 by name, and prompts as segments: markup is marked, text stays text (spec 5.1, 5.6)."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
THINK = "<think>"
END_THINK = "</think>"
DSML = "｜DSML｜"
REMINDER = "<｜latest_reminder｜>"
TASKS = {name: f"<｜{name}｜>" for name in ("action", "query", "authority", "domain", "title", "read_url")}
ALL = (
    BOS,
    EOS,
    PAD,
    USER,
    ASSISTANT,
    THINK,
    END_THINK,
    DSML,
    REMINDER,
    *TASKS.values(),
    "<｜extracted_url｜>",
)

_SPLIT = re.compile("(" + "|".join(map(re.escape, ALL)) + ")")


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt: one special token, text that must never become one, or `ids` the model itself sampled."""

    text: str
    special: bool
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt. Neighbouring text segments are already merged, so that BPE sees them whole."""

    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)


class PromptBuilder:
    """Collects text and markup into a Prompt; may go on from another."""

    def __init__(self, begun: Iterable[Segment] = ()):
        self._segments: list[Segment] = []
        self._texts: list[str] = []  # what the next text segment is made of
        for segment in begun:
            self._add(segment) if segment.special or segment.ids is not None else self.text(segment.text)

    def text(self, text: str) -> None:
        """Text from outside: stays text whatever it spells."""
        self._texts.append(text)

    def _add(self, segment: Segment) -> None:
        """A segment that is no text, after the text before it."""
        text, self._texts = "".join(self._texts), []
        self._segments += ([Segment(text, False)] if text else []) + [segment]

    def special(self, token: str) -> None:
        self._add(Segment(token, True))

    def markup(self, text: str) -> None:
        """Text of ours or of the model: the special tokens it spells are meant."""
        for i, piece in enumerate(_SPLIT.split(text)):
            self.special(piece) if i % 2 else self.text(piece)

    def sampled(self, ids: Sequence[int], text: str) -> None:
        """What the model said, token by token: encoding its text again may cut it into others."""
        self._add(Segment(text, False, tuple(ids)))

    def build(self) -> Prompt:
        """The prompt so far."""
        text = "".join(self._texts)
        return Prompt((*self._segments, *([Segment(text, False)] if text else [])))
