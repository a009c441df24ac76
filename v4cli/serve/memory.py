"""What the model said, token by token, for when a client sends it back: without its reasoning, with other blanks in the
arguments, in other words for the same. Then the prompt is what the cache holds.

An answer with tool calls is known by their ids, which nobody can guess; any other by all that was said before it.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from v4cli.serve.events import Call

MOST = 10_000  # answers
MOST_TOKENS = 8 << 20  # of them all
Key = bytes


@dataclass(frozen=True)
class Turn:
    """An answer as it was sampled (`sampled` of chat/messages.py), and as clients see it."""

    sampled: dict
    text: str
    reasoning: str
    calls: tuple[Call, ...]


class Memory:
    """Of the last answers; any thread may ask."""

    def __init__(self, most: int = MOST, most_tokens: int = MOST_TOKENS):
        self.most, self.most_tokens = most, most_tokens
        self._turns: OrderedDict[Key, Turn] = OrderedDict()
        self._n_tokens = 0
        self._lock = threading.Lock()

    def remember(self, messages: Sequence[dict], turn: Turn) -> None:
        """`turn` answered the messages."""
        said = _said(turn.text, turn.calls)
        key = _call_key(turn.calls[0].id) if turn.calls else _after(_chain(messages), said)
        with self._lock:
            self._forget(key)
            self._turns[key] = turn
            self._n_tokens += len(turn.sampled["ids"])
            while len(self._turns) > self.most or self._n_tokens > self.most_tokens:
                self._forget(next(iter(self._turns)))

    def _forget(self, key: Key) -> None:
        if turn := self._turns.pop(key, None):
            self._n_tokens -= len(turn.sampled["ids"])

    def restored(self, messages: Sequence[dict]) -> list[dict]:
        """The messages, those of the assistant that are known as they were sampled."""
        out, key = [], b""
        for message in messages:
            known = None
            if message["role"] == "assistant":
                calls = _calls(message)
                key = _after(key, _said(message.get("content"), calls))
                known = self._turn(_call_key(calls[0].id) if calls else key)
                if known and _is_same(known, message, calls):
                    block = {"tool_block": known.sampled["text"]} if known.calls else {}
                    reasoning = {"reasoning_content": known.reasoning} if known.reasoning else {}
                    message = message | {"sampled": known.sampled} | block | reasoning
            else:
                key = _after(key, _heard(message))
            out.append(message)
        return out

    def _turn(self, key: Key) -> Turn | None:
        with self._lock:
            if key in self._turns:
                self._turns.move_to_end(key)
            return self._turns.get(key)


def _call_key(call_id: str) -> Key:
    return b"call " + call_id.encode()


def _after(key: Key, said: list) -> Key:
    return hashlib.sha256(key + json.dumps(said).encode()).digest()


def _chain(messages: Sequence[dict]) -> Key:
    key = b""
    for message in messages:
        own = message["role"] == "assistant"
        key = _after(key, _said(message.get("content"), _calls(message)) if own else _heard(message))
    return key


def _said(text: str | None, calls: Sequence[Call]) -> list:
    return ["assistant", (text or "").strip(), [call.id for call in calls]]


def _heard(message: dict) -> list:
    return [message["role"], (message.get("content") or "").strip(), message.get("tool_call_id") or ""]


def _calls(message: dict) -> list[Call]:
    calls = message.get("tool_calls") or ()
    return [Call(call.get("id") or "", call["function"]["name"], call["function"]["arguments"]) for call in calls]


def _is_same(known: Turn, message: dict, calls: Sequence[Call]) -> bool:
    """Whether a message says what the turn said: the same words, calls and values."""
    if known.text.strip() != (message.get("content") or "").strip() or len(calls) != len(known.calls):
        return False
    return all(a.id == b.id and a.name == b.name and _value(a) == _value(b) for a, b in zip(calls, known.calls))


def _value(call: Call) -> object:
    try:
        return json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return call.arguments
