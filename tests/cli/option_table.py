"""Writes the table of options into docs/settings.md: `python tests/cli/option_table.py docs/settings.md` (make
options)."""

import sys
from dataclasses import MISSING
from pathlib import Path

from v4cli.entries import Option, table
from v4cli.options import COMMANDS

HEAD = """\
| option | of | value | setting | `/set` | meaning |
|---|---|---|---|---|---|"""
MARKS = "<!-- options: make options writes them -->\n", "<!-- end of options -->"
SETTING = {"": "", "user": "yes", "chat": "of `v4 chat`", "project": "of projects, too"}


def rows() -> str:
    """A line of markdown for each option of any command, as the first command that has it tells it."""
    kinds: dict[str, dict[str, Option]] = {}
    for command in COMMANDS:
        for entry in table(COMMANDS[command]):
            kinds.setdefault(entry.name, {})[command] = entry
    return "\n".join([HEAD, *(_row(entries) for entries in kinds.values())])


def _row(entries: dict[str, Option]) -> str:
    entry = next(iter(entries.values()))
    flags = entry.flags or [switch.flag for switch in entry.switches] or [entry.metavar or entry.name.upper()]
    shown = ", ".join(f"`{flag}`" for flag in sorted(flags, key=lambda flag: flag[:2] != "--"))
    setting = f"`{entry.name}` {SETTING[entry.setting]}".replace(" yes", "") if entry.setting else ""
    live = "yes" if entry.live else ""
    return (
        f"| {shown} | {', '.join(entries)} | {_value(entry)}{_defaults(entries)} | {setting} | {live} | {entry.help} |"
    )


def _value(entry: Option) -> str:
    if entry.choices:
        return ", ".join(entry.choices)
    text = {str: "text", bool: "flag", int: "whole number", float: "number", Path: "path"}[entry.kind]
    if entry.valid:
        text += f" {entry.valid.words}"
    elif entry.most is not None:
        text += f" from {entry.least} to {entry.most}"
    elif entry.least is not None:
        text += f" of at least {entry.least}"
    return text + (", repeatable" if entry.many else "")


def _defaults(entries: dict[str, Option]) -> str:
    """What it is if it is not given, where that is a value, by command where they differ."""
    usual = {command: entry.default for command, entry in entries.items()}
    if MISSING in usual.values():
        return "" if next(iter(entries.values())).name == "model" else "; must be given"
    told = {command: value for command, value in usual.items() if value not in (None, "", ()) and value is not False}
    if len(set(usual.values())) == 1:
        return f"; {next(iter(told.values()))}" if told else ""
    return "; " + ", ".join(f"{value} in {command}" for command, value in told.items())


def with_table(text: str) -> str:
    """A text of docs/settings.md with the table as it should be."""
    before, rest = text.split(MARKS[0])
    return before + MARKS[0] + rows() + "\n" + MARKS[1] + rest.split(MARKS[1])[1]


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(with_table(readme.read_text()))
