"""Searching files for a regular expression: with ripgrep where there is one, else with Python."""

import os
import shutil
import sys
from pathlib import Path

from v4cli.agent import grep, sandbox
from v4cli.agent.process import Limits
from v4cli.agent.tools import Context, ToolError, argument

LIMITS = Limits(seconds=30, output_bytes=512 << 10)
MAX_MATCHES = 200
MAX_LINE = 300  # characters


def run(pattern: str, path: str, context: Context) -> str:
    """Matches below `path`, which is relative to the workspace, as path:line: text.

    A program does it, which can be stopped and sees the workspace only.
    """
    program = _program(argument(pattern), path)
    done = sandbox.run(program, context.folder, LIMITS, cancelled=context.cancelled, access=sandbox.Access.READ)
    matches = [match for line in done.text.split("\n") if (match := _match(line))]
    if not matches and (done.stopped or done.status > 1):
        raise ToolError(f"the search failed: {done.stopped or done.text.strip()}")
    if done.stopped or len(matches) > MAX_MATCHES:
        matches = [*matches[:MAX_MATCHES], "[there are more matches; search for less, or in fewer files]"]
    return "\n".join(matches) or "no matches"


def _program(pattern: str, path: str) -> list[str]:
    """What prints path, NUL, line number, colon, line for each match."""
    if shutil.which("rg", path=sandbox.PATH):
        options = ["--no-config", "--no-heading", "--line-number", "--with-filename", "--null", "--color=never"]
        options += ["--hidden", "--glob=!.git", "--sort=path", "--max-columns=1000", "--max-columns-preview"]
        return ["rg", *options, f"--regexp={pattern}", "--", path]
    return [Path(sys.executable).name, "-I", "-c", Path(grep.__file__).read_text("utf-8"), pattern, path]


def _match(line: str) -> str:
    """A line of the program as the model gets it; empty if it is no match."""
    path, _, rest = line.partition("\0")
    number, colon, text = rest.partition(":")
    if not colon:
        return ""
    text = text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}…"
    return f"{os.path.normpath(path)}:{number}: {text}"
