"""Responses: what a request says. Nothing is stored here, so every request brings its whole conversation."""

import base64
import binascii
import json
import zlib
from collections.abc import Iterator
from typing import Any

from v4cli.errors import RequestError
from v4cli.serve import asked as fields
from v4cli.serve.asked import Asked, ToolName

SEALED = "v4r1."  # begins our encrypted_content
MOST_SEALED = 16 << 20  # bytes of reasoning in one
LOGPROBS = "message.output_text.logprobs"  # as `include` names them
CALLS = {"function_call": "arguments", "custom_tool_call": "input"}


def read(body: dict) -> Asked:
    """RequestError for what cannot be understood."""
    if body.get("previous_response_id"):
        raise RequestError("previous_response_id: responses are not stored here; send the whole conversation as input")
    instructions = fields.text_of(body.get("instructions"), "instructions")
    messages = [{"role": "system", "content": instructions}] if instructions else []
    messages += _conversation(body.get("input"))
    tools, names = _tools(body)
    tools, wanted = fields.allowed(tools, body.get("tool_choice"))
    choice, named = _choice(wanted)
    reasoning, text = body.get("reasoning"), body.get("text")
    thinking, effort = fields.effort_of(reasoning.get("effort") if isinstance(reasoning, dict) else None)
    return Asked(
        model=fields.model_of(body),
        messages=tuple(messages),
        tools=tools,
        names=names,
        choice=choice,
        named=named,
        one_call=body.get("parallel_tool_calls") is False,
        thinking=thinking,
        effort=effort,
        max_tokens=fields.limit(body, "max_output_tokens"),
        top_logprobs=_top_logprobs(body),
        format=fields.format_of(text.get("format") if isinstance(text, dict) else None, "text.format"),
        stream=fields.boolean(body, "stream"),
        **fields.sampling(body),
    )


def _top_logprobs(body: dict) -> int | None:
    """Wanted if they are to be included, or a number of them is given."""
    include, most = body.get("include"), fields.integer(body, "top_logprobs")
    if not most and not (isinstance(include, list) and LOGPROBS in include):
        return None
    return min(max(most or 0, 0), fields.MOST_TOP_LOGPROBS)


def _conversation(given: Any) -> list[dict]:
    """Messages of ours: what the model said between two inputs is one of them."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict] = []
    for i, item in enumerate(fields.listed(given, "input")):
        for part in _parts(item, f"input[{i}]"):
            last = messages[-1] if messages else None
            if last and part["role"] == last["role"] == "assistant":
                _join(last, part)
            else:
                messages.append(part)
    if not messages:
        raise RequestError("input must not be empty")
    return messages


def _join(last: dict, part: dict) -> None:
    """A message of the assistant goes on."""
    for key in ("content", "reasoning_content"):
        if part.get(key):
            last[key] = "\n\n".join(filter(None, (last.get(key), part[key])))
    if part.get("tool_calls"):
        last["tool_calls"] = last.get("tool_calls", []) + part["tool_calls"]


def _parts(item: dict, at: str) -> Iterator[dict]:
    """What an item says, as a message or none; of kinds that are not known, nothing."""
    kind, role = item.get("type"), item.get("role")
    if not isinstance(kind, str | None):
        raise RequestError(f"{at}.type must be text")
    if kind in (None, "message"):
        if role not in ("user", "system", "developer", "assistant"):
            raise RequestError(f"{at}.role must be user, system, developer or assistant, not {str(role)[:40]!r}")
        lenient = role == "assistant"
        yield {"role": role, "content": fields.text_of(item.get("content"), f"{at}.content", lenient)}
    elif kind == "reasoning":
        yield {"role": "assistant", "content": "", "reasoning_content": _reasoning(item)}
    elif kind in CALLS:
        yield {"role": "assistant", "content": "", "tool_calls": [_call(item, at)]}
    elif kind in ("function_call_output", "custom_tool_call_output"):
        output = fields.text_of(item.get("output"), f"{at}.output", lenient=True)
        yield {"role": "tool", "tool_call_id": str(item.get("call_id") or ""), "content": output}
    elif kind == "agent_message":
        yield {"role": "user", "content": fields.text_of(item.get("content"), f"{at}.content", lenient=True)}


def _reasoning(item: dict) -> str:
    for key in ("content", "summary"):
        parts = item.get(key)
        texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        if said := "".join(text for text in texts if isinstance(text, str)):
            return said
    sealed = item.get("encrypted_content")
    return unsealed(sealed) if isinstance(sealed, str) else ""


def sealed(text: str) -> str:
    """Reasoning as an opaque text that clients send back."""
    return SEALED + base64.urlsafe_b64encode(zlib.compress(text.encode("utf-8", "replace"))).decode()


def unsealed(text: str) -> str:
    """What was sealed here; nothing if it was sealed elsewhere."""
    if not text.startswith(SEALED):
        return ""
    try:
        data = base64.urlsafe_b64decode(text.removeprefix(SEALED))
        return zlib.decompressobj().decompress(data, MOST_SEALED).decode()
    except (binascii.Error, zlib.error, ValueError):
        return ""


def _call(item: dict, at: str) -> dict:
    if not isinstance(item.get("name"), str):
        raise RequestError(f"{at}.name is missing")
    arguments = item.get(CALLS[item["type"]])
    if item["type"] == "custom_tool_call":
        arguments = fields.custom_arguments(arguments)
    elif not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    name = fields.joined(item.get("namespace"), item["name"])
    call_id = str(item.get("call_id") or item.get("id") or "")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _tools(body: dict) -> tuple[tuple[dict, ...], dict[str, ToolName]]:
    """Those that the client runs, by what the model calls them; tools of a server are not run here."""
    tools, names = [], {}
    for i, tool in enumerate(fields.listed(body.get("tools"), "tools")):
        space = tool.get("name") if tool.get("type") == "namespace" else None
        if not isinstance(space, str | None):
            raise RequestError(f"tools[{i}].name must be text")
        inner = fields.listed(tool.get("tools"), f"tools[{i}].tools") if space else [tool]
        for one in inner:
            kind = one.get("type", "function")
            if kind not in ("function", "custom"):
                continue
            about = one.get("function") if isinstance(one.get("function"), dict) else one
            name = about.get("name")
            parameters = fields.CUSTOM if kind == "custom" else about.get("parameters")
            made = fields.function(name, fields.description(about), parameters, f"tools[{i}]")
            made["function"]["name"] = fields.joined(space, name)
            names[made["function"]["name"]] = ToolName(name, space, kind == "custom")
            tools.append(made)
    return fields.unique(tools), names


def _choice(wanted: Any) -> tuple[str, str | None]:
    if isinstance(wanted, dict):
        if wanted.get("type") in ("function", "custom"):
            if not isinstance(wanted.get("name"), str):
                raise RequestError("tool_choice.name is missing")
            return "auto", fields.joined(wanted.get("namespace"), wanted["name"])
        wanted = wanted.get("mode")
    return (wanted if wanted in ("none", "required") else "auto"), None
