"""A block of tool calls, tag by tag: events of its calls as they come, and what is wrong with each."""

import json
from collections import Counter
from dataclasses import dataclass, field

from v4cli.chat.markup import Tag, raw

CUT_OFF = "it was cut off before it was complete"
NO_CALL = "the block holds no call that can be read"
IN_CODE = "it stands in a code block that was not closed"
NOT_CLOSED = "a parameter was not closed"
NO_NAME = "a parameter has no name that can be read"
NEXT_BEGAN = "the next call began before it was closed"
SPELLED_APART = "a parameter is closed in another spelling than it was opened"
CLOSED_TWICE = "a parameter is closed twice"
TEXT_OUTSIDE = "there is text outside of its parameters"
GOES_ON = "its markup goes on after the end of the block"


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
    """A call is over. `fault`: why it must not be run; the arguments may then end in the middle."""

    index: int
    name: str
    arguments: str
    fault: str = ""


CallEvent = ToolCallStart | ToolCallArguments | ToolCallEnd


@dataclass
class Call:
    """A call while it is read."""

    name: str
    arguments: list[str] = field(default_factory=list)  # JSON text in pieces
    keys: set[str] = field(default_factory=set)
    open: bool = True  # until </invoke>
    in_value: bool = False  # inside a parameter,
    bars: str = ""  # whose tag has these,
    is_text: bool = True  # whose value is text, not JSON;
    lead: str = ""  # what its value is written after,
    value: list[str] = field(default_factory=list)  # and its JSON text in pieces


