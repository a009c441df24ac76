"""An API-shaped chat request to a prompt and its generation defaults, by contract (spec 5.2, 5.6).

`april`: the April encoder with tools and effort given as in an API request. `0731`: what the 0731 and 0813
checkpoints were released with: three effort texts, system messages hoisted, JSON modes, forced tool calls.
"""

from dataclasses import dataclass

from v4cli.chat import dsml
from v4cli.chat.encoding import EFFORTS, RESPONSE_FORMAT, render
from v4cli.chat.messages import check_messages, check_tools, content_text
from v4cli.chat.schemas import shown
from v4cli.chat.special import Prompt, PromptBuilder
from v4cli.engine.sampler import Sampling
from v4cli.errors import RequestError, UsageError

CONTRACTS = ("april", "0731")
# Of a request, those that have a say in the prompt or in the answer, and those that are only checked.
FIELDS = {
    "max_tokens", "messages", "model", "n", "reasoning_effort", "response_format", "stop", "stream", "temperature",
    "thinking", "tool_choice", "tools", "top_p",
}  # fmt: skip
EFFORT_ALIASES = {
    "minimal": "low",
    "low": "low",
    "medium": "high",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
}
JSON_OBJECT = (
    "\n\nYou are a helpful assistant designed to output JSON.\n## Response Format:\n\nReply with JSON object ONLY."
)


@dataclass(frozen=True)
class EncodedRequest:
    """A prompt with what the contract says about generating after it."""

    prompt: Prompt
    thinking: bool
    effort: str | None
    temperature: float
    top_p: float
    default_max_tokens: int
    parse_tool_calls: bool
    starts_in_tool_calls: bool


def encode_request(body: dict, contract: str, keep_thinking: bool = False) -> EncodedRequest:
    """Render a request body {"messages", "tools"?, "thinking"?, "reasoning_effort"?, ...}. RequestError if invalid.

    `keep_thinking`: that of earlier turns stays even without tools, as the cache has it.
    """
    if contract not in CONTRACTS:
        raise RequestError(f"contract must be one of {', '.join(CONTRACTS)}, not {str(contract)[:40]!r}")
    if not isinstance(body, dict) or "messages" not in body:
        raise RequestError("the request must be an object with messages")
    check_messages(body["messages"])
    if not body["messages"]:
        raise RequestError("messages must not be empty")
    _check_ignored(body)
    thinking, effort = _thinking(body, contract)
    if _is_reasoning_prefix(body["messages"]) and not thinking:
        raise RequestError("a message of reasoning only can be a prefix with thinking only")
    forced = _forced(body, thinking)
    tools = _tools(body)
    sampling = _sampling(body, top_p=0.95 if tools and thinking and contract == "0731" else 1.0)
    messages = _hoist_system(body["messages"], tools, _format_text(body))
    prompt = render(
        _open_prefix(messages),
        thinking,
        drop_thinking=not (tools or keep_thinking),
        prefix=EFFORTS[contract][effort],
        empty_line=contract == "april",
    )
    if forced or _is_reasoning_prefix(messages):
        prompt = _continue(prompt, messages, forced)
    return EncodedRequest(
        prompt,
        thinking,
        effort,
        float(sampling.temperature),
        float(sampling.top_p),
        default_max_tokens=8192 if not thinking else 131072 if effort == "max" else 65536,
        parse_tool_calls=bool(tools),
        starts_in_tool_calls=forced,
    )


def _check_ignored(body: dict) -> None:
    """What does not change the prompt must still be what it is meant to be."""
    limit = body.get("max_tokens")
    if isinstance(limit, bool) or not isinstance(limit, int | None) or (limit is not None and limit < 1):
        raise RequestError("max_tokens must be a whole number, at least 1")
    stop = body.get("stop")
    texts = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise RequestError("stop must be text or a list of texts, none of them empty")
    if not isinstance(body.get("stream"), bool | None):
        raise RequestError("stream must be true or false")
    if isinstance(body.get("n"), bool) or body.get("n") not in (None, 1):
        raise RequestError("n must be 1: there is one answer")
    for i, message in enumerate(body["messages"]):
        if message.get("prefix") and (message["role"] != "assistant" or i + 1 < len(body["messages"])):
            raise RequestError(f"messages[{i}].prefix: only the last message can be one, and only the assistant's")


