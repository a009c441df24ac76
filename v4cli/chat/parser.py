"""From sampled text to events, as it streams: thinking, answer, tool calls with partial arguments (spec 5.7).

Tolerant as DeepSeek's own stream parser: a tool block inside unfinished thinking ends the thinking, stray
`</think>` is skipped, a truncated call is given as far as it got. The result does not depend on how the text is
cut into pieces. Knows text only.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from v4cli.chat.special import DSML, END_THINK

BLOCK_OPENERS = (f"<{DSML}tool_calls>", f"<{DSML} calls>")
MARKERS = (END_THINK, *BLOCK_OPENERS)
CLOSER = f"</{DSML}"
_TAG = re.compile(rf"<{DSML} ?(invoke|parameter)\b([^>]*)>|</{DSML} ?(tool_calls|calls|invoke)>")
_CLOSING = re.compile(rf"{CLOSER} ?([^<>]*)(?:>|(?=<))")  # its ">" may be missing where the next tag begins
_NAME = re.compile(r'name="([^"]*)"')


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


class StreamParser:
    """One assistant turn. `thinking`: the prompt ended in <think>. `stop`: strings that end the answer text."""

    def __init__(self, thinking: bool, in_tool_calls: bool = False, stop: Sequence[str] = ()):
        self._mode = "calls" if in_tool_calls else "thinking" if thinking else "text"
        self._stop = tuple(filter(None, stop))
        self._buffer = ""
        self._answer = ""  # answer text held back because a stop string may be starting
        self._events: list[Event] = []
        self._parts = {"thinking": "", "text": ""}
        self._calls: list[dict] = []
        self._value: str | None = None  # "true" or "false" while inside a parameter
        self._finish = ""
        self.tool_block = ""  # exact text of the sampled tool block
        self.faults: list[str] = []  # of each call: why it must not be run; empty if nothing is wrong
        self.stopped = False  # a stop string or the end of the tool block: nothing more will count

    def push(self, text: str) -> list[Event]:
        """Take the next piece of text; give the events it completes."""
        if self.stopped:
            return []
        if self._mode == "calls":
            self.tool_block += text
        self._buffer += text
        while self._buffer and not self.stopped:
            before = self._mode, len(self._buffer)
            if self._mode != "calls":
                self._plain()
            elif self._value is not None:
                self._parameter_value()
            else:
                self._tag()
            if (self._mode, len(self._buffer)) == before:
                break
        return self._drain()

    @property
    def unread(self) -> int:
        """Characters pushed after the end of the tool block."""
        return len(self._buffer) if self.stopped and self._mode == "calls" else 0

    def finish(self, reason: str = "stop") -> list[Event]:
        """End of the turn. `reason`: stop, length or whatever ended it; calls make it tool_calls."""
        cut_off = self._value is not None or reason != "stop" or "<" in self._buffer
        if self._open and not self.stopped and cut_off:
            self.faults[-1] = self.faults[-1] or "it was cut off before it was complete"
        elif self._open:
            self._end_call()
        if self._mode != "calls" and not self.stopped:
            self._say(self._buffer)
        if not self.stopped:
            self._tell_answer(self._answer)
        self._buffer = self._answer = ""
        self._finish = "tool_calls" if self._calls and reason in ("stop", "length") else reason
        self._events.append(End(self._finish))
        return self._drain()

    def message(self) -> dict:
        """The turn so far: reasoning_content, content, tool_calls (those that exist) and finish."""
        out: dict = {}
        if self._parts["thinking"]:
            out["reasoning_content"] = self._parts["thinking"]
        if self._parts["text"]:
            out["content"] = self._parts["text"]
        if self._calls:
            out["tool_calls"] = [
                {"index": i, "type": "function", "function": dict(call)} for i, call in enumerate(self._calls)
            ]
        return out | {"finish": self._finish}

    def _drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    # -- thinking and answer text ---------------------------------------------------------------------------

    def _plain(self) -> None:
        """Say what is certainly text; act on a marker."""
        found = [(self._buffer.find(marker), marker) for marker in MARKERS if marker in self._buffer]
        if not found:
            cut = len(self._buffer) - _held_back(self._buffer)
            text, self._buffer = self._buffer[:cut], self._buffer[cut:]
            self._say(text)
            return
        at, marker = min(found)
        text, rest = self._buffer[:at], self._buffer[at + len(marker) :]
        if marker == END_THINK:
            self._say(text.rstrip("\n") if self._mode == "thinking" else text)
            self._mode, self._buffer = "text", rest
            return
        said = text.rstrip("\n")
        self._say(said)
        self._tell_answer(self._answer)
        self._answer = ""
        if not self.stopped:
            self.tool_block = self._buffer[len(said) :]
            self._mode, self._buffer = "calls", rest

    def _say(self, text: str) -> None:
        """Thinking or answer text; newlines that lead either are dropped."""
        if not self._parts[self._mode] and not self._answer:
            text = text.lstrip("\n")
        if not text:
            return
        if self._mode == "thinking":
            self._parts["thinking"] += text
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
            self._parts["text"] += text
            self._events.append(Text(text))

    # -- tool calls -----------------------------------------------------------------------------------------

    def _tag(self) -> None:
        """Skip to the next whole tag of the block and act on it."""
        match = _TAG.search(self._buffer)
        if not match:
            return
        self._buffer = self._buffer[match.end() :]
        opened, attributes, closed = match.groups()
        if closed == "invoke":
            self._end_call()
        elif closed:
            self.tool_block = self.tool_block[: len(self.tool_block) - len(self._buffer)]
            self.stopped = True
        elif opened == "invoke":
            self._end_call()
            name = _NAME.search(attributes)
            self._calls.append({"name": name[1] if name else "", "arguments": ""})
            self.faults.append("")
            self._keys = set()
            self._open = True
            self._events.append(ToolCallStart(len(self._calls) - 1, self._calls[-1]["name"]))
        elif self._calls and self._open:
            key = _NAME.search(attributes)
            if key is None or key[1] in self._keys:
                self.faults[-1] = f"parameter {key[1]} is given twice" if key else "a parameter has no name"
            self._keys.add(key[1] if key else "")
            self._value = "false" if 'string="false"' in attributes else "true"
            lead = ", " if self._calls[-1]["arguments"] else "{"
            self._key = lead + json.dumps(key[1] if key else "", ensure_ascii=False) + ": "
            if self._value == "true":
                self._add(self._key + '"')

    def _parameter_value(self) -> None:
        """Text values stream as they come; JSON values are given whole, invalid ones as text."""
        end = self._buffer.find(CLOSER)
        if end < 0:
            if self._value == "true":
                cut = len(self._buffer) - _overlap(self._buffer, CLOSER)
                self._add(_escaped(self._buffer[:cut]))
                self._buffer = self._buffer[cut:]
            return
        closer = _CLOSING.match(self._buffer, end)
        if not closer:
            return
        value, self._buffer = self._buffer[:end], self._buffer[closer.end() :]
        if closer[1] != "parameter":
            self.faults[-1] = self.faults[-1] or "a parameter was not closed"
            self._buffer = closer[0] + self._buffer  # it closes the call or the block, too
        if self._value == "true":
            self._add(_escaped(value) + '"')
        else:
            self._add(self._key + (value if _is_json(value) else json.dumps(value, ensure_ascii=False)))
        self._value = None

    def _add(self, fragment: str) -> None:
        if fragment:
            self._calls[-1]["arguments"] += fragment
            self._events.append(ToolCallArguments(len(self._calls) - 1, fragment))

    _open = False  # inside <invoke>
    _key = ""
    _keys: set[str]

    def _end_call(self) -> None:
        if not self._open:
            return
        self._open = False
        self._add("}" if self._calls[-1]["arguments"] else "{}")
        call = self._calls[-1]
        self._events.append(ToolCallEnd(len(self._calls) - 1, call["name"], call["arguments"]))


def _held_back(text: str) -> int:
    """Length of the tail that may be the start of a marker, with the newlines before it."""
    held = max(_overlap(text, marker) for marker in MARKERS)
    head = text[: len(text) - held]
    return held + len(head) - len(head.rstrip("\n"))


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
