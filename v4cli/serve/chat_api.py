"""Chat Completions: /v1/chat/completions."""

import json
from typing import Any

from v4cli.errors import RequestError
from v4cli.serve import asked as fields
from v4cli.serve.asked import Asked, ToolName
from v4cli.serve.dialect import COMMENT, Machine, new_id, openai_error, sse
from v4cli.serve.events import Call, End, Event, Failed, Finish, Logprob, Text, Thinking, Usage

REASONING = ("reasoning_content", "reasoning", "reasoning_text")  # names that clients send it back under
THOUGHTS = ("thinking", "reasoning", "redacted_thinking")  # kinds of parts


def read(body: dict) -> Asked:
    """RequestError for what cannot be understood."""
    messages = tuple(
        _message(m, f"messages[{i}]") for i, m in enumerate(fields.listed(body.get("messages"), "messages"))
    )
    if not messages:
        raise RequestError("messages must not be empty")
    legacy = "functions" in body and "tools" not in body
    if legacy:
        body = body | {"tools": _functions(body), "tool_choice": body.get("function_call")}
    tools, names = _tools(body)
    tools, wanted = fields.allowed(tools, body.get("tool_choice"))
    choice, named = _choice(wanted)
    thinking, effort = _thinking(body)
    return Asked(
        model=fields.model_of(body),
        messages=messages,
        tools=tools,
        names=names,
        choice=choice,
        named=named,
        one_call=legacy or body.get("parallel_tool_calls") is False,
        as_function=legacy,
        thinking=thinking,
        effort=effort,
        max_tokens=fields.limit(body, "max_completion_tokens", "max_tokens"),
        stop=fields.stops(body.get("stop")),
        format=fields.format_of(body.get("response_format"), "response_format"),
        n=min(fields.integer(body, "n", least=1) or 1, fields.MOST_CHOICES),
        top_logprobs=_top_logprobs(body),
        stream=fields.boolean(body, "stream"),
        **fields.sampling(body),
    )


