"""Chat messages as they come in (OpenAI-shaped dicts): validation, and merging into the turns V4 was trained on."""

import json

from v4cli.chat import schemas
from v4cli.chat.special import TASKS
from v4cli.errors import RequestError

ROLES = ("system", "user", "assistant", "tool", "developer", "latest_reminder")
MAX_MESSAGES = 100_000
UNREADABLE = "?"  # name of what stands for a block of calls in which none can be read


def check_messages(messages, where: str = "messages") -> None:
    """RequestError names the first field that is wrong."""
    if not isinstance(messages, list) or len(messages) > MAX_MESSAGES:
        raise RequestError(f"{where} must be a list of messages")
    for i, message in enumerate(messages):
        at = f"{where}[{i}]"
        if not isinstance(message, dict):
            raise RequestError(f"{at} must be an object")
        role = message.get("role")
        if role not in ROLES:
            raise RequestError(f"{at}.role must be one of {', '.join(ROLES)}, not {str(role)[:40]!r}")
        _check_content(message.get("content"), f"{at}.content")
        if role == "developer" and not message.get("content"):
            raise RequestError(f"{at}.content: a developer message must not be empty")
        for key in ("reasoning_content", "tool_call_id", "tool_block", "fault"):
            if not isinstance(message.get(key, ""), str | None):
                raise RequestError(f"{at}.{key} must be text")
        for key in ("prefix", "wo_eos"):
            if not isinstance(message.get(key), bool | None):
                raise RequestError(f"{at}.{key} must be true or false")
        if message.get("task") is not None and message["task"] not in tuple(TASKS):
            raise RequestError(f"{at}.task must be one of {', '.join(TASKS)}")
        if message.get("tools") is not None:
            check_tools(message["tools"], f"{at}.tools")
        if message.get("tool_calls") is not None:
            _check_calls(message["tool_calls"], f"{at}.tool_calls")
        if message.get("sampled") is not None:
            _check_sampled(message["sampled"], f"{at}.sampled")


def _check_content(content, at: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise RequestError(f"{at} must be text or a list of parts")
    for i, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise RequestError(f"{at}[{i}] must be an object with a type")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise RequestError(f"{at}[{i}].text must be text")


def check_tools(tools, at: str = "tools") -> None:
    """A list of OpenAI tool objects with a function each, of a name of its own, its parameters a JSON schema."""
    if not isinstance(tools, list):
        raise RequestError(f"{at} must be a list of tools")
    names = set()
    for i, tool in enumerate(tools):
        function, where = tool.get("function") if isinstance(tool, dict) else None, f"{at}[{i}].function"
        if not isinstance(function, dict) or function.get("name") in (None, ""):
            raise RequestError(f"{where}.name is missing")
        if not isinstance(function["name"], str):
            raise RequestError(f"{where}.name must be text")
        if tool.get("type", "function") != "function":
            raise RequestError(f"{at}[{i}].type must be function")
        where += f" ({schemas.shown(function['name'])})"
        if function["name"] in names:
            raise RequestError(f"{where}: there is another tool of that name")
        names.add(function["name"])
        if not isinstance(function.get("description"), str | None):
            raise RequestError(f"{where}: description must be text")
        if function.get("parameters") is not None:
            schemas.check(function["parameters"], f"{where}: parameters")
        _check_json(function, where)


def _check_calls(calls, at: str) -> None:
    if not isinstance(calls, list):
        raise RequestError(f"{at} must be a list")
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RequestError(f"{at}[{i}].function.name is missing")
        if not isinstance(function.get("arguments", ""), str | dict):
            raise RequestError(f"{at}[{i}].function.arguments must be JSON text or an object")
        for key in ("id", "fault"):
            if not isinstance(call.get(key, ""), str | None):
                raise RequestError(f"{at}[{i}].{key} must be text")


def _check_sampled(sampled, at: str) -> None:
    """{"ids": token ids, "text": theirs, "thinking": whether the header before them was <think>}."""
    if not isinstance(sampled, dict) or not isinstance(sampled.get("thinking"), bool):
        raise RequestError(f"{at} must be an object with ids, text and thinking")
    if not isinstance(sampled.get("text"), str):
        raise RequestError(f"{at}.text must be text")
    ids = sampled.get("ids")
    if not isinstance(ids, list) or not all(type(token) is int and token >= 0 for token in ids):
        raise RequestError(f"{at}.ids must be a list of token ids")


def _check_json(value, at: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        raise RequestError(f"{at}: it cannot be written as JSON") from None


def with_faults(message: dict, faults: list[str]) -> dict:
    """A message in which each call that must not be run says why; so does one whose block holds no call."""
    calls = message.get("tool_calls")
    if not calls:
        return message | ({"fault": faults[0]} if faults else {})
    return message | {"tool_calls": [call | ({"fault": why} if why else {}) for call, why in zip(calls, faults)]}


def calls_in(message: dict) -> list[tuple[str, str, str]]:
    """Name, arguments and fault of each call of a message, for readers; a block without calls stands for one."""
    if message.get("fault"):
        return [(UNREADABLE, (message.get("tool_block") or "").strip(), message["fault"])]
    calls = message.get("tool_calls") or ()
    return [(c["function"]["name"], str(c["function"].get("arguments", "")), c.get("fault") or "") for c in calls]


def last_said(messages: list[dict]) -> dict:
    """The last message of the model; an empty one if there is none."""
    return next((message for message in reversed(messages) if message["role"] == "assistant"), {"content": ""})


def readable_arguments(text: str) -> dict | str:
    """The arguments of a call as an object; if they are none, because they were cut off or are damaged, the text."""

    def once(pairs):
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key is there twice")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def without_ids(message: dict) -> dict:
    """A message for readers and for other tokenizers: without the token ids it was sampled as."""
    return {key: value for key, value in message.items() if key != "sampled"}


def content_text(content) -> str:
    """Text of a message's content; parts are joined by a blank line, other kinds named."""
    if isinstance(content, list):
        texts = [p["text"] if p["type"] == "text" else f"[Unsupported {p['type']}]" for p in content]
        return "\n\n".join(texts)
    return content or ""


def merge_turns(messages: list[dict]) -> list[dict]:
    """Fold tool results and neighbouring user messages into one user message with `blocks`.

    A block is (tool_call_id or None, text). Nothing merges into a message that has a task. Tool results are put
    in the order of the calls of the assistant message before them.
    """
    merged: list[dict] = []
    order: dict[str, int] = {}
    for message in messages:
        role = message["role"]
        if role == "assistant" and message.get("tool_calls"):
            order = {call.get("id"): i for i, call in enumerate(message["tool_calls"]) if call.get("id")}
        if role not in ("user", "tool"):
            merged.append(message)
            continue
        block = (
            message.get("tool_call_id") or "" if role == "tool" else None,
            content_text(message.get("content")),
        )
        last = merged[-1] if merged else None
        if last is None or last["role"] != "user" or last.get("task"):
            last = {"role": "user", "blocks": []}
            merged.append(last)
        last["blocks"].append(block)
        last |= {key: message[key] for key in ("task", "tools", "response_format") if message.get(key)}
        last["order"] = order
    return [_sorted_results(m) if "blocks" in m else m for m in merged]


def _sorted_results(message: dict) -> dict:
    """Tool results in call order, in the slots they came in; text keeps its place."""
    blocks, order = message["blocks"], message["order"]
    results = iter(sorted((b for b in blocks if b[0] is not None), key=lambda b: order.get(b[0], 0)))
    sorted_blocks = [b if b[0] is None else next(results) for b in blocks]
    return message | {"blocks": sorted_blocks}
