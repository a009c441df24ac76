"""What a tool is: a schema the model sees, a function that does it, and what it may touch."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from v4cli.chat import schemas
from v4cli.chat.messages import readable_arguments


class Kind(StrEnum):
    """What a tool can do at worst; what is asked before it runs depends on that."""

    READ = "read"  # looks at files of the workspace
    EDIT = "edit"  # changes files of the workspace
    RUN = "run"  # runs programs, in the sandbox where there is one
    NETWORK = "network"  # talks to other machines, or to programs outside the sandbox


class ToolError(Exception):
    """A call failed; the text tells the model what to do about it."""


@dataclass(frozen=True)
class Context:
    """Where and how a call runs."""

    folder: Path  # the workspace; paths of the model are relative to it and may not leave it
    output: Callable[[str], None] = lambda text: None  # shows output while the call runs
    cancelled: Callable[[], bool] = lambda: False  # the user wants it to end
    disposable: bool = False  # the workspace is removed before anybody works in it


@dataclass(frozen=True)
class Tool:
    """`run(arguments, context)` gives the text the model gets, or raises ToolError.

    `preview(arguments, context)` is what the user is asked about: the exact command, or a diff; without
    it, the arguments.
    """

    name: str
    description: str
    parameters: dict  # JSON schema of the arguments
    kind: Kind
    run: Callable[[dict, Context], str]
    preview: Callable[[dict, Context], str] | None = None

    @property
    def schema(self) -> dict:
        """As the model is told about it."""
        about = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": about}


@dataclass(frozen=True)
class Call:
    """A tool call of the model. `fault`: why it must not be run; empty if it may. `text`: its arguments as sampled."""

    id: str
    name: str
    arguments: dict
    fault: str = ""
    tool: Tool | None = field(default=None, compare=False)
    text: str = field(default="", compare=False)

    @property
    def given(self) -> dict | str:
        """Its arguments for whoever is told about it: of one that must not be run, as they came, whole or not."""
        return readable_arguments(self.text) if self.fault else self.arguments


@dataclass(frozen=True)
class Decision:
    """Whether a call runs; if not, `reason` is for the model."""

    allowed: bool
    reason: str = ""


def parameters(required: Iterable[str] = (), **properties: dict | str) -> dict:
    """A JSON schema: each property as a schema, or as the description of a string."""
    schemas = {
        name: {"type": "string", "description": about} if isinstance(about, str) else about
        for name, about in properties.items()
    }
    return {"type": "object", "properties": schemas, "required": list(required)}


def argument(text: str) -> str:
    """A text that the system takes as a path or an argument, or ToolError."""
    try:
        if "\0" not in text and text.encode():
            return text
    except UnicodeEncodeError:
        pass
    raise ToolError("a path, pattern or command cannot be empty, and cannot contain NUL or half of a character")


def printable(name: str) -> str:
    """A file name on one line; one with other characters as JSON spells it, so that it can be given back."""
    return name if name.isprintable() else json.dumps(name)


class Toolbox:
    """The tools of a conversation, by name."""

    def __init__(self, tools: Iterable[Tool] = ()):
        self.tools = {tool.name: tool for tool in tools}

    @property
    def schemas(self) -> list[dict]:
        """As the model is told about them."""
        return [tool.schema for tool in self.tools.values()]

    def call(self, message_call: dict, fault: str = "") -> Call:
        """One of a message's tool_calls as something that can be run, or with what is wrong with it."""
        name, text = message_call["function"]["name"], message_call["function"]["arguments"]
        tool = self.tools.get(name)
        try:
            arguments = json.loads(text)
            json.dumps(arguments, ensure_ascii=False).encode()  # halves of characters go nowhere
        except (ValueError, RecursionError):
            arguments, fault = {}, fault or "its arguments are not valid JSON"
        if not isinstance(arguments, dict):
            arguments, fault = {}, fault or "its arguments are not an object"
        if tool is None:
            fault = fault or f"there is no tool {name!r}; there are {', '.join(self.tools) or 'none'}"
        else:
            fault = fault or _check(arguments, tool.parameters)
        return Call(message_call.get("id", ""), name, arguments, fault, tool, text)


TYPES = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,),
    "array": (list,), "object": (dict,), "null": (type(None),),
}  # fmt: skip


def _check(arguments: dict, schema: dict) -> str:
    """What is wrong with arguments by the parameters of their schema and the types that those name; numbers and truth
    values that came as text are converted in place."""
    has = schemas.parameters(schema)
    missing = [name for name in has.required if name not in arguments]
    if missing:
        return f"parameter {missing[0]} is missing"
    for name, value in arguments.items():
        if name not in has.declared:
            if has.declared and has.others is False:
                return f"there is no parameter {name!r}; there are {', '.join(has.declared)}"
            continue
        kinds = schemas.kinds(has.declared[name])
        if kinds and isinstance(value, str) and "string" not in kinds:
            value = arguments[name] = _converted(value)
        wanted = sum((TYPES[kind] for kind in kinds), ())
        is_flag = isinstance(value, bool) and bool not in wanted
        if wanted and (is_flag or not isinstance(value, wanted)):
            return f"parameter {name} must be {' or '.join(kinds)}"
    return ""


def _converted(text: str):
    """The JSON value a text spells, or the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
