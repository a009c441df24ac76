"""The table of options: what `v4 run`, `v4 chat` and `v4 rollout` may be told, each option once.

An entry is a field of a frozen dataclass: its type, and by `option` its default, what it means, its flags, the values
it may have, whether it is a setting and whether /set may change it. Each concern (how to answer, what may run, ...) has
one dataclass, which is passed on as it is to whoever is concerned; RunOptions, ChatOptions and RolloutOptions say what
a command has. All else is made from this: Typer's parameters and help (cli/parameters.py), settings and V4_* variables
(settings.py), /set (repl/actions.py), the table in README.md (make options).
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

from v4cli import paths
from v4cli.errors import UsageError
from v4cli.files import argument

MAX_ROUNDS = 50  # turns of the model per question, unless told


WANTED = {
    str: 'a text, like "..."',
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Path: 'a folder, like "/data/kv"',
}
BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


class Mode(StrEnum):
    """What runs without a question."""

    ASK = "ask"  # reading
    EDITS = "edits"  # reading and editing
    PLAN = "plan"  # reading; nothing else is even asked about
    ALL = "all"  # everything


class Switch(NamedTuple):
    """A flag that stands for a value of an option which has no flag of its own."""

    flag: str
    value: str
    help: str


class Valid(NamedTuple):
    """Which numbers an option may have, and how that is said: "above 0 and at most 1"."""

    test: Callable[[float], bool]
    words: str


class Option(NamedTuple):
    """An entry of the table.

    `setting`: "project" if a project's file may set it too, which therefore must not let anything run; "user" for the
    user's own file only; "chat" for those that only `v4 chat` obeys, as a script says itself what may run; "" for none.
    Every setting NAME has the variable V4_NAME. `variable`: of an option that obeys it in all commands.
    """

    name: str  # of the setting, and of the parameter
    field: str  # of the dataclass
    kind: type  # of a value: str, bool, int, float or Path
    many: bool  # it may be given more than once
    default: Any  # None: whatever suits; MISSING: it must be given
    help: str
    flags: tuple[str, ...]  # none of an argument, and of an option with switches
    metavar: str | None = None
    choices: tuple[str, ...] = ()  # the only values, if any are named
    least: float | None = None  # bounds that the help shows
    most: float | None = None
    valid: Valid | None = None
    switches: tuple[Switch, ...] = ()
    argument: bool = False
    shown_default: str | None = None
    setting: str = ""
    variable: str | None = None
    live: bool = False  # /set may change it, which holds from the next answer on
    text: bool = False  # what is given must be text, as it is shown to the model
    gives: Callable[[Any], dict[str, Any]] | None = None  # of a value: the fields it stands for, this one first

    @property
    def flag(self) -> str:
        """Its name for people, as it is typed: the longest flag."""
        return max(self.flags, key=len, default=self.name)

    def values(self, value: Any) -> dict[str, Any]:
        """The fields of the dataclass that `value` stands for."""
        return self.gives(value) if self.gives else {self.field: value}

    @property
    def expected(self) -> str:
        """What a right value is."""
        return "one of " + ", ".join(self.choices) if self.choices else WANTED[self.kind]

    def parsed(self, text: str) -> Any:
        """The value that a text means. ValueError if it is of another kind."""
        if self.kind is bool:
            if text.lower() not in BOOLEANS:
                raise ValueError(text)
            return BOOLEANS[text.lower()]
        value = self.kind(text) if self.kind in (int, float) else text
        return (value,) if self.many else value

    def fault(self, value: Any) -> str:
        """What a value must be that is none; empty if it is right."""
        if value is None or self.many:
            return ""
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        if self.valid and not self.valid.test(value):
            return f"must be {self.valid.words}"
        if self.least is not None and not value >= self.least:
            return f"must be at least {self.least}"
        if self.most is not None and not value <= self.most:
            return f"must be at most {self.most}"
        return ""


def option(help: str, *flags: str, default: Any = None, **more: Any) -> Any:
    """An entry, as a field: its name is that of the field unless it is given, and its flag --NAME."""
    if not (flags or more.get("switches") or more.get("argument")):
        flags = ("",)
    about = {"default": default, "help": help, "flags": flags, **more}
    initial = next(iter(more["gives"](default).values())) if "gives" in more else default
    return field(default=initial, metadata={"option": about})


def part(**changes: dict[str, Any] | None) -> Any:
    """A concern, as a field: all of its options, some changed for this command (by name), or left out if None."""
    return field(metadata={"part": changes})


# -- concerns --------------------------------------------------------------------------------------------------


def _thinking(value: str) -> dict[str, Any]:
    return {"thinking": value != "off", "effort": "max" if value == "max" else None}


@dataclass(frozen=True)
class Options:
    """How to answer. None means: what the release and its generation_config say. UsageError for what cannot be."""

    thinking: bool = option(
        "Think before answering: off, on, or max for the highest effort.", default="on", name="think", kind=str,
        choices=("off", "on", "max"), setting="project", gives=_thinking,
        switches=(
            Switch("--think", "on", "Think before answering (default of v4 chat)."),
            Switch("--no-think", "off", "Answer directly (default of v4 run and v4 rollout)."),
            Switch("--think-max", "max", "Think with the highest effort."),
        ),
    )  # fmt: skip
    effort: str | None = None  # of thinking: "max", or what is usual
    temperature: float | None = option(
        "Temperature; 0 is greedy. Default: the release's.", name="temp", setting="project", live=True,
        valid=Valid(lambda value: 0 <= value <= 100, "between 0 and 100"),
    )  # fmt: skip
    top_p: float | None = option(
        "Nucleus sampling. Default: the release's.", setting="project", live=True,
        valid=Valid(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    )  # fmt: skip
    top_k: int = option(
        "Keep the k likeliest tokens; 0 is off.", default=0, setting="project", live=True,
        valid=Valid(lambda value: value >= 0, "0 (off) or positive"),
    )  # fmt: skip
    min_p: float = option(
        "Drop tokens below this share of the likeliest; 0 is off.", default=0.0, setting="project", live=True,
        valid=Valid(lambda value: 0 <= value < 1, "at least 0 and below 1"),
    )  # fmt: skip
    seed: int | None = option(
        "Same seed, same answer.", live=True, valid=Valid(lambda value: 0 <= value < 2**63, "between 0 and 2^63 - 1")
    )
    max_tokens: int | None = option(
        "Most tokens of an answer.", "--max-tokens", "-n", least=1, setting="project", live=True
    )
    stop: tuple[str, ...] = option("End the answer at this text; may be repeated.", default=(), text=True, live=True)
    constrain: bool = option(
        "Let a grammar keep tool calls well-formed (needs v4cli[grammar]).", default=False, setting="project", live=True
    )

    def __post_init__(self) -> None:
        for entry in entries(Options):
            if not entry.gives and (fault := entry.fault(getattr(self, entry.field))):
                raise UsageError(f"{entry.field} {fault}")
        if self.constrain and importlib.util.find_spec("llguidance") is None:
            raise UsageError("--constrain needs llguidance", "pip install 'v4cli[grammar]'")


@dataclass(frozen=True)
class ToolUse:
    """Which tools the model has, and which of its calls run."""

    tools: str | None = option("Tools the model may call.", setting="chat")
    approve: str | None = option(
        "Calls that run without a question: ask (of tools that read; default), edits, plan (reading, no more), all.",
        choices=tuple(Mode), setting="chat",
    )  # fmt: skip
    network: bool = option("Let what the model runs in the sandbox use the network.", default=False, setting="chat")
    max_rounds: int | None = option(f"Most turns of the model for a question. Default: {MAX_ROUNDS}.", least=1)


@dataclass(frozen=True)
class Display:
    """What is shown beside the answer."""

    hide_thinking: bool = option("Do not print the thinking.", default=False, setting="project")
    stats: bool = option("Print counts and speeds after an answer, to stderr.", default=False, setting="project")


@dataclass(frozen=True)
class Loading:
    """How a model is loaded, and where its cache is."""

    backend: str | None = option(
        "What computes: cpu (int8 kernels; default) or reference (plain torch).", choices=("cpu", "reference"),
        setting="user",
    )  # fmt: skip
    numerics: str | None = option(
        "Of the reference: exact (fp32; default) or official (simulated quantization).", choices=("exact", "official")
    )
    ram: str | None = option(
        "Memory to use, like 12G; experts that do not fit are read on demand.", setting="user", variable="V4_RAM"
    )
    kv_dir: Path | None = option(
        "Keep the KV cache in a file in this folder, so that it may exceed the RAM.", setting="user",
        variable="V4_KV_DIR",
    )  # fmt: skip
    no_cache: bool = option("Neither use nor store computed prefixes (v4 sessions).", default=False, setting="user")


def _model(**more: Any) -> Any:
    shown = "the one of v4 config; the pulled model if exactly one is complete; nano"
    return option("A name from v4 ls, or a folder.", "--model", "-m", setting="user", shown_default=shown, **more)


def _system() -> Any:
    return option("System prompt.", "--system", "-s", default="", setting="user", text=True)


def _json() -> Any:
    return option("Print one JSON object.", "--json", default=False)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What all rollouts of an output folder have in common."""

    model: str = _model(default=MISSING)
    tool_use: ToolUse = part(
        tools={"default": "all", "help": "nano, read, edit, all, or names. A task may say otherwise."},
        approve=None, network=None,
        max_rounds={"default": MAX_ROUNDS, "help": "Most turns of the model in a rollout."},
    )  # fmt: skip
    timeout_s: float = option(
        "Seconds a rollout may take, and its check again.", name="timeout", default=600.0, least=0.1
    )
    answer: Options = part(
        think={"default": "off"},
        max_tokens={"flags": ("--max-tokens",), "help": "Most tokens of a turn."},
        seed={"default": 0, "help": "Every rollout's seed is made from it, its task and its number."},
    )


