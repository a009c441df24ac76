"""Messages: /v1/messages."""

import json
from typing import Any

from v4cli.errors import RequestError
from v4cli.serve import asked as fields
from v4cli.serve.asked import Asked
from v4cli.serve.dialect import Machine, anthropic_error, new_id, sse
from v4cli.serve.events import Call, End, Event, Failed, Finish, Text, Thinking, Usage

REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def read(body: dict) -> Asked:
    """RequestError for what cannot be understood."""
    system = fields.text_of(body.get("system"), "system")
    messages = [{"role": "system", "content": system}] if system else []
    for i, message in enumerate(fields.listed(body.get("messages"), "messages")):
        messages += _messages(message, f"messages[{i}]")
    if not messages:
        raise RequestError("messages must not be empty")
    choice, named, one_call = _choice(body.get("tool_choice"))
    thinking, effort = _thinking(body)
    config = body.get("output_config")
    format_ = config.get("format") if isinstance(config, dict) else None
    format_ = (body.get("output_format"), "output_format") if format_ is None else (format_, "output_config.format")
    return Asked(
        model=fields.model_of(body),
        messages=tuple(messages),
        tools=_tools(body),
        choice=choice,
        named=named,
        one_call=one_call,
        thinking=thinking,
        effort=effort,
        max_tokens=fields.limit(body, "max_tokens"),
        stop=fields.stops(body.get("stop_sequences"), "stop_sequences"),
        format=fields.format_of(*format_, strict=True),
        stream=fields.boolean(body, "stream"),
        **fields.sampling(body),
    )


def _messages(message: dict, at: str) -> list[dict]:
    """A message of theirs as one or more of ours: results of tools are messages of their own."""
    role, content = message.get("role"), message.get("content")
    if role in ("system", "developer"):
        return [{"role": "system", "content": fields.text_of(content, f"{at}.content")}]
    if role not in ("user", "assistant"):
        raise RequestError(f"{at}.role must be user, assistant or system, not {str(role)[:40]!r}")
    blocks = (
        [{"type": "text", "text": content}] if isinstance(content, str) else fields.listed(content, f"{at}.content")
    )
    if role == "assistant":
        return [_assistant(blocks, at)]
    out: list[dict] = []
    texts: list[dict] = []

    def flush() -> None:
        if texts:
            out.append({"role": "user", "content": fields.text_of(texts, f"{at}.content")})
            texts.clear()

    for block in blocks:
        if block.get("type") == "tool_result":
            flush()
            result = fields.text_of(block.get("content"), f"{at}.content", lenient=True)
            if block.get("is_error") and not result:
                result = "error"
            out.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id") or ""), "content": result})
        else:
            texts.append(block)
    flush()
    return out or [{"role": "user", "content": ""}]


def _assistant(blocks: list[dict], at: str) -> dict:
    texts = [block for block in blocks if block.get("type") == "text"]
    thoughts = [block.get("thinking") for block in blocks if block.get("type") == "thinking"]
    out: dict = {"role": "assistant", "content": fields.text_of(texts, f"{at}.content")}
    if reasoning := "".join(text for text in thoughts if isinstance(text, str)):
        out["reasoning_content"] = reasoning
    calls = []
    for block in blocks:
        if block.get("type") == "tool_use":
            if not isinstance(block.get("name"), str):
                raise RequestError(f"{at}: a tool_use block has no name")
            arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
            about = {"name": block["name"], "arguments": arguments}
            calls.append({"id": str(block.get("id") or ""), "type": "function", "function": about})
    return out | ({"tool_calls": calls} if calls else {})


def _tools(body: dict) -> tuple[dict, ...]:
    """Those that the client runs; tools of a server are not run here."""
    tools = [
        t for t in fields.listed(body.get("tools"), "tools") if "input_schema" in t or t.get("type") in (None, "custom")
    ]
    return fields.unique(
        fields.function(tool.get("name"), tool.get("description"), tool.get("input_schema"), f"tools[{i}]")
        for i, tool in enumerate(tools)
    )


