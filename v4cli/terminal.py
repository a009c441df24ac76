"""Standard output and standard error. All that is printed goes through here: on a terminal nothing gets through that
it would act on, except styles of our own; into a pipe or a file goes every character as it is."""

import sys

from v4cli.clean import Cleaner

DIM = "2"  # a style, as its number


class Printer:
    """Writes to the stream that `sys` has under a name. Texts may come in pieces, cut anywhere."""

    def __init__(self, name: str):
        self.name = name
        self._cleaner = Cleaner()

    @property
    def stream(self):
        return getattr(sys, self.name)

    @property
    def is_terminal(self) -> bool:
        return self.stream.isatty()

    def write(self, text: str, style: str = "") -> None:
        """A piece of text, at once. Newlines at its end are not styled."""
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
        """A line that the next one takes the place of; for terminals."""
        self.stream.write("\r")
        self.write(line, style)
        self.stream.write("\x1b[K")
        self.stream.flush()


out, err = Printer("stdout"), Printer("stderr")
