"""From sampled text to events, as it streams: thinking, answer, tool calls with partial arguments (spec 5.7).

Tolerant as DeepSeek's own stream parser: a tool block inside unfinished thinking ends the thinking, stray
`</think>` is skipped, a truncated call is given as far as it got. The result does not depend on how the text is
cut into pieces. Knows text only.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from v4cli.chat.special import DSML, END_THINK

BLOCK_OPENERS = (f"<{DSML}tool_calls>", f"<{DSML} calls>")
MARKERS = (END_THINK, *BLOCK_OPENERS)  # "<" only begins them
CLOSER = f"</{DSML}"
MAX_TAG = 1000  # characters; what is longer is not a tag
_MARKER = re.compile("|".join(map(re.escape, MARKERS)))
_TAG = re.compile(rf"<{DSML} ?(invoke|parameter)\b([^>]{{0,{MAX_TAG}}})>|</{DSML} ?(tool_calls|calls|invoke)>")
_CLOSING = re.compile(rf"{CLOSER} ?(?:([^<>]{{0,40}})(?:>|(?=<))|[^<>]{{41}})")  # ">" may be missing before a tag
_NAME = re.compile(r'name="([^"]*)"')
_HELD = MAX_TAG + 40  # characters at the end of a block's text that a tag may begin in


@dataclass(frozen=True)
class Thinking:
    text: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class ToolCallStart:
    index: int
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """The next piece of the arguments' JSON text."""

    index: int
    fragment: str


@dataclass(frozen=True)
class ToolCallEnd:
    index: int
    name: str
    arguments: str


@dataclass(frozen=True)
class End:
    """`finish`: stop, length, tool_calls, or what the caller gave."""

    finish: str


Event = Thinking | Text | ToolCallStart | ToolCallArguments | ToolCallEnd | End


@dataclass
class _Call:
    """A call while it is read."""

    name: str
    arguments: list[str] = field(default_factory=list)  # JSON text in pieces
    keys: set[str] = field(default_factory=set)
    open: bool = True  # until </invoke>
    in_value: bool = False  # inside a parameter,
    is_text: bool = True  # whose value is text, not JSON;
    lead: str = ""  # what its value is written after,
    value: list[str] = field(default_factory=list)  # and its JSON text in pieces