def _choice(wanted: Any) -> tuple[str, str | None, bool]:
    if not isinstance(wanted, dict):
        return "auto", None, False
    one = wanted.get("disable_parallel_tool_use") is True
    kind = wanted.get("type")
    if kind == "tool":
        if not isinstance(wanted.get("name"), str):
            raise RequestError("tool_choice.name is missing")
        return "auto", wanted["name"], one
    return "required" if kind == "any" else "none" if kind == "none" else "auto", None, one


def _thinking(body: dict) -> tuple[bool, str | None]:
    """Off unless asked for, as clients of this dialect expect."""
    wanted, config = body.get("thinking"), body.get("output_config")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    by_effort, level = fields.effort_of(config.get("effort") if isinstance(config, dict) else None)
    return kind in ("enabled", "adaptive") and by_effort, level


class MessagesMachine(Machine):
    """Blocks in the order thinking, text, tool_use; the message that they make up."""

    def __init__(self, asked: Asked, model: str, n_prompt: int):
        super().__init__(asked, model, n_prompt)
        self.id = new_id("msg_")
        self._blocks: list[dict] = []
        self._open = False
        self._finish = Finish("stop")

    def begin(self) -> list[str]:
        message = self._message([], None) | {"stop_sequence": None}
        return [_event("message_start", message=message), _event("ping")]

    def beat(self) -> list[str]:
        return [_event("ping")]

    def take(self, choice: int, event: Event) -> list[str]:
        match event:
            case Thinking(text):
                out = self._in("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                self._blocks[-1]["thinking"] += text
                return [*out, self._delta({"type": "thinking_delta", "thinking": text})]
            case Text(text):
                out = self._in("text", {"type": "text", "text": ""})
                self._blocks[-1]["text"] += text
                return [*out, self._delta({"type": "text_delta", "text": text})]
            case Call():
                block = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
                out = [*self._close(), *self._start(block)]
                self._blocks[-1]["input"] = json.loads(event.arguments)
                out.append(self._delta({"type": "input_json_delta", "partial_json": event.arguments}))
                return out + self._close()
            case Finish():
                self._finish = event
                return self._close()
        return []

    def _in(self, kind: str, block: dict) -> list[str]:
        """Be in a block of this kind."""
        if self._open and self._blocks[-1]["type"] == kind:
            return []
        return [*self._close(), *self._start(block)]

    def _start(self, block: dict) -> list[str]:
        self._blocks.append(dict(block))
        self._open = True
        return [_event("content_block_start", index=len(self._blocks) - 1, content_block=block)]

    def _delta(self, delta: dict) -> str:
        return _event("content_block_delta", index=len(self._blocks) - 1, delta=delta)

    def _close(self) -> list[str]:
        if not self._open:
            return []
        self._open, out = False, []
        if self._blocks[-1]["type"] == "thinking":
            self._blocks[-1]["signature"] = new_id("v4_")
            out.append(self._delta({"type": "signature_delta", "signature": self._blocks[-1]["signature"]}))
        return [*out, _event("content_block_stop", index=len(self._blocks) - 1)]

    def end(self, end: End) -> list[str]:
        if isinstance(end, Failed):
            return [sse(anthropic_error(end), "error")]
        self.usage = end
        delta = {"stop_reason": self._reason, "stop_sequence": self._finish.stop_sequence}
        return [_event("message_delta", delta=delta, usage=usage_of(end)), _event("message_stop")]

    @property
    def _reason(self) -> str:
        return "stop_sequence" if self._finish.stop_sequence is not None else REASONS[self._finish.reason]

    def _message(self, content: list[dict], reason: str | None) -> dict:
        return {
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": reason, "usage": usage_of(self.usage),
        }  # fmt: skip

    def final(self) -> dict:
        return self._message(self._blocks, self._reason) | {"stop_sequence": self._finish.stop_sequence}


def _event(kind: str, **about: Any) -> str:
    return sse({"type": kind, **about}, kind)


def usage_of(usage: Usage) -> dict:
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }
