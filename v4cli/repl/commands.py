"""The slash commands: one table, which /help and completion are made from. What they do is in actions.py."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from v4cli.errors import UsageError
from v4cli.options import Mode
from v4cli.repl import actions


@dataclass(frozen=True)
class Command:
    """`do(dialogue, argument)` carries it out. `at_once`: it does not wait for the answer that is being written."""

    name: str
    arguments: str
    help: str
    do: Callable
    at_once: bool = False
    aliases: tuple[str, ...] = ()


def _help(dialogue, argument: str) -> None:
    dialogue.note(help_text())


def _exit(dialogue, argument: str) -> None:
    """Whoever shows the dialogue ends it."""


TABLE = (
    Command("help", "", "this list, and the keys", _help, at_once=True),
    Command("exit", "", "leave", _exit, at_once=True, aliases=("quit", "bye")),
    Command("new", "", "begin a new conversation; this one is kept", actions.new, aliases=("clear",)),
    Command("logs", "", "the conversations that are kept", actions.logs),
    Command(
        "resume", "[ID]", "go on with another conversation; by default the last one before this", actions.resume
    ),
    Command("fork", "", "go on in a copy of this conversation", actions.fork),
    Command("undo", "", "take back your last message and what followed", actions.undo),
    Command("retry", "", "answer your last message once more", actions.retry),
    Command("edit", "[TEXT]", "change your last message (to TEXT) and ask again", actions.edit),
    Command("compact", "", "go on from a summary of this conversation", actions.compact),
    Command("system", "[TEXT|off]", "show or set the system prompt", actions.system),
    Command("think", "[off|on|max|show|fold]", "reasoning; show or fold it from now on", actions.think, at_once=True),
    Command("temp", "[T]", "show or set the temperature; 0 is greedy", actions.temp, at_once=True),
    Command("set", "[NAME VALUE]", f"show or set {', '.join(actions.LIVE)}", actions.set_option, at_once=True),
    Command("format", "[json|SCHEMA|text]", "answers from now on: JSON, by a schema, or text", actions.format_),
    Command("model", "[NAME]", "show the model, or go on with another one", actions.model),
    Command("tools", "", "the tools the model has", actions.tools, at_once=True),
    Command("approve", f"[{'|'.join(Mode)}]", "which tool calls run without asking", actions.approve, at_once=True),
    Command("stats", "", "counts and speeds of the last answer", actions.stats, at_once=True),
    Command("experts", "[on|off]", "what experts on demand cost, as it goes", actions.experts, at_once=True),
    Command("context", "", "what takes up the context", actions.context),
    Command("tokens", "TEXT", "how many tokens a text has", actions.tokens),
    Command("export", "md|json [FILE]", "write the conversation to a file", actions.export),
    Command("copy", "[code [N]]", "copy the last answer to the clipboard, or code of it", actions.copy, at_once=True),
)  # fmt: skip
BY_NAME = {name: command for command in TABLE for name in (command.name, *command.aliases)}

KEYS = """\
Enter sends; Alt-Enter, Ctrl-J or \\ Enter begins a line     Tab completes /commands and @files
Esc or Ctrl-C stops the answer; Ctrl-D leaves               Up, Down, Ctrl-R: what you typed before
Ctrl-O: reasoning and tool results in full                  Ctrl-X Ctrl-E or Ctrl-G: your editor
!COMMAND runs a command of yours, @FILE, @FOLDER/ or @PATTERN adds files
Where a call waits: y (yes), s (yes, for this session), a (always in this
folder) or n (no), then Enter; Esc is no, other words are told to the model"""


def is_command(line: str) -> bool:
    """Whether a line is meant as a command: a path at its beginning is not."""
    return line.startswith("/") and "/" not in line[1:].partition(" ")[0]


def is_for_the_program(line: str) -> bool:
    """Whether a line is a command, of ours or of the shell, and nothing that is said to the model."""
    return line.startswith("!") or is_command(line)


def parse(line: str) -> tuple[Command, str]:
    """The command of a line and its argument. UsageError for an unknown one suggests others."""
    name, _, argument = line[1:].strip().partition(" ")
    command = BY_NAME.get(name.lower())
    if command is None:
        close = difflib.get_close_matches(name.lower(), BY_NAME, n=2, cutoff=0.6)
        hint = " or ".join(f"/{BY_NAME[one].name}" for one in dict.fromkeys(close)) or "/help lists the commands"
        raise UsageError(f"there is no command /{name}", hint)
    return command, argument.strip()


def named(line: str) -> Command | None:
    """The command that a line calls, if it calls one."""
    return BY_NAME.get(line[1:].partition(" ")[0].lower()) if line.startswith("/") else None


def run(dialogue, line: str) -> None:
    """Do what a command line says. UsageError."""
    command, argument = parse(line)
    command.do(dialogue, argument)


def help_text() -> str:
    """All commands and keys."""
    names = [f"/{command.name} {command.arguments}".rstrip() for command in TABLE]
    width = max(map(len, names))
    lines = [f"{name:<{width}}  {command.help}" for name, command in zip(names, TABLE)]
    return "\n".join([*lines, "", KEYS])