class StreamParser:
    """One assistant turn. `thinking`: the prompt ended in <think>. `stop`: strings that end the answer text.

    The work for a piece of text does not grow with what came before it.
    """

    def __init__(self, thinking: bool, in_tool_calls: bool = False, stop: Sequence[str] = ()):
        self._mode = "calls" if in_tool_calls else "thinking" if thinking else "text"
        self._stop = tuple(filter(None, stop))
        self._buffer = ""
        self._newlines = 0  # read before the buffer, and said if text follows
        self._answer = ""  # answer text held back because a stop string may be starting
        self._events: list[Event] = []
        self._parts: dict[str, list[str]] = {"thinking": [], "text": []}
        self._calls: list[_Call] = []
        self._block: list[str] = []
        self._finish = ""
        self.block_length = 0  # characters of the tool block
        self.faults: list[str] = []  # of each call: why it must not be run; empty if nothing is wrong
        self.unread = 0  # characters pushed after the end of the tool block
        self.stopped = False  # a stop string or the end of the tool block: nothing more will count

    def push(self, text: str) -> list[Event]:
        """Take the next piece of text; give the events it completes."""
        if self.stopped:
            return []
        if self._mode == "calls":
            self._extend_block(text)
        self._buffer += text
        while self._buffer and not self.stopped and self._step():
            pass
        return self._drain()

    def _step(self) -> bool:
        """Read the buffer up to its next marker or tag; whether there was one."""
        if self._mode != "calls":
            return self._plain()
        return self._parameter_value() if self._calls and self._calls[-1].in_value else self._tag()

    @property
    def tool_block(self) -> str:
        """Exact text of the sampled tool block."""
        return "".join(self._block)

    def finish(self, reason: str = "stop") -> list[Event]:
        """End of the turn. `reason`: stop, length or whatever ended it; calls make it tool_calls.

        A call that only lacks its closing tags is whole; one that was cut off inside of something is not.
        """
        open_call = self._calls[-1] if self._calls and self._calls[-1].open and not self.stopped else None
        if open_call and (open_call.in_value or reason != "stop" or self._buffer.strip()):
            self._fault("it was cut off before it was complete")
        elif open_call:
            self._end_call()
        if self._mode == "calls" and not self._calls:
            self.faults.append("the block holds no call that can be read")
        if self._mode != "calls" and not self.stopped:
            self._say("\n" * self._newlines + self._buffer)
        if not self.stopped:
            self._tell_answer(self._answer)
        self._buffer = self._answer = ""
        self._newlines = 0
        self._finish = "tool_calls" if self._calls and reason in ("stop", "length") else reason
        self._events.append(End(self._finish))
        return self._drain()

    def message(self) -> dict:
        """The turn so far: reasoning_content, content, tool_calls (those that exist) and finish."""
        out: dict = {}
        if self._parts["thinking"]:
            out["reasoning_content"] = "".join(self._parts["thinking"])
        if self._parts["text"]:
            out["content"] = "".join(self._parts["text"])
        if self._calls:
            out["tool_calls"] = [
                {"index": i, "type": "function", "function": {"name": call.name, "arguments": "".join(call.arguments)}}
                for i, call in enumerate(self._calls)
            ]
        return out | {"finish": self._finish}

    def _drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    # -- thinking and answer text ---------------------------------------------------------------------------

    def _plain(self) -> bool:
        """Say what is certainly text; act on a marker."""
        marker = _MARKER.search(self._buffer)
        cut = marker.start() if marker else len(self._buffer) - _held_back(self._buffer, MARKERS)
        text, self._buffer = self._buffer[:cut], self._buffer[cut:]
        said = text.rstrip("\n")
        if said:
            self._say("\n" * self._newlines + said)
            self._newlines = 0
        self._newlines += len(text) - len(said)
        if marker is None or self.stopped:
            return False
        if marker[0] == END_THINK:
            self._buffer = self._buffer[len(END_THINK) :]
            if self._mode == "text":
                self._say("\n" * self._newlines)
            self._mode, self._newlines = "text", 0
        else:
            self._tell_answer(self._answer)
            self._answer = ""
            self._extend_block("\n" * self._newlines + self._buffer)
            self._mode, self._buffer = "calls", self._buffer[len(marker[0]) :]
        return True

    def _say(self, text: str) -> None:
        """Thinking or answer text; newlines that lead either are dropped."""
        if not self._parts[self._mode] and not self._answer:
            text = text.lstrip("\n")
        if not text:
            return
        if self._mode == "thinking":
            self._parts["thinking"].append(text)
            self._events.append(Thinking(text))
            return
        self._answer += text
        hits = [at for at in (self._answer.find(stop) for stop in self._stop) if at >= 0]
        if hits:
            self._tell_answer(self._answer[: min(hits)])
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

    # -- tool calls -----------------------------------------------------------------------------------------

    def _extend_block(self, text: str) -> None:
        self._block.append(text)
        self.block_length += len(text)

    def _tag(self) -> bool:
        """Skip to the next whole tag of the block and act on it."""
        match = _TAG.search(self._buffer)
        cut = match.start() if match else max(0, len(self._buffer) - _HELD)
        if self._buffer[:cut].strip():
            self._fault("there is text outside of its parameters")
        self._buffer = self._buffer[match.end() if match else cut :]
        if match is None:
            return False
        opened, attributes, closed = match.groups()
        if opened == "invoke":
            self._end_call()
            self._start_call(attributes)
        elif opened:
            self._start_parameter(attributes)
        else:
            self._end_call()
        if closed in ("tool_calls", "calls"):
            block, self.unread = self.tool_block, len(self._buffer)
            self._block = [block[: len(block) - self.unread]]
            self.stopped = True
        return True

    def _start_call(self, attributes: str) -> None:
        name = _NAME.search(attributes)
        self._calls.append(_Call(name[1] if name else ""))
        self.faults.append("")
        self._events.append(ToolCallStart(len(self._calls) - 1, self._calls[-1].name))

    def _start_parameter(self, attributes: str) -> None:
        if not self._calls or not self._calls[-1].open:
            self._fault("a parameter stands outside of a call")
            return
        call, key = self._calls[-1], _NAME.search(attributes)
        if key is None or key[1] in call.keys:
            self._fault(f"parameter {key[1]} is given twice" if key else "a parameter has no name")
        call.keys.add(key[1] if key else "")
        call.in_value, call.is_text = True, 'string="false"' not in attributes
        call.lead = ("{", ", ")[bool(call.arguments)] + json.dumps(key[1] if key else "", ensure_ascii=False) + ": "
        if call.is_text:
            self._add(call.lead + '"')

    def _parameter_value(self) -> bool:
        """Text values stream as they come; JSON values are given whole, invalid ones as text."""
        call, closer = self._calls[-1], None
        end = self._buffer.find(CLOSER)
        if end >= 0:
            closer = _CLOSING.match(self._buffer, end)
        else:
            end = len(self._buffer) - _held_back(self._buffer, (CLOSER,))
        value, self._buffer = self._buffer[:end], self._buffer[end:]
        if call.is_text:
            self._add(_escaped(value))
        else:
            call.value.append(value)
        if closer is None:
            return False
        if closer[1] != "parameter":
            self._fault("a parameter was not closed")  # its closer is the call's or the block's, too
        else:
            self._buffer = self._buffer[len(closer[0]) :]
        call.in_value = False
        value, call.value = "".join(call.value), []
        if call.is_text:
            self._add('"')
        else:
            self._add(call.lead + (value if _is_json(value) else json.dumps(value, ensure_ascii=False)))
        return True

    def _add(self, fragment: str) -> None:
        if fragment:
            self._calls[-1].arguments.append(fragment)
            self._events.append(ToolCallArguments(len(self._calls) - 1, fragment))

    def _end_call(self) -> None:
        if not self._calls or not self._calls[-1].open:
            return
        call = self._calls[-1]
        call.open = False
        self._add("}" if call.arguments else "{}")
        self._events.append(ToolCallEnd(len(self._calls) - 1, call.name, "".join(call.arguments)))

    def _fault(self, reason: str) -> None:
        """The last call must not be run; the first reason is told."""
        if self.faults:
            self.faults[-1] = self.faults[-1] or reason


def _held_back(text: str, markers: Sequence[str]) -> int:
    """Length of the tail that may be the start of a marker; "<" only begins them."""
    at = text.rfind("<")
    tail = text[at:]
    return len(tail) if at >= 0 and any(marker.startswith(tail) for marker in markers) else 0


def _overlap(text: str, marker: str) -> int:
    """Length of the longest proper prefix of `marker` that ends `text`."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if text.endswith(marker[:n])), 0)


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _is_json(text: str) -> bool:
    def refuse(name):
        raise ValueError(name)

    try:
        json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return True
