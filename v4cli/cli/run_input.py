"""What `v4 run` is given: the prompt from arguments, files and pipes."""

import sys
from collections.abc import Sequence
from pathlib import Path

from v4cli.errors import UsageError
from v4cli.files import argument, decoded
from v4cli.streams import read_path, read_stdin

MAX_TEXT_BYTES = 64 << 20
STDIN = Path("-")


def prompt_of(prompt: str | None, files: Sequence[Path], stdin: bool = True) -> str:
    """stdin (when piped), then the files in order, then the prompt, with a blank line between. Where one of the files
    is -, stdin stands there; without `stdin` it is not read."""
    parts = []
    if stdin and STDIN not in files and not sys.stdin.isatty():
        parts.append(read_text(STDIN))
    parts += map(read_text, files)
    if prompt is not None:
        parts.append(argument(prompt, "the prompt"))
    text = "\n\n".join(part.strip("\n") for part in parts if part.strip())
    if not text:
        raise UsageError("no prompt", 'v4 run "your question", v4 run --file FILE, or pipe text in')
    return text


def read_text(path: Path) -> str:
    """A UTF-8 text file, or stdin for -. UsageError names the file."""
    if path == STDIN:
        return decoded(read_stdin(MAX_TEXT_BYTES), "stdin")
    return decoded(read_path(path, MAX_TEXT_BYTES), str(path))
