"""What a command is given to say: words, files, a template, and what comes through a pipe."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from v4cli import paths
from v4cli.agent.attached import PATTERN, Attached, attached
from v4cli.cli import templates
from v4cli.errors import UsageError, hinted
from v4cli.files import decoded
from v4cli.options import Said
from v4cli.streams import read_path, read_stdin

MAX_TEXT_BYTES = 64 << 20
STDIN = "-"
ASK = 'v4 run "your question", v4 run -f FILE, or pipe text in'


@dataclass(frozen=True)
class Prompt:
    """What is said, how it was typed, and the files in it."""

    text: str
    shown: str = ""  # empty: as the text
    attached: Attached = field(default_factory=Attached)


def said(told: Said, piped: bool) -> Prompt:
    """What the command line says: stdin (if it is `piped`), then the files, then the words. A file alone is the prompt
    as it is; beside anything else files have their names and sizes. Empty if nothing is said. UsageError."""
    refuse_contradictions(told)
    folder = paths.here()
    found = attached(told.files, folder, lambda: read_stdin(MAX_TEXT_BYTES))
    pipe = read_text(Path(STDIN)) if piped and STDIN not in told.files else ""
    words = " ".join(told.prompt)
    whole = len(found.files) == 1 and not (pipe.strip() or words.strip() or told.template or len(told.files) > 1)
    parts = [pipe, *(file.text if whole else file.labelled() for file in found.files), words]
    text = "\n\n".join(part.strip("\n") for part in parts if part.strip())
    if told.template is not None:
        text = templates.filled(told.template, told.variables, text)
    shown = typed(told)
    return Prompt(text, shown if shown != text else "", found)


def typed(told: Said) -> str:
    """The same as a line of a chat: files are mentioned."""
    mentions = [f"@{name}" if " " not in name else f'@"{name}"' for name in told.files if name != STDIN]
    line = " ".join([*told.prompt, *mentions])
    return line if told.template is None else templates.filled(told.template, told.variables, line)


def read_text(path: Path) -> str:
    """A UTF-8 text file, or stdin for -. UsageError names the file."""
    if str(path) == STDIN:
        return decoded(read_stdin(MAX_TEXT_BYTES), "stdin")
    with hinted(f"ls -l {path.parent}"):
        return decoded(read_path(path, MAX_TEXT_BYTES), str(path))


def is_piped() -> bool:
    return not sys.stdin.isatty()


def refuse_contradictions(told: Said) -> None:
    if told.go_on and told.resume is not None:
        raise UsageError("--continue and --resume exclude each other", "drop --continue")
    if told.files.count(STDIN) > 1:
        raise UsageError("- is stdin, which can be read only once", "put one of the texts into a file")
    if told.variables and told.template is None:
        raise UsageError("--var is for a template", "-t NAME")
    if told.files and (name := _expanded_by_the_shell(told.prompt)):
        raise UsageError(
            f"{name} is a file, but stands where the prompt does: a pattern that the shell has expanded?",
            "-f '*.py' in quotes; or the prompt in quotes",
        )


def _expanded_by_the_shell(words: Sequence[str]) -> str | None:
    """A file among the words, where the shell would have put it."""
    ends = [word for word in (*words[:1], *words[-1:]) if not any(character in word for character in PATTERN + " ")]
    return next((word for word in ends if os.path.isfile(word)), None)
