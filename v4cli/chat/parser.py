"""From sampled text to events, as it streams: thinking, answer, tool calls with partial arguments (spec 5.7).

Tolerant as DeepSeek's own stream parser: a tool block inside unfinished thinking ends the thinking, stray
`</think>` is skipped, a truncated call is given as far as it got. Beyond that, by what follows a tag: a call without
its wrapper is a call, a closing tag within a value belongs to the value, a stray one is skipped, and tags that are
quoted, or mentioned within a line, are text. A call about which anything is uncertain has a fault, and must not be run.
The result does not depend on how the text is cut into pieces. Knows text only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from v4cli.chat.calls import IN_CODE, CallBlock, CallEvent, Nesting
from v4cli.chat.calls import ToolCallArguments as ToolCallArguments
from v4cli.chat.calls import ToolCallEnd as ToolCallEnd
from v4cli.chat.calls import ToolCallStart as ToolCallStart
from v4cli.chat.markup import Lexer, Place, Tag, raw


@dataclass(frozen=True)
class Thinking:
    text: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class End:
    """`finish`: stop, length, tool_calls, or what the caller gave. `fault`: of a block without calls."""

    finish: str
    fault: str = ""


Event = Thinking | Text | CallEvent | End


class StreamParser:
    """One assistant turn. `thinking`: the prompt ended in <think>. `stop`: strings that end the answer text. `calls`:
    whether there are tools; if not, their markup is text.

    The work for a piece of text does not grow with what came before it.
    """

    def __init__(self, thinking: bool, in_tool_calls: bool = False, stop: Sequence[str] = (), calls: bool = True):
        self._thinking = thinking and not in_tool_calls
        self._stop, self._reads_calls = tuple(filter(None, stop)), calls
        self._lexer, self._place = Lexer(), Place()
        self._newlines = 0  # read, and said if text follows,
        self._lead = 0  # and how many of them are after the last tag
        self._answer = ""  # answer text held back because a stop string may be starting
        self._held: list[Tag | str] = []  # an opening tag, and blanks after it, that what follows decides on
        self._mentioned = Nesting()
        self._after_stray = False  # whether a stray tag stands beside the newlines
        self._after_code = False  # whether a call that stands in code has just been closed
        self._events: list[Event] = []
        self._parts: dict[str, list[str]] = {"thinking": [], "text": []}
        self._block = CallBlock(self._events) if in_tool_calls else None
        self._finish = ""
        self.unread = 0  # characters pushed after the end of the tool block
        self.stopped_by = ""  # the stop string that ended the answer
        self.stopped = False  # a stop string or the end of the tool block: nothing more will count

    def push(self, text: str) -> list[Event]:
        """Take the next piece of text; give the events it completes."""
        for token in self._lexer.push(text) if self._block or not self.stopped else ():
            if not self._block:
                self._plain(token)
            elif self._block.ended:
                self._block.after(token)
            else:
                self._in_block(token)
            if self.stopped and not self._block:
                break
        return self._drain()

    @property
    def is_open(self) -> bool:
        """Whether it is within a tool block, or where one may be beginning."""
        return bool(self._block or self._held or self._lexer.rest)

    @property
    def tool_block(self) -> str:
        """Exact text of the sampled tool block."""
        return "".join(self._block.text) if self._block else ""

    @property
    def block_length(self) -> int:
        """Characters of it."""
        return self._block.length if self._block else 0

    @property
    def faults(self) -> list[str]:
        """Of each call: why it must not be run, or empty; one of a block without calls."""
        return self._block.faults if self._block else []

    def finish(self, reason: str = "stop") -> list[Event]:
        """End of the turn. `reason`: stop, length or whatever ended it; if it is stop, calls make it tool_calls.

        A call that only lacks its closing tags is whole; one that was cut off inside of something is not.
        """
        if not self._block and not self.stopped:
            self._finish_text(reason)
        if self._block:
            self._block.finish(reason, self._lexer.rest)
        has_calls = bool(self._block and self._block.calls)
        self._finish = "tool_calls" if has_calls and reason == "stop" else reason
        self._events.append(End(self._finish, "" if has_calls else "".join(self.faults)))
        return self._drain()

    def message(self) -> dict:
        """The turn so far: reasoning_content, content, tool_calls (those that exist) and finish; without faults."""
        out: dict = {}
        if self._parts["thinking"]:
            out["reasoning_content"] = "".join(self._parts["thinking"])
        if self._parts["text"]:
            out["content"] = "".join(self._parts["text"])
        if self._block and self._block.calls:
            out["tool_calls"] = [
                {"index": i, "type": "function", "function": {"name": call.name, "arguments": "".join(call.arguments)}}
                for i, call in enumerate(self._block.calls)
            ]
        return out | {"finish": self._finish}

    def _drain(self) -> list[Event]:
        events = self._events[:]
        self._events.clear()
        return events

    def _in_block(self, token: Tag | str) -> None:
        """The next piece of the block; it may be the first after it."""
        after = self._block.take(token)
        if self._block.ended:
            self.stopped, self.unread = True, self._lexer.left + after

    # -- thinking and answer text ---------------------------------------------------------------------------

    def _plain(self, token: Tag | str) -> None:
        """Text is said; a tag opens a block of calls, or is skipped, or is text, too."""
        if self._held:
            if isinstance(token, str) and token.isspace():
                self._held.append(token)
                return
            held, self._held = self._held, []
            if self._is_markup(held, token):
                self._open_block(held)
                self._in_block(token)
                return
            self._mentioned.open(held[0])
            for piece in held:
                self._text(raw(piece))
        if isinstance(token, str):
            self._text(token)
        elif token.kind == "think":
            if not self._thinking:
                self._say("\n" * self._newlines)
            self._thinking, self._newlines, self._lead = False, 0, 0
            self._mentioned, self._place = Nesting(), Place()
        elif self._place.in_code or (token.closing and (self._place.quoted or self._mentioned.closes(token))):
            self._text(token.raw)
            self._after_code = token.closing and token.kind in ("invoke", "calls")
        elif token.closing:
            self._after_stray, self._lead = True, 0  # it is skipped, and so are the newlines if nothing follows
        elif not self._reads_calls:
            self._mentioned.open(token)
            self._text(token.raw)
        else:
            self._held = [token]

    def _is_markup(self, held: list[Tag | str], following: Tag | str) -> bool:
        """Whether a tag in text is meant, and not only mentioned."""
        opener, at_line_start = held[0], self._place.at_line_start
        tag = following if isinstance(following, Tag) else None
        opens = tag.kind if tag and not tag.closing else ""
        if self._thinking:
            return opener.kind in ("calls", "other") and at_line_start and opens == "invoke"
        blanks = "".join(held[1:]) + ("" if tag else following[: len(following) - len(following.lstrip())])
        alone = at_line_start and bool(tag or "\n" in blanks)
        match opener.kind:
            case "calls":
                return opens == "invoke" or alone
            case "invoke":
                closes = tag is not None and tag.closing and tag.kind == "invoke"
                return opens == "parameter" or closes or (alone and opener.attribute("name") is not None)
            case "parameter":
                return at_line_start and opener.attribute("name") is not None
        return at_line_start and opens in ("invoke", "parameter")

    def _open_block(self, held: list[Tag | str]) -> None:
        """The tag that is held opens a block of calls."""
        self._tell_answer(self._answer)
        self._answer = ""
        wrapped = bool(held) and held[0].kind in ("calls", "other")
        self._block = CallBlock(self._events, wrapped)
        self._block.add("\n" * self._lead + (held.pop(0).raw if wrapped else ""))
        self._newlines = 0
        for token in held:
            self._in_block(token)

    def _finish_text(self, reason: str) -> None:
        """Nothing follows; what was held back is a tag that was meant, or text."""
        held, self._held = self._held, []
        cut = None if self._place.in_code else self._lexer.cut_tag
        opens = held[0].kind != "other" if held else self._reads_calls and cut and not cut.closing
        cut_off = not self._thinking and (reason != "stop" or (held and cut))
        if opens and (self._place.at_line_start or cut_off):
            self._open_block(held)
            return
        for piece in held:
            self._text(raw(piece))
        if not (cut and cut.closing):
            self._text(self._lexer.rest)
        if not self._after_stray:
            self._say("\n" * self._newlines)
        self._newlines = 0
        self._tell_answer(self._answer)
        self._answer = ""
        if self._reads_calls and self._after_code and self._place.in_block and reason == "stop":
            self._block = CallBlock(self._events, unreadable=IN_CODE)  # documentation would have closed its code

    def _text(self, text: str) -> None:
        """Thinking or answer text; newlines wait for what follows."""
        said = text.rstrip("\n")
        self._place.feed(text)
        if said:
            self._say("\n" * self._newlines + said)
            self._newlines, self._lead = 0, 0
            self._after_stray = self._after_code = False
        self._newlines += len(text) - len(said)
        self._lead += len(text) - len(said)

    def _say(self, text: str) -> None:
        """Newlines that lead thinking or an answer are dropped."""
        if not self._parts["thinking" if self._thinking else "text"] and not self._answer:
            text = text.lstrip("\n")
        if not text or self.stopped:
            return
        if self._thinking:
            self._parts["thinking"].append(text)
            self._events.append(Thinking(text))
            return
        self._answer += text
        hits = [(at, stop) for at, stop in ((self._answer.find(stop), stop) for stop in self._stop) if at >= 0]
        if hits:
            at, self.stopped_by = min(hits)
            self._tell_answer(self._answer[:at])
            self._answer, self.stopped = "", True
            return
        held = max((_overlap(self._answer, stop) for stop in self._stop), default=0)
        cut = len(self._answer) - held
        self._tell_answer(self._answer[:cut])
        self._answer = self._answer[cut:]

    def _tell_answer(self, text: str) -> None:
        if text:
            self._parts["text"].append(text)
            self._events.append(Text(text))


def _overlap(text: str, marker: str) -> int:
    """Length of the longest proper prefix of `marker` that ends `text`."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if text.endswith(marker[:n])), 0)
