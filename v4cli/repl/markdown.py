"""Cuts a growing markdown text into blocks that will not change any more and one that may. Knows lines only."""

import re
from dataclasses import dataclass

LONG = 24  # lines: longer lists and code are cut on the way, so that redrawing stays cheap
LONG_LINE = 2000  # characters: longer lines are cut at a space
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^`]*)$")
_ITEM = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])(?: |$)")
_HEADING = re.compile(r" {0,3}#{1,6}(?: |$)")


@dataclass(frozen=True)
class Block:
    """Markdown that can be shown on its own; `joins`: it goes on directly under the block before it."""

    text: str
    joins: bool = False


class Blocks:
    """Feed text as it comes; how it is cut makes no difference, since only whole lines are looked at."""

    def __init__(self):
        self._lines: list[str] = []  # of the open block
        self._rest = ""  # of a line
        self._fence = ""  # the line that opened the code block we are in
        self._blank = False  # a blank line followed the open list
        self._joins = False

    def feed(self, text: str) -> list[Block]:
        """The blocks that this text finishes."""
        *lines, self._rest = (self._rest + text).split("\n")
        done = [block for line in lines for block in self._long_line(line)]
        *pieces, self._rest = _cut(self._rest)
        return done + [block for piece in pieces for block in self._piece(piece)]

    def finish(self) -> list[Block]:
        """The text has ended: what was open."""
        done = self._long_line(self._rest) if self._rest else []
        self._rest = ""
        return done + self._close()

    @property
    def open(self) -> Block:
        """What may still change."""
        return Block("\n".join([*self._lines, self._rest]).rstrip("\n"), self._joins)

    def _long_line(self, line: str) -> list[Block]:
        """A whole line, in pieces if it is very long."""
        *pieces, last = _cut(line)
        return [block for piece in pieces for block in self._piece(piece)] + self._line(last)

    def _piece(self, piece: str) -> list[Block]:
        """The beginning of a very long line."""
        done = self._line(piece)
        return done if self._fence else done + self._close(joins=True)

    def _line(self, line: str) -> list[Block]:
        if self._fence:
            return self._code(line)
        fence = _FENCE.match(line)
        blank, indented = not line.strip(), line[:1] in (" ", "\t")
        is_list = bool(self._lines) and _ITEM.match(self._lines[0]) is not None
        done: list[Block] = []
        if blank:
            self._blank = bool(self._lines)
            return [] if is_list else self._close()
        if is_list and not indented and not _ITEM.match(line) and (self._blank or fence):
            done = self._close()
        elif self._lines and not is_list and (fence or _HEADING.match(line)):
            done = self._close()
        elif is_list and len(self._lines) >= LONG and _ITEM.match(line) and not indented:
            done = self._close(joins=True)
        if self._blank and self._lines:
            self._lines.append("")
        self._blank = False
        self._lines.append(line)
        if fence and not (is_list and indented):
            self._fence = line
        elif _HEADING.match(line) and len(self._lines) == 1:
            done += self._close()
        return done

    def _code(self, line: str) -> list[Block]:
        """A line within a code block, or the one that ends it."""
        self._lines.append(line)
        mark = _FENCE.match(self._fence)[1]
        end = _FENCE.match(line)
        if end and end[1].startswith(mark) and not end[2].strip():
            self._fence = ""
            return self._close()
        if len(self._lines) <= LONG:
            return []
        opener = self._fence
        self._lines.append(mark)
        done = self._close(joins=True)
        self._lines = [opener]
        return done

    def _close(self, joins: bool = False) -> list[Block]:
        """The open block is finished; `joins`: the next one goes on with it."""
        done = [Block("\n".join(self._lines), self._joins)] if self._lines else []
        self._lines, self._blank, self._joins = [], False, joins
        return done


def _cut(line: str) -> list[str]:
    """A line in pieces that are not much longer than LONG_LINE."""
    pieces = []
    while (at := line.find(" ", LONG_LINE)) >= 0:
        pieces.append(line[:at])
        line = line[at + 1 :]
    return [*pieces, line]
