"""What `v4 run` is given: the prompt from arguments, files and pipes."""

import sys
from pathlib import Path

from v4cli.errors import UsageError
from v4cli.files import argument, decoded
from v4cli.streams import read_stdin

MAX_TEXT_BYTES = 64 << 20


def prompt_of(prompt: str | None, file: Path | None) -> str:
    """stdin (when piped), then the prompt or the file, with a blank line between."""
    parts = []
    if not sys.stdin.isatty():
        parts.append(decoded(read_stdin(MAX_TEXT_BYTES), "stdin"))
    if file is not None:
        parts.append(read_text(file))
    if prompt is not None:
        parts.append(argument(prompt, "the prompt"))
    text = "\n\n".join(part.strip("\n") for part in parts if part.strip())
    if not text:
        raise UsageError("no prompt", 'v4 run "your question", v4 run --file FILE, or pipe text in')
    return text


def read_text(path: Path) -> str:
    """A UTF-8 text file, or stdin for -. UsageError names the file."""
    if str(path) == "-":
        return decoded(read_stdin(MAX_TEXT_BYTES), "stdin")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_TEXT_BYTES:
        raise UsageError(f"{path}: more than {MAX_TEXT_BYTES >> 20} MiB of text")
    return decoded(data, str(path))
