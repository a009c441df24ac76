"""What a client asks for, in no dialect; and how fields of a request are read: permissive, but never misunderstood."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from v4cli.chat.formats import ANY_OBJECT
from v4cli.chat.messages import content_text
from v4cli.engine.sampler import MOST_TEMPERATURE
from v4cli.errors import RequestError
from v4cli.options import Format

LEAST_TOP_P = 1e-6
MOST_NUMBER = 1e300  # whole numbers may be larger than any float
MOST_TOP_LOGPROBS = 20
MOST_CHOICES = 16
MOST_PROMPTS = 128  # of a request
MOST_STOPS = 64  # each is looked for after every token
TEXTS = ("text", "input_text", "output_text")  # kinds of parts
CUSTOM = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}  # of custom tools
EFFORTS = {  # as clients say it, as requests.py does
    "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max",
}  # fmt: skip


@dataclass(frozen=True)
class ToolName:
    """How a client knows a tool that the model knows by another name, or as a function."""

    name: str
    namespace: str | None = None
    custom: bool = False  # its one argument is text


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request. Messages are those of chat/messages.py; `prompt` are token ids, or text, in place of them; `others`:
    the same for further prompts."""

    model: str
    messages: tuple[dict, ...] = ()
    prompt: tuple[int, ...] | str | None = None
    others: tuple["Asked", ...] = ()
    tools: tuple[dict, ...] = ()
    names: Mapping[str, ToolName] = field(default_factory=dict)
    choice: str = "auto"  # auto, none, required,
    named: str | None = None  # or this tool
    one_call: bool = False
    as_function: bool = False  # a call is told as it was before there were tools
    thinking: bool = True
    effort: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    format: Format | None = None
    n: int = 1
    top_logprobs: int | None = None  # None: no log-probabilities
    stream: bool = False
    echo: bool = False
    token_ids: bool = False  # every sampled token is told, those that are no text too
    names_are_ids: bool = False  # where tokens are named, by "token_id:" and their id
    grammar: str | None = None  # of the answer, in llguidance's Lark


def sampling(body: dict) -> dict[str, Any]:
    """The fields of a request that say how tokens are drawn; bounds are moved into, not complained about."""
    temperature, top_p = number(body, "temperature"), number(body, "top_p")
    seed, top_k = integer(body, "seed"), integer(body, "top_k")
    return {
        "temperature": None if temperature is None else min(max(temperature, 0.0), MOST_TEMPERATURE),
        "top_p": None if top_p is None else min(max(top_p, LEAST_TOP_P), 1.0),
        "top_k": max(top_k or 0, 0),
        "min_p": min(max(number(body, "min_p") or 0.0, 0.0), 0.99),
        "seed": None if seed is None else seed % 2**63,
    }


def number(body: dict, name: str) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number")
    return float(min(max(value, -MOST_NUMBER), MOST_NUMBER))


