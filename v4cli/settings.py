"""What the user has settled once: config.toml, a project's .v4cli.toml, and V4_* variables, checked and with origins.

A project file may say how to answer, never what may run: a repository that was cloned must not gain execution, so
tools, approval, MCP servers, models, folders and the system prompt come from the user's own file only.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from v4cli import paths
from v4cli.entries import table
from v4cli.errors import UsageError, V4Error
from v4cli.files import argument, contents, decoded
from v4cli.options import COMMANDS

PROJECT_FILE = ".v4cli.toml"
MAX_BYTES = 1 << 16
MAX_DOTS = 500  # in a line: the time that a key takes grows with the square of its parts

KEYS = {entry.name: entry for name in ("run", "chat") for entry in table(COMMANDS[name]) if entry.setting}


@dataclass(frozen=True)
class McpServer:
    """A server of tools: a program to start (`command`), or one to reach at a `url`."""

    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)  # all it is told of the environment, besides where it is
    cwd: str | None = None
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    timeout: float = 120.0  # seconds a call may take


class Setting(NamedTuple):
    """A value and where it was said; `default` if nowhere."""

    value: object = None
    origin: str = "default"


class Settings(NamedTuple):
    """Every key's setting, and the MCP servers by name."""

    keys: dict[str, Setting]
    mcp: dict[str, McpServer]

    def value(self, key: str):
        """What is settled for `key`; None if nothing is."""
        return self.keys[key].value

    @property
    def values(self) -> dict:
        """Of all keys that are settled."""
        return {key: setting.value for key, setting in self.keys.items() if setting.value is not None}


def defaults(command: str) -> dict:
    """What is settled for the options of a command that obeys settings, by name; the model is that of default_model(),
    as a conversation that goes on may have another. UsageError."""
    if command not in ("run", "chat", "serve", "launch"):
        return {}
    others = {"model", *(key for key, entry in KEYS.items() if entry.setting == "chat" and command != "chat")}
    return {key: value for key, value in load().values.items() if key not in others}


def default_model() -> str:
    """The model that is settled; else the pulled one if there is exactly one that is complete, else nano."""
    from v4cli.store.library import only_model

    return load().value("model") or only_model(paths.models_dir()) or "nano"


def said_by(key: str, value: object) -> str:
    """Who says that an option has this value, for errors: its variable, the file of settings, or its flag."""
    setting = load().keys[key]
    if setting.value != value or setting.value is None:
        return KEYS[key].flag
    return setting.origin if setting.origin == variable(key) else f"{setting.origin}: {key}"


@contextmanager
def blamed(key: str, value: object) -> Iterator[None]:
    """Within: errors about what an option names begin with the variable or the file that says so."""
    try:
        yield
    except V4Error as error:
        if (where := said_by(key, value)) != KEYS[key].flag:
            error.args = (f"{where}: {error}",)
        raise


def load(folder: Path | None = None) -> Settings:
    """The settings in `folder` (the current one, if none): variables before the project's file before the user's.

    UsageError names file, key and what would be right.
    """
    keys, servers = {key: Setting() for key in KEYS}, {}
    user = paths.config_file()
    for path in (user, *_of_project(folder)):
        table = read(path)
        if path is user:
            servers = _servers(table.pop("mcp", {}), path)
        for key, value in table.items():
            checked = _checked(key, value, str(path), in_project=path is not user)
            keys[key] = Setting(checked, str(path))
    for key in KEYS:
        text = os.environ.get(variable(key))
        if text:
            keys[key] = Setting(from_text(key, text, variable(key)), variable(key))
    return Settings(keys, servers)


def _of_project(folder: Path | None) -> list[Path]:
    """The project's file; none where the current folder has been removed or may not be looked into."""
    try:
        folder = folder or Path.cwd()
    except FileNotFoundError:
        return []
    return [folder / PROJECT_FILE] if os.access(folder, os.X_OK) else []