def _tools(body: dict) -> list[dict]:
    """Tool schemas in the order and with the keys the model is shown: all, the one it must call, or none."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    tools = [] if tools is None else tools
    check_tools(tools)
    if choice == "none":
        return []
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        tools = [tool for tool in tools if tool["function"]["name"] == name]
        if not tools:
            raise RequestError(f"tool_choice: there is no function {shown(name)!r} in tools")
    elif choice == "required" and not tools:
        raise RequestError("tool_choice asks for a tool, but there are no tools")
    normal = []
    for tool in tools:
        function = tool["function"]
        schema = {"name": function["name"], "description": function.get("description") or ""}
        schema["parameters"] = {} if function.get("parameters") is None else function["parameters"]
        normal.append({"type": "function", "function": schema})
    return normal


def _thinking(body: dict, contract: str) -> tuple[bool, str | None]:
    """Whether to think, and the effort level."""
    asked, effort = body.get("thinking"), body.get("reasoning_effort")
    mode = True if asked is None else asked
    if not isinstance(mode, bool):
        mode = mode.get("type") if isinstance(mode, dict) else None
        if mode not in ("enabled", "disabled"):
            raise RequestError('thinking must be {"type": "enabled"} or {"type": "disabled"}, or true or false')
    efforts = ("none", *EFFORT_ALIASES)
    if effort is not None and (not isinstance(effort, str) or effort not in efforts):
        raise RequestError(f"reasoning_effort must be one of {', '.join(efforts)}")
    if mode in (False, "disabled"):
        return False, None
    if effort == "none":
        if asked is not None:
            raise RequestError("reasoning_effort none contradicts thinking", "drop one of them")
        return False, None
    effort = EFFORT_ALIASES[effort or "high"]
    return True, effort if effort in EFFORTS[contract] else "high"


def _forced(body: dict, thinking: bool) -> bool:
    """Whether the answer must start with a tool call."""
    choice = body.get("tool_choice")
    if choice is None or choice in ("auto", "none"):
        return False
    if isinstance(choice, dict):
        function = choice.get("function")
        if choice.get("type") != "function" or not isinstance(function, dict):
            raise RequestError('tool_choice must be {"type": "function", "function": {"name": "…"}}')
        if not isinstance(function.get("name"), str):
            raise RequestError("tool_choice.function.name must be text")
    elif choice != "required":
        raise RequestError("tool_choice must be none, auto, required or a function")
    if thinking:
        raise RequestError("thinking mode does not support this tool_choice", 'set "thinking" to {"type": "disabled"}')
    return True


def _format_text(body: dict) -> str:
    """What response_format adds to the system text."""
    wanted = body.get("response_format")
    if wanted is None:
        return ""
    if not isinstance(wanted, dict) or wanted.get("type") not in ("text", "json_object", "json_schema"):
        raise RequestError("response_format.type must be text, json_object or json_schema")
    if wanted["type"] == "text":
        return ""
    if wanted["type"] == "json_object":
        said = " ".join(content_text(m.get("content")) for m in body["messages"])
        if "json" not in said.lower():
            raise RequestError('response_format json_object: the word "json" must occur in the messages')
        return JSON_OBJECT
    schema = wanted.get("json_schema")
    if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
        raise RequestError("response_format.json_schema.schema must be an object")
    return "\n\n" + RESPONSE_FORMAT + dsml.to_json(schema["schema"])


def _hoist_system(messages: list[dict], tools: list[dict], format_text: str) -> list[dict]:
    """All system text first, with the tools and the response format attached to it."""
    texts = [content_text(m.get("content")) for m in messages if m["role"] == "system"]
    others = [m for m in messages if m["role"] != "system"]
    if not texts and not tools and not format_text:
        return others
    system = {"role": "system", "content": "\n\n".join(texts) + ("" if tools else format_text)}
    if not tools:
        return [system, *others]
    after = [{"role": "system", "content": format_text}] if format_text else []
    return [system | {"tools": tools}, *after, *others]


def _open_prefix(messages: list[dict]) -> list[dict]:
    """A last assistant message marked `prefix` is left open, to be continued."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or not last.get("prefix"):
        return messages
    if _is_reasoning_prefix(messages):
        return messages[:-1]
    return [*messages[:-1], last | {"wo_eos": True}]


def _is_reasoning_prefix(messages: list[dict]) -> bool:
    last = messages[-1] if messages else {}
    return bool(last.get("prefix") and last.get("reasoning_content") and not last.get("content"))


def _continue(prompt: Prompt, messages: list[dict], forced: bool) -> Prompt:
    """The prompt with the start of the answer written by us."""
    out = PromptBuilder(prompt)
    if forced:
        out.markup(f"\n\n{dsml.CALLS_OPEN}\n")
    else:
        out.text(messages[-1]["reasoning_content"])
    return out.build()


def _sampling(body: dict, top_p: float) -> Sampling:
    """The fields of it that a request may have; `top_p`: if it does not say."""
    values = {"temperature": 1.0, "top_p": top_p}
    for key in values:
        value = body.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise RequestError(f"{key} must be a number")
        values[key] = values[key] if value is None else value
    try:
        return Sampling(**values)
    except UsageError as error:
        raise RequestError(str(error)) from None