def _message(message: dict, at: str) -> dict:
    role = message.get("role")
    if role in ("system", "developer", "user", "latest_reminder"):
        role = "user" if role == "latest_reminder" else role
        return {"role": role, "content": fields.text_of(message.get("content"), f"{at}.content")}
    if role in ("tool", "function"):
        call_id = message.get("tool_call_id") or message.get("name") or ""
        content = fields.text_of(message.get("content"), f"{at}.content", lenient=True)
        return {"role": "tool", "tool_call_id": str(call_id), "content": content}
    if role != "assistant":
        raise RequestError(f"{at}.role must be system, developer, user, assistant or tool, not {str(role)[:40]!r}")
    content, thoughts = _parted(message.get("content"))
    out: dict = {"role": "assistant", "content": fields.text_of(content, f"{at}.content", lenient=True)}
    if reasoning := _reasoning(message) or thoughts:
        out["reasoning_content"] = reasoning
    calls = fields.listed(message.get("tool_calls"), f"{at}.tool_calls")
    about = message.get("function_call")
    if not calls and isinstance(about, dict):  # of before there were tools: its result comes under its name
        calls = [{"id": about.get("name"), "function": about}]
    if calls:
        out["tool_calls"] = [_call(call, f"{at}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return out


def _reasoning(message: dict) -> str:
    for name in REASONING:
        if isinstance(message.get(name), str) and message[name]:
            return message[name]
    details = message.get("reasoning_details")
    return "".join(map(_thought, details)) if isinstance(details, list) else ""


def _thought(part: Any) -> str:
    """The text of a part of reasoning, in any client's words."""
    texts = [part.get(name) for name in ("text", "thinking", "summary")] if isinstance(part, dict) else []
    return next((text for text in texts if isinstance(text, str)), "")


def _parted(content: Any) -> tuple[Any, str]:
    """What an assistant said, without the parts that are reasoning, and these."""
    if not isinstance(content, list):
        return content, ""
    is_thought = [isinstance(part, dict) and part.get("type") in THOUGHTS for part in content]
    thoughts = (_thought(part) for part, its in zip(content, is_thought, strict=True) if its)
    return [part for part, its in zip(content, is_thought, strict=True) if not its], "".join(thoughts)


def _call(call: dict, at: str) -> dict:
    about = call.get("function") or call.get("custom")
    if not isinstance(about, dict) or not isinstance(about.get("name"), str):
        raise RequestError(f"{at}.function.name is missing")
    arguments = about.get("arguments")
    if "function" not in call:
        arguments = fields.custom_arguments(about.get("input"))
    elif not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    call_id = call.get("id")
    return {
        "id": call_id if isinstance(call_id, str) else "", "type": "function",
        "function": {"name": about["name"], "arguments": arguments},
    }  # fmt: skip


def _functions(body: dict) -> list[dict]:
    """As tools, those of a request of before there were tools."""
    return [{"type": "function", "function": its} for its in fields.listed(body["functions"], "functions")]


def _tools(body: dict) -> tuple[tuple[dict, ...], dict[str, ToolName]]:
    """Functions and custom tools, and of these how the client knows them."""
    tools, names = [], {}
    for i, tool in enumerate(fields.listed(body.get("tools"), "tools")):
        about = tool.get("function") or tool.get("custom") or (tool if "name" in tool else None)
        if not isinstance(about, dict):
            raise RequestError(f"tools[{i}].function is missing")
        is_custom = tool.get("type") == "custom"
        parameters = fields.CUSTOM if is_custom else about.get("parameters")
        made = fields.function(about.get("name"), fields.description(about), parameters, f"tools[{i}]")
        tools.append(made)
        if is_custom:
            names[made["function"]["name"]] = ToolName(made["function"]["name"], custom=True)
    return fields.unique(tools), names


def _choice(wanted: Any) -> tuple[str, str | None]:
    if isinstance(wanted, dict):
        about = wanted.get("function") or wanted.get("custom") or wanted
        if not isinstance(about, dict) or not isinstance(about.get("name"), str):
            raise RequestError("tool_choice.function.name is missing")
        return "auto", about["name"]
    return (wanted if wanted in ("none", "required") else "auto"), None


def _thinking(body: dict) -> tuple[bool, str | None]:
    """By `thinking`, else by the effort, else on, as the official API does."""
    wanted, effort = body.get("thinking"), body.get("reasoning_effort")
    if isinstance(body.get("reasoning"), dict):
        effort = effort or body["reasoning"].get("effort")
    wanted = wanted.get("type") if isinstance(wanted, dict) else wanted
    by_effort, level = fields.effort_of(effort)
    return wanted not in ("disabled", False) and by_effort, level


def _top_logprobs(body: dict) -> int | None:
    if not fields.boolean(body, "logprobs"):
        return None
    return min(max(fields.integer(body, "top_logprobs") or 0, 0), fields.MOST_TOP_LOGPROBS)


class ChatMachine(Machine):
    """Chunks, and the completion that they make up."""

    def __init__(self, asked: Asked, model: str, n_prompt: int, usage_asked_for: bool = False):
        super().__init__(asked, model, n_prompt)
        self.id, self.usage_asked_for = new_id("chatcmpl-"), usage_asked_for
        self._choices: list[dict] = [
            {"text": "", "reasoning": "", "calls": [], "logprobs": [], "finish": None} for _ in range(asked.n)
        ]

    def begin(self) -> list[str]:
        return [self._chunk(i, {"role": "assistant", "content": ""}) for i in range(self.asked.n)]

    def beat(self) -> list[str]:
        return [COMMENT, self._chunk(0, {})] if self._choices[0]["finish"] is None else [COMMENT]

    def take(self, choice: int, event: Event) -> list[str]:
        its = self._choices[choice]
        match event:
            case Thinking(text):
                its["reasoning"] += text
                return [self._chunk(choice, {"reasoning_content": text})]
            case Text(text):
                its["text"] += text
                return [self._chunk(choice, {"content": text})]
            case Logprob():
                entry = logprob_entry(event)
                its["logprobs"].append(entry)
                return [self._chunk(choice, {}, logprobs={"content": [entry]})]
            case Call():
                call = self._call(event)
                its["calls"].append(call)
                if self.asked.as_function:
                    return [self._chunk(choice, {"function_call": call["function"]})]
                return [self._chunk(choice, {"tool_calls": [{"index": len(its["calls"]) - 1, **call}]})]
            case Finish():
                is_call = self.asked.as_function and event.reason == "tool_calls"
                its["finish"] = "function_call" if is_call else event.reason
                return [self._chunk(choice, {}, its["finish"])]

    def _call(self, call: Call) -> dict:
        known = self.asked.names.get(call.name)
        if known and known.custom:
            about = {"name": call.name, "input": fields.custom_input(call.arguments)}
            return {"id": call.id, "type": "custom", "custom": about}
        about = {"name": call.name, "arguments": call.arguments}
        return {"id": call.id, "type": "function", "function": about}

    def end(self, end: End) -> list[str]:
        if isinstance(end, Failed):
            return [sse(openai_error(end)), "data: [DONE]\n\n"]
        self.usage = end
        chunk = sse(self._head("chat.completion.chunk") | {"choices": [], "usage": usage_of(end)})
        return [chunk] * self.usage_asked_for + ["data: [DONE]\n\n"]

    def _head(self, kind: str) -> dict:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "system_fingerprint": None}

    def _chunk(self, choice: int, delta: dict, finish: str | None = None, logprobs: dict | None = None) -> str:
        about = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return sse(self._head("chat.completion.chunk") | {"choices": [about]})

    def final(self) -> dict:
        choices = []
        for i, its in enumerate(self._choices):
            message: dict = {
                "role": "assistant",
                "content": its["text"] or (None if its["calls"] else ""),
                "refusal": None,
            }
            message |= {"reasoning_content": its["reasoning"]} if its["reasoning"] else {}
            if its["calls"] and self.asked.as_function:
                message["function_call"] = its["calls"][0]["function"]
            elif its["calls"]:
                message["tool_calls"] = its["calls"]
            logprobs = None if self.asked.top_logprobs is None else {"content": its["logprobs"], "refusal": None}
            choices.append({"index": i, "message": message, "logprobs": logprobs, "finish_reason": its["finish"]})
        return self._head("chat.completion") | {"choices": choices, "usage": usage_of(self.usage)}


def logprob_entry(event: Logprob) -> dict:
    top = [_likely(token, logprob) for token, logprob, _ in event.top]
    return _likely(event.token, event.logprob) | {"top_logprobs": top}


def _likely(token: bytes, logprob: float) -> dict:
    return {"token": token.decode("utf-8", "replace"), "bytes": list(token), "logprob": logprob}


def usage_of(usage: Usage) -> dict:
    """In every word that clients read."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
        "prompt_cache_hit_tokens": usage.cached,
        "prompt_cache_miss_tokens": usage.prompt - usage.cached,
    }