def integer(body: dict, name: str, least: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be a whole number")
    if least is not None and value < least:
        raise RequestError(f"{name} must be at least {least}")
    return value


def boolean(body: dict, name: str) -> bool:
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise RequestError(f"{name} must be true or false")
    return bool(value)


def limit(body: dict, *names: str) -> int | None:
    """The first limit of tokens that is given."""
    values = (integer(body, name, least=1) for name in names)
    return next((value for value in values if value is not None), None)


def stops(value: Any, name: str = "stop") -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{name} must be text or a list of texts")
    if len(texts) > MOST_STOPS:
        raise RequestError(f"{name} must hold {MOST_STOPS} texts at most")
    return tuple(filter(None, texts))


def model_of(body: dict) -> str:
    """The model that is asked for; empty if none is."""
    value = body.get("model")
    if not isinstance(value, str | None):
        raise RequestError("model must be text")
    return value or ""


def effort_of(value: Any) -> tuple[bool, str | None]:
    """Whether an effort means thinking at all, and which level it is; of a word that nobody knows, the usual."""
    return value not in ("none", "off"), EFFORTS.get(value) if isinstance(value, str) else None


def listed(value: Any, name: str) -> list:
    """A list of objects; none if it is missing."""
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RequestError(f"{name} must be a list of objects")
    return value


def text_of(content: Any, where: str, lenient: bool = False) -> str:
    """The text of a message's content: text, or parts, in any dialect's words. `lenient`: what is no text is named in
    the text; else an image or a file is refused, which the model cannot see."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise RequestError(f"{where} must be text or a list of parts")
    parts = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, dict):
            raise RequestError(f"{where}[{i}] must be an object")
        text = part.get("text", part.get("refusal"))
        if isinstance(text, str):
            parts.append({"type": "text", "text": text})
        elif lenient:
            parts.append({"type": "text", "text": f"[{part.get('type')} left out]"})
        elif part.get("type") in TEXTS:
            raise RequestError(f"{where}[{i}].text must be text")
        else:
            raise RequestError(f"{where}[{i}]: this model reads text only, not {str(part.get('type'))[:40]}")
    return content_text(parts)


def unique(tools: Iterable[dict]) -> tuple[dict, ...]:
    """Tools without those of a name that was there before."""
    return tuple({tool["function"]["name"]: tool for tool in reversed(list(tools))}.values())[::-1]


def joined(namespace: Any, name: str) -> str:
    """What the model calls a tool of a namespace."""
    return f"{namespace}__{name}" if isinstance(namespace, str) and namespace else name


def allowed(tools: tuple[dict, ...], choice: Any) -> tuple[tuple[dict, ...], Any]:
    """The tools that a choice of kind allowed_tools leaves, and the choice among them; of other kinds, both as they
    are. RequestError."""
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return tools, choice
    about = choice["allowed_tools"] if isinstance(choice.get("allowed_tools"), dict) else choice
    names = set()
    for tool in listed(about.get("tools"), "tool_choice.tools"):
        its = next((tool[kind] for kind in ("function", "custom") if isinstance(tool.get(kind), dict)), tool)
        if isinstance(its.get("name"), str):
            names.add(joined(tool.get("namespace"), its["name"]))
    left = tuple(tool for tool in tools if tool["function"]["name"] in names)
    if about.get("mode") == "required" and not left:
        raise RequestError("tool_choice.tools names none of tools")
    return left, about.get("mode")


def function(name: Any, description: Any, parameters: Any, where: str) -> dict:
    """A tool as the encoder takes it."""
    if not isinstance(name, str) or not name:
        raise RequestError(f"{where}: its name is missing")
    about = {"name": name, "description": description if isinstance(description, str) else ""}
    return {"type": "function", "function": about | {"parameters": parameters or {}}}


def description(tool: dict) -> str:
    """Of a tool; of one whose input is text by a grammar, with the grammar."""
    text, form = tool.get("description") or "", tool.get("format")
    form = form["grammar"] if isinstance(form, dict) and isinstance(form.get("grammar"), dict) else form
    if isinstance(form, dict) and isinstance(form.get("definition"), str):
        text = f"{text}\n\nIts input follows this {form.get('syntax') or ''} grammar:\n{form['definition']}"
    return text


def custom_arguments(text: Any) -> str:
    """The arguments of a call of a custom tool, as the model writes them."""
    return json.dumps({"input": text if isinstance(text, str) else ""}, ensure_ascii=False)


def custom_input(arguments: str) -> str:
    """The text that a custom tool is called with."""
    value = json.loads(arguments).get("input")
    return value if isinstance(value, str) else arguments


def format_of(wanted: Any, name: str, strict: bool = False) -> Format | None:
    """What a format of the answer means; None: text. `strict`: unless it says otherwise."""
    if wanted is None:
        return None
    if not isinstance(wanted, dict):
        raise RequestError(f"{name} must be an object")
    kind = wanted.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return Format(ANY_OBJECT, name)
    if kind != "json_schema":
        raise RequestError(f"{name}.type must be text, json_object or json_schema")
    if "schema" not in wanted and "json_schema" in wanted:
        wanted, name = wanted["json_schema"], f"{name}.json_schema"
    if not isinstance(wanted, dict) or not isinstance(wanted.get("schema"), dict):
        raise RequestError(f"{name}.schema must be an object")
    strict = strict if wanted.get("strict") is None else boolean(wanted, "strict")
    return Format(wanted["schema"], f"{name}.schema", strict)
