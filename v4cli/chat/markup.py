"""What the model writes, cut into text and tags of the tool markup as it streams; and where text is code.

Tags are read as the model family spells them here and there: bars that are doubled, ASCII or U+2016, blanks beside
them, names in either quotes or none, a ">" that is missing before the next tag. What they mean, the parser decides.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from v4cli.chat.special import END_THINK

MAX_ATTRIBUTES = 1000  # characters; what is longer is not a tag
CALLS = ("tool_calls", "calls", "function_calls", "toolcalls")  # words for the block of calls
_BARS = "[｜|‖]{1,2}"
_HEAD = ("<", " ?", "/?", " ?", _BARS, " ?", "D", "S", "M", "L", " ?", _BARS)
_TAG = re.compile(
    rf"{END_THINK}|< ?(/?) ?({_BARS} ?DSML ?{_BARS}) ?([A-Za-z_]{{1,20}})"
    rf"(?:((?![A-Za-z_])[^<>]{{0,{MAX_ATTRIBUTES}}})>|\s{{0,20}}(?=<))"
)
_ATTRIBUTE = re.compile(r"""(?<![\w-])([\w-]+)\s*=\s*(?:["“”]([^"“”]*)["“”]|'([^']*)'|([^\s"'“”=]+)(?=\s|$))""")
_FENCE = re.compile(r"[ \t>]*(`{3,}|~{3,})(.*)")
_QUOTES = ('"', "'", "“", "‘", "「")
_LINE = 200  # characters of a line that are looked at


def _beginnings(atoms: tuple[str, ...]) -> str:
    """A pattern of all that `atoms`, one after the other, begin with."""
    pattern = ""
    for atom in reversed(atoms):
        pattern = f"{atom}(?:{pattern})?"
    return pattern


_GROWING = re.compile(_beginnings((*_HEAD, " ?", "[A-Za-z_]{0,20}", rf"[^<>]{{0,{MAX_ATTRIBUTES}}}")))
_CUT = re.compile("".join(_HEAD) + "[^<>]*")


@dataclass(frozen=True)
class Tag:
    """`kind`: think, calls, invoke, parameter, or other for words that mean nothing. `bars`: those around DSML."""

    raw: str
    kind: str
    closing: bool
    attributes: str = ""
    bars: str = ""

    @classmethod
    def of(cls, match: re.Match) -> "Tag":
        slash, bars, word, attributes = match.groups()
        if word is None:
            return cls(match[0], "think", True)
        kind = "calls" if word in CALLS else word if word in ("invoke", "parameter") else "other"
        return cls(match[0], kind, bool(slash), attributes or "", bars.replace(" ", ""))

    @property
    def empty(self) -> bool:
        """Whether it closes what it opens."""
        return not self.closing and self.attributes.endswith("/")

    def attribute(self, name: str) -> str | None:
        """The value of an attribute that is there exactly once; None also beside anything that is no attribute."""
        text = self.attributes.removesuffix("/")
        if _ATTRIBUTE.sub("", text).strip():
            return None
        found = [match.groups() for match in _ATTRIBUTE.finditer(text)]
        values = [next(value for value in groups[1:] if value is not None) for groups in found if groups[0] == name]
        return values[0] if len(values) == 1 else None


def raw(token: Tag | str) -> str:
    """Text, or a tag, as it was written."""
    return token if isinstance(token, str) else token.raw


class Lexer:
    """Text in pieces, however they are cut, to the same text and tags."""

    def __init__(self):
        self.rest = ""  # what may be the beginning of a tag
        self.left = 0  # characters after what push gave last

    def push(self, text: str) -> Iterator[str | Tag]:
        """What is certain now. To be read to its end, or not to be used again."""
        buffer, start, at = self.rest + text, 0, 0
        while (at := buffer.find("<", at)) >= 0:
            match = _TAG.match(buffer, at)
            if match is None and self._may_grow(buffer, at):
                break
            if match is None:
                at += 1
                continue
            if at > start:
                self.left = len(buffer) - at
                yield buffer[start:at]
            start = at = match.end()
            self.left = len(buffer) - at
            yield Tag.of(match)
        end = len(buffer) if at < 0 else at
        self.rest, self.left = buffer[end:], len(buffer) - end
        if end > start:
            yield buffer[start:end]

    def _may_grow(self, buffer: str, at: int) -> bool:
        """Whether what begins there may still become a tag."""
        if buffer.find("<", at + 1) >= 0:
            return False
        return END_THINK.startswith(buffer[at : at + len(END_THINK)]) or bool(_GROWING.fullmatch(buffer, at))

    @property
    def cut_tag(self) -> Tag | None:
        """The tag that `rest` is the beginning of, if it is certain to be one."""
        return Tag(self.rest, "other", "/" in self.rest[:3]) if _CUT.fullmatch(self.rest) else None


class Place:
    """Where in a markdown text its end is."""

    def __init__(self):
        self._line = self._fence = self._last = ""  # the line so far, the fence that is open, the last character
        self._in_code = False  # between two backticks of a line

    def feed(self, text: str) -> None:
        """The text goes on."""
        if not text:
            return
        *whole, last = text.split("\n")
        for piece in whole:
            self._end_line((self._line + piece)[:_LINE])
        self._line = (self._line + last)[:_LINE]
        self._in_code ^= last.count("`") % 2 == 1
        self._last = text[-1]

    def _end_line(self, line: str) -> None:
        fence = _FENCE.match(line)
        if fence and self._fence:
            if fence[1].startswith(self._fence) and not fence[2].strip():
                self._fence = ""
        elif fence and "`" not in fence[2]:
            self._fence = fence[1]
        self._line, self._in_code = "", False

    @property
    def at_line_start(self) -> bool:
        """Whether only blanks stand before it in its line."""
        return not self._line.strip()

    @property
    def in_block(self) -> bool:
        """Whether a code block is open."""
        return bool(self._fence)

    @property
    def in_code(self) -> bool:
        """Whether what follows is code: of a block, or within a line."""
        return bool(self._fence or self._in_code or self._last == "`" or _FENCE.match(self._line))

    @property
    def quoted(self) -> bool:
        """Whether what follows is code, or stands after a quotation mark."""
        return self.in_code or self._last in _QUOTES
