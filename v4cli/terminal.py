"""Standard output and standard error. All that is printed goes through here: on a terminal nothing gets through that
it would act on, except styles of our own; into a pipe or a file goes every character as it is."""

import sys
import threading

from v4cli.clean import Cleaner

DIM = "2"  # a style, as its number


class Printer:
    """Writes to the stream that `sys` has under a name. Texts may come in pieces, cut anywhere."""

    def __init__(self, name: str):
        self.name = name
        self._cleaner = Cleaner()
        self._is_changing = False  # the line that the cursor is in
        self._lock = threading.RLock()  # who waits says so from a thread of its own

    @property
    def stream(self):
        return getattr(sys, self.name)

    @property
    def is_terminal(self) -> bool:
        return self.stream.isatty()

    def write(self, text: str, style: str = "") -> None:
        """A piece of text, at once, in the place of a line that changes. Newlines at its end are not styled."""
        with self._lock:
            self.settle()
            self._write(text, style)

    def _write(self, text: str, style: str) -> None:
        text = self._cleaner.feed(text) if self.is_terminal else text
        if style and (body := text.rstrip("\n")):
            text = f"\x1b[{style}m{body}\x1b[0m{text[len(body) :]}"
        self.stream.write(text)
        self.stream.flush()

    def line(self, data: bytes) -> None:
        """A line of UTF-8 that is the same under every locale."""
        if self.is_terminal:
            self.write(data.decode("utf-8", "replace") + "\n")
            return
        self.stream.flush()
        self.stream.buffer.write(data + b"\n")
        self.stream.buffer.flush()

    def changing(self, line: str, style: str = "") -> None:
        """A line that whatever is written next takes the place of; for terminals."""
        with self._lock:
            self.stream.write("\r")
            self._write(line, style)
            self.stream.write("\x1b[K")
            self.stream.flush()
            self._is_changing = bool(line)

    def settle(self) -> None:
        """Remove a line that changes."""
        if self._is_changing:
            self.changing("")


out, err = Printer("stdout"), Printer("stderr")