# -- commands --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `v4 run` is told."""

    prompt: str | None = option("The prompt; text on stdin is put before it.", argument=True)
    model: str = _model(default=MISSING)
    files: tuple[Path, ...] = option(
        "Read the prompt from a file, or stdin (-). Repeatable.", "--file", "-f", default=()
    )
    system: str = _system()
    output_format: str | None = option("text, json or stream-json.", choices=("text", "json", "stream-json"))
    as_json: bool = _json()
    answer: Options = part(think={"default": "off"})
    tool_use: ToolUse = part(
        tools={
            "metavar": "NAMES|FILE.json",
            "help": "Tools the model may use here: nano, read, edit, all, mcp, or names. A file has schemas: calls are "
            "only printed.",
        },
        max_rounds={"help": f"Most turns of the model; exit 6 there. Default: {MAX_ROUNDS}."},
    )
    display: Display = part()
    no_stream: bool = option("Print the answer when it is complete.", default=False)
    loading: Loading = part()


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """What `v4 chat` is told."""

    model: str | None = _model()  # None: that of the conversation, else the one of the settings
    system: str = _system()
    go_on: bool = option("Go on with the conversation used last.", "--continue", "-c", default=False)
    resume: str | None = option("Go on with this one.", "--resume", "-r", metavar="ID")
    list_all: bool = option("List the conversations that are kept.", "--list", default=False)
    as_json: bool = _json()
    plain: bool = option("Line by line: for screen readers, and in pipes.", default=False)
    answer: Options = part()
    tool_use: ToolUse = part(
        tools={
            "help": "Tools the model may call: names, or read, edit, all, nano, mcp, none. Default: all,mcp; nano's "
            "own."
        }
    )
    display: Display = part()
    loading: Loading = part()


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """What `v4 rollout` is told."""

    tasks: Path = option("One task per line (README).", argument=True, default=MISSING, metavar="TASKS.jsonl")
    out: Path = option("Folder of the trajectories, one JSON file each.", default=MISSING, metavar="DIR")
    n: int = option("Rollouts of each task.", default=1, least=1)
    jobs: int = option("At a time, on one loaded model.", default=1, least=1, most=256)
    conditions: Conditions = part()
    loading: Loading = part(backend=None, numerics=None, kv_dir=None, no_cache=None)
    as_json: bool = _json()


