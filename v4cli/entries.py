"""What an entry of the table of options is, and how the options of a command are made of entries.

An entry is a field of a frozen dataclass, made by `option`; a dataclass of entries that belong together is a field of
others, made by `part`. The table itself is options.py.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

from v4cli import paths
from v4cli.errors import UsageError
from v4cli.files import argument

WANTED = {
    str: 'a text, like "..."',
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Path: 'a folder, like "/data/kv"',
}
BOOLEANS = {"1": True, "true": True, "0": False, "false": False}
Told = TypeVar("Told")


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
    checks_itself = hasattr(command, "__post_init__")
    for entry in _own(command, changes or {}):
        value = values.get(entry.name)
        value = entry.default if value is None else _read(entry, value)
        if not checks_itself and (fault := entry.fault(value)):
            hint = f"{entry.flag} {entry.choices[0]}" if entry.choices else entry.help
            raise UsageError(f"{entry.flag} {fault}", hint)
        told |= entry.values(value)
    for name, (concern, changed) in _parts(command).items():
        told[name] = made(concern, values, changed)
    return command(**told)


def typed(told: Any, changes: Mapping[str, Any] | None = None) -> list[str]:
    """The flags that say of a command, or a part of it, what is not so by default; arguments and switches left out."""
    words = []
    for entry in _own(type(told), changes or {}):
        value = getattr(told, entry.field)
        if entry.flags and value != entry.default:
            values = value if entry.many else () if entry.kind is bool else (value,)
            words += [word for one in values for word in (entry.flag, str(one))] or [entry.flag]
    for name, (_, changed) in _parts(type(told)).items():
        words += typed(getattr(told, name), changed)
    return words


def _read(entry: Option, value: Any) -> Any:
    """What was given, as the dataclass has it."""
    if entry.many:
        return tuple(argument(one, entry.flag) if entry.text else one for one in value)
    if entry.text:
        return argument(value, entry.flag)
    return paths.expanded(value) if entry.variable and entry.kind is Path else value
