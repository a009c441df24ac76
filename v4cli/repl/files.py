"""@path in a message: the file's text is added below it."""

import re
from pathlib import Path

from v4cli import paths
from v4cli.agent.conversation import fenced
from v4cli.errors import UsageError
from v4cli.files import decoded

MOST_BYTES = 256 << 10
_MENTION = re.compile(r'(?:^|(?<=\s))@(?:"([^"\n]+)"|([^\s"]+))')


def with_files(text: str, folder: Path) -> str:
    """The message with every file it mentions; a mention of what is no file stays text. UsageError."""
    added = []
    for match in _MENTION.finditer(text):
        name = match[1] or match[2]
        path = next((p for p in _candidates(name, folder) if p.is_file()), None)
        if path is not None:
            added.append(f"\n\n{path_of(path, folder)}:\n{fenced(read(path).rstrip())}")
    return text + "".join(dict.fromkeys(added))


def _candidates(name: str, folder: Path) -> list[Path]:
    """As written, then without the punctuation a sentence puts behind it."""
    return [folder / paths.expanded(n) for n in (name, name.rstrip(".,;:!?)"))]


def path_of(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def read(path: Path) -> str:
    """A UTF-8 text of bounded size. UsageError."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"@{path}: cannot be read ({error.strerror})") from None
    if len(data) > MOST_BYTES:
        raise UsageError(f"@{path}: more than {MOST_BYTES >> 10} KiB", "name a smaller file, or let a tool read it")
    return decoded(data, f"@{path}")