class Nesting:
    """Kinds of tags that have been opened and not closed."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self._kinds: list[str] = []

    def open(self, tag: Tag) -> None:
        self._kinds.append(tag.kind)
        self.counts[tag.kind] += 1

    def closes(self, tag: Tag) -> bool:
        """Whether a tag closes one of them, which then is not open any more, nor are those within it."""
        if not self.counts[tag.kind]:
            return False
        kind = ""
        while kind != tag.kind:
            kind = self._kinds.pop()
            self.counts[kind] -= 1
        return True


class CallBlock:
    """`take` what stands in the block, `wrapped` in its tags or not, until it `ended`; `events` are for the caller to
    remove."""

    def __init__(self, events: list, wrapped: bool = True, unreadable: str = NO_CALL):
        """`unreadable`: its fault if there is no call in it."""
        self.events, self.wrapped, self.unreadable = events, wrapped, unreadable
        self.calls: list[Call] = []
        self.faults: list[str] = []  # of each call: why it must not be run, or empty; one of a block without calls
        self.ended = False
        self.text: list[str] = []  # exactly as sampled
        self.length = 0  # of it, in characters
        self._early = ""  # a fault before the first call
        self._doubtful = False  # the block has been closed, but its call had not been: nothing may follow
        self._told = 0  # calls whose end has been told
        self._held: list[Tag | str] = []  # a closing tag in a value, and blanks after it, that what follows decides on
        self._nesting = Nesting()  # of tags in a value, or after the end

    def add(self, text: str) -> None:
        """Text of the block that means nothing."""
        self.text.append(text)
        self.length += len(text)

    def take(self, token: Tag | str) -> int:
        """The next piece; how many characters of it come after the end, if it ends a block that lacks a tag."""
        call, text = self.calls[-1] if self.calls else None, raw(token)
        unwrapped = not self.wrapped and call and not call.open and isinstance(token, str)
        if (unwrapped or self._doubtful) and text.strip():
            if self._doubtful:
                self._fault(GOES_ON)
            self.ended, after = True, len(text.lstrip())
            self.add(text[: len(text) - after])
            return after
        self.add(text)
        if call and call.in_value:
            self._value(token)
        else:
            self._between(token)
        return 0

    def finish(self, reason: str, rest: str) -> None:
        """Nothing comes any more but `rest`, which may be the beginning of a tag. What is certain is repaired."""
        if self._held:
            self._close_value(self._held[0])
        if not self.ended:
            self.add(rest)
        whole = self.ended or (reason == "stop" and not rest.strip())
        if not self.calls:
            self.faults.append(self.unreadable if whole else CUT_OFF)
            return
        call = self.calls[-1]
        if call.in_value and not call.is_text:
            self._add(call.lead + "".join(call.value))
        if call.open and (call.in_value or not whole or not self.wrapped):
            self._fault(CUT_OFF)
        elif call.open:
            self._end_call()
        self._tell_end()

    def after(self, token: Tag | str) -> None:
        """What follows the block is dropped. If tags are closed there that nothing has opened, its end was none: it
        stood in a value."""
        if isinstance(token, str) or token.kind not in ("invoke", "parameter") or token.empty:
            return
        if not token.closing:
            self._nesting.open(token)
        elif not self._nesting.closes(token):
            self._fault(GOES_ON)

    def _between(self, token: Tag | str) -> None:
        """What stands outside of values."""
        if isinstance(token, str):
            if token.strip():
                self._fault(TEXT_OUTSIDE)
            return
        is_open = bool(self.calls) and self.calls[-1].open
        match token.kind, token.closing:
            case "invoke", False:
                if is_open:
                    self._fault(NEXT_BEGAN)
                self._end_call()
                self._start_call(token)
            case "invoke", True:
                self._end_call()
            case "parameter", False:
                self._start_parameter(token)
            case "calls", True:
                self._end_call()
                self.ended, self._doubtful = not is_open, is_open
            case "parameter", True:
                self._fault(CLOSED_TWICE)
            case _ if is_open or token.kind == "other":
                self._fault(TEXT_OUTSIDE)

    def _start_call(self, tag: Tag) -> None:
        name = tag.attribute("name")
        self._tell_end()
        self.calls.append(Call(name or ""))
        self.faults.append("")
        self.events.append(ToolCallStart(len(self.calls) - 1, name or ""))
        if not name or self._early:
            self._fault(self._early or "it has no name that can be read")
            self._early = ""
        if tag.empty:
            self._end_call()

    def _start_parameter(self, tag: Tag) -> None:
        if not self.calls or not self.calls[-1].open:
            self._fault("a parameter stands outside of a call")
            return
        call, key = self.calls[-1], tag.attribute("name")
        if key is None or key in call.keys:
            self._fault(NO_NAME if key is None else f"parameter {key} is given twice")
        call.keys.add(key or "")
        call.in_value, call.bars = True, tag.bars
        call.is_text = (tag.attribute("string") or "").lower() != "false"
        call.lead = ("{", ", ")[bool(call.arguments)] + json.dumps(key or "", ensure_ascii=False) + ": "
        if call.is_text:
            self._add(call.lead + '"')
        if tag.empty:
            self._end_value()

    def _value(self, token: Tag | str) -> None:
        """Text values stream as they come; JSON values are given whole, invalid ones as text. A closing tag ends the
        value if what follows it could not stand in it."""
        if self._held:
            if isinstance(token, str) and token.isspace():
                self._held.append(token)
                return
            held, self._held = self._held, []
            if _ends_value(held[0], token):
                self._close_value(held[0])
                if (held[0].kind, token.kind, token.closing) == ("parameter", "parameter", True):
                    self._fault(CLOSED_TWICE)
                self._between(token)
                return
            for piece in held:
                self._add_value(raw(piece))
        if isinstance(token, Tag) and token.kind in ("calls", "invoke", "parameter"):
            if token.closing and not self._nesting.closes(token):
                self._held = [token]
                return
            if not token.closing and not token.empty:
                self._nesting.open(token)
        self._add_value(raw(token))

    def _add_value(self, text: str) -> None:
        if self.calls[-1].is_text:
            self._add(_escaped(text))
        else:
            self.calls[-1].value.append(text)

    def _close_value(self, closer: Tag) -> None:
        """The value ends before a tag, which should be its own, with none open that might be a parameter itself."""
        if closer.kind != "parameter" or self._nesting.counts["parameter"]:
            self._fault(NOT_CLOSED)
        elif closer.bars != self.calls[-1].bars:
            self._fault(SPELLED_APART)
        self._end_value()
        if closer.kind != "parameter":
            self._between(closer)

    def _end_value(self) -> None:
        call = self.calls[-1]
        call.in_value, self._nesting = False, Nesting()
        value, call.value = "".join(call.value), []
        if call.is_text:
            self._add('"')
        else:
            self._add(call.lead + (value if _is_json(value) else json.dumps(value, ensure_ascii=False)))

    def _add(self, fragment: str) -> None:
        if fragment:
            self.calls[-1].arguments.append(fragment)
            self.events.append(ToolCallArguments(len(self.calls) - 1, fragment))

    def _end_call(self) -> None:
        """The last call is closed; what follows may still tell something about it."""
        if self.calls and self.calls[-1].open:
            self.calls[-1].open = False
            self._add("}" if self.calls[-1].arguments else "{}")

    def _tell_end(self) -> None:
        """The last call is over, if that has not been told."""
        if self._told < len(self.calls):
            self._told = len(self.calls)
            call = self.calls[-1]
            self.events.append(ToolCallEnd(self._told - 1, call.name, "".join(call.arguments), self.faults[-1]))

    def _fault(self, reason: str) -> None:
        """The last call, or the first to come, must not be run; the first reason is told."""
        if self.faults:
            self.faults[-1] = self.faults[-1] or reason
        else:
            self._early = self._early or reason


def _ends_value(closer: Tag, following: Tag | str) -> bool:
    """Whether a closing tag in a value is followed by what can only follow the end of the value."""
    if isinstance(following, str):
        return False
    after = following.kind, following.closing
    if closer.kind == "parameter":
        return after in (("parameter", False), ("parameter", True), *_AFTER_CALL, ("invoke", True))
    return closer.kind == "invoke" and after in _AFTER_CALL


_AFTER_CALL = ("invoke", False), ("calls", True)


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
