"""@file, @folder/ and @pattern in a message: the texts are added below it."""

import re
from pathlib import Path

from v4cli.agent.attached import Attached, missing

_MENTION = re.compile(r'(?:^|(?<=\s))@(?:"([^"\n]+)"|([^\s"]+))')


def with_files(text: str, folder: Path) -> tuple[str, Attached]:
    """The message with all that it mentions, and the files of that; a mention of what is none stays text. UsageError
    for what cannot be read, and for a pattern that nothing matches."""
    found = Attached()
    for match in _MENTION.finditer(text):
        name = match[1] or match[2]
        if not any(found.add(meant, folder) for meant in _meant(name)) and "*" in name:
            raise missing(name, folder)
    return "\n\n".join([text, *(file.labelled() for file in found.files)]), found


def _meant(name: str) -> list[str]:
    """As written, then without the punctuation a sentence puts behind it."""
    return [name, name.rstrip(".,;:!?)")] if name[-1] in ".,;:!?)" and name.rstrip(".,;:!?)") else [name]
