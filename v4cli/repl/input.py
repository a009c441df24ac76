"""The input: pastes stand as markers until they are sent, Tab completes commands and files, lines are remembered."""

import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory

from v4cli.repl.commands import TABLE

PASTE_LINES, PASTE_CHARACTERS = 8, 1000  # what is longer is shown as a marker
REMEMBERED = 10_000  # characters of a line in the history


class Pastes:
    """Long pastes by the marker that stands for them."""

    def __init__(self):
        self.texts: dict[str, str] = {}

    def taken(self, text: str) -> str:
        """What to put into the input for a paste: the text, or a marker."""
        text = text.replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)
        n_lines = text.count("\n") + 1
        if n_lines <= PASTE_LINES and len(text) <= PASTE_CHARACTERS:
            return text
        number = f" #{len(self.texts) + 1}" if self.texts else ""
        marker = f"[pasted{number}: {_size(len(text.encode(errors='replace')))}, {n_lines:,} lines]"
        self.texts[marker] = text
        return marker

    def expanded(self, text: str) -> str:
        """The text with every marker replaced by what was pasted."""
        for marker, pasted in self.texts.items():
            if marker in text:
                text = text.replace(marker, pasted)
        return text


def _size(n_bytes: int) -> str:
    for unit, size in (("MB", 1_000_000), ("kB", 1000)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} B"


class History(FileHistory):
    """Lines typed before, in a file only the user can read; those with long pastes keep the markers."""

    def __init__(self, path: Path, pastes: Pastes):
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        super().__init__(str(path))
        self.pastes = pastes

    def store_string(self, string: str) -> None:
        whole = self.pastes.expanded(string)
        super().store_string(whole if len(whole) <= REMEMBERED else string)


class Completions(Completer):
    """Commands at the beginning, files after @."""

    def __init__(self, folder: Path):
        self.folder = folder

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if text.startswith("/") and " " not in text and "\n" not in text:
            for command in TABLE:
                for name in (command.name, *command.aliases):
                    if name.startswith(text[1:]):
                        yield Completion(f"/{name}", -len(text), display_meta=command.help)
            return
        at = text.rfind("@")
        if at >= 0 and (at == 0 or text[at - 1].isspace()):
            yield from self._files(text[at + 1 :])

    def _files(self, typed: str) -> Iterable[Completion]:
        """Files and folders that begin so; a name with spaces is quoted."""
        name = typed.removeprefix('"')
        if "\n" in typed or (" " in typed and name == typed):
            return
        folder, start = os.path.split(name)
        try:
            entries = sorted(os.scandir(self.folder / Path(folder).expanduser()), key=lambda entry: entry.name)
        except OSError:
            return
        for entry in entries:
            if entry.name.startswith(start) and (start or not entry.name.startswith(".")):
                path = os.path.join(folder, entry.name) + ("/" if entry.is_dir() else "")
                quoted = f'"{path}' + ("" if entry.is_dir() else '"') if " " in path else path
                yield Completion(quoted, -len(typed), display=entry.name)