COMMANDS: dict[str, type] = {"run": RunOptions, "chat": ChatOptions, "rollout": RolloutOptions}
Told = TypeVar("Told")


@cache
def entries(concern: type) -> tuple[Option, ...]:
    """The options that are fields of a dataclass, in order."""
    found = []
    for its in fields(concern):
        if about := its.metadata.get("option"):
            kinds = [kind for kind in get_args(its.type) if kind not in (NoneType, Ellipsis)]
            name = about.get("name", its.name)
            known = {"name": name, "field": its.name, "kind": (kinds or [its.type])[0]} | about
            flags = tuple(flag or "--" + name.replace("_", "-") for flag in about["flags"])
            found.append(Option(**known | {"flags": flags, "many": get_origin(its.type) is tuple}))
    return tuple(found)


def _own(concern: type, changes: Mapping[str, Any]) -> Iterator[Option]:
    """Those of them that a command has, as it has them."""
    for entry in entries(concern):
        if (changed := changes.get(entry.name, {})) is not None:
            yield entry._replace(**changed)


def _parts(command: Any) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """The concerns that are fields of a dataclass, by name, and how their options are changed."""
    return {its.name: (its.type, its.metadata["part"]) for its in fields(command) if "part" in its.metadata}


def table(command: type, changes: Mapping[str, Any] | None = None) -> Iterator[Option]:
    """All options of a command, or of a part of it, in the order of its help."""
    own, parts = {entry.field: entry for entry in _own(command, changes or {})}, _parts(command)
    for its in fields(command):
        if its.name in own:
            yield own[its.name]
        elif its.name in parts:
            yield from table(*parts[its.name])


def made(command: type[Told], values: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Told:
    """A command's options by their names; those that have no value, or None, are what they are by default. UsageError
    for what cannot be."""
    told: dict[str, Any] = {}
    for entry in _own(command, changes or {}):
        value = values.get(entry.name)
        value = entry.default if value is None else _read(entry, value)
        if not hasattr(command, "__post_init__") and (fault := entry.fault(value)):
            raise UsageError(f"{entry.flag} {fault}")
        told |= entry.values(value)
    for name, (concern, changed) in _parts(command).items():
        told[name] = made(concern, values, changed)
    return command(**told)


def _read(entry: Option, value: Any) -> Any:
    """What was given, as the dataclass has it."""
    if entry.many:
        return tuple(argument(one, entry.flag) if entry.text else one for one in value)
    if entry.text:
        return argument(value, entry.flag)
    return paths.expanded(value) if entry.variable and entry.kind is Path else value