def variable(key: str) -> str:
    """The environment variable of a key."""
    return "V4_" + key.upper()


def read(path: Path) -> dict:
    """A TOML file; empty if there is none. UsageError."""
    try:
        if not path.is_file():
            return {}
    except OSError as error:
        raise UsageError(f"{path}: cannot be looked for ({error.strerror})", f"ls -ld {path.parent}") from None
    import tomllib

    data = contents(path, MAX_BYTES, UsageError)
    try:
        text = decoded(data, "its contents")
        wrong = next((n for n, line in enumerate(text.split("\n"), 1) if line.count(".") > MAX_DOTS), 0)
        if wrong:
            raise ValueError(f"line {wrong} has more than {MAX_DOTS} dots")
        return tomllib.loads(text)
    except (UsageError, ValueError, RecursionError) as error:
        hint = getattr(error, "hint", "") or "a line is like temp = 0.7"
        raise UsageError(f"{path}: not a TOML file of settings ({error})", hint) from None


def _checked(key: str, value, where: str, in_project: bool = False):
    """A value of the right type, or a UsageError."""
    known = KEYS.get(key)
    if in_project and (key == "mcp" or (known and known.setting != "project")):
        raise UsageError(
            f"{where}: {key} may not be set by a project, which could come from anyone",
            f"put it into {paths.config_file()}",
        )
    if known is None:
        raise UsageError(f"{where}: there is no setting {key!r}", meant(key))
    if known.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wanted = str if known.kind is Path else known.kind
    right = isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))
    if fault := known.fault(value) if right else f"must be {known.expected}":
        raise UsageError(f"{where}: {key} {fault}, not {value!r}", known.help)
    return paths.expanded(value) if known.kind is Path else value


def from_text(key: str, text: str, where: str):
    """The value that a text at `where` stands for: a variable, or the command line. UsageError."""
    known = KEYS.get(key)
    try:
        value = known.parsed(argument(text, where) if known.kind is str else text) if known else text
    except ValueError:
        value = text
    return _checked(key, value, where)


def meant(key: str) -> str:
    """A hint for a name that is no setting."""
    import difflib

    near = difflib.get_close_matches(key, KEYS, 1)
    return f"did you mean {near[0]}?" if near else "v4 config show lists all"


# -- MCP servers -----------------------------------------------------------------------------------------------


def _servers(tables, path: Path) -> dict[str, McpServer]:
    """The [mcp.NAME] tables of the user's file."""
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise UsageError(f"{path}: mcp must be tables, one for each server", EXAMPLE)
    return {name: _server(f"{path}: [mcp.{name}]", table) for name, table in tables.items()}


EXAMPLE = '[mcp.files] and below it command = ["some-server", "argument"], or url = "https://..."'


def _server(where: str, table: dict) -> McpServer:
    checks = {
        "command": (_is_texts, 'a list of texts, like ["some-server", "argument"]'),
        "env": (_is_text_table, 'a table of texts, like { TOKEN = "..." }'),
        "cwd": (_is_text, "a folder"),
        "url": (lambda value: _is_text(value) and value.startswith(("https://", "http://")), "an https:// address"),
        "headers": (_is_text_table, 'a table of texts, like { Authorization = "Bearer ..." }'),
        "timeout": (lambda value: type(value) in (int, float) and value > 0, "a number of seconds"),
    }
    for key, value in table.items():
        if key not in checks:
            raise UsageError(f"{where}: there is no key {key!r}", "there are " + ", ".join(checks))
        right, wanted = checks[key]
        if not right(value):
            raise UsageError(f"{where}: {key} must be {wanted}", EXAMPLE)
    if ("command" in table) == ("url" in table):
        raise UsageError(f"{where} needs either command or url", EXAMPLE)
    return McpServer(**table | {"command": tuple(table.get("command", ()))})


def _is_text(value) -> bool:
    return isinstance(value, str) and bool(value)


def _is_texts(value) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_text_table(value) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
