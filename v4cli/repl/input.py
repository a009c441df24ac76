"""The input: Tab completes commands and files, lines are remembered."""

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory

from v4cli import paths, system
from v4cli.errors import V4Error
from v4cli.repl.commands import TABLE
from v4cli.repl.pastes import Pastes

REMEMBERED = 10_000  # characters of a line in the history


class History(FileHistory):
    """Lines typed before, in a file only the user can read; those with long pastes keep the markers. V4Error if there
    can be no such file."""

    def __init__(self, path: Path, pastes: Pastes):
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = system.open_file(path, os.O_CREAT | os.O_RDWR, follow=False)
            regular = stat.S_ISREG(os.fstat(handle).st_mode)
            system.set_mode(handle, 0o600)
            os.close(handle)
        except OSError as error:
            raise V4Error(
                f"{path}: cannot be written ({error.strerror})", "V4_HOME=FOLDER v4 chat keeps everything elsewhere"
            ) from None
        if not regular:
            raise V4Error(f"{path}: not a regular file", f"rm {path}")
        super().__init__(str(path))
        self.pastes = pastes

    def store_string(self, string: str) -> None:
        whole = self.pastes.expanded(string)
        with contextlib.suppress(OSError):  # a full disk: they are remembered as long as this lasts
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
            entries = sorted(os.scandir(self.folder / paths.expanded(folder)), key=lambda entry: entry.name)
        except OSError:
            return
        for entry in entries:
            if entry.name.startswith(start) and (start or not entry.name.startswith(".")):
                path = os.path.join(folder, entry.name) + ("/" if entry.is_dir() else "")
                quoted = f'"{path}' + ("" if entry.is_dir() else '"') if " " in path else path
                yield Completion(quoted, -len(typed), display=entry.name)
