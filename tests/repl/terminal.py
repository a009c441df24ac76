"""A terminal for tests: a program runs in a pseudo terminal, its screen and scrollback can be looked at."""

import os
import sys
import time

import pexpect
import pyte
from pyte.screens import StaticDefaultDict


class Screen(pyte.HistoryScreen):
    """pyte knows no faint text: here it is bright black."""

    def select_graphic_rendition(self, *codes, **kwargs):
        plain = 38 not in codes and 48 not in codes
        super().select_graphic_rendition(*(90 if plain and code == 2 else code for code in codes), **kwargs)

    def reflow(self, lines: int, columns: int) -> None:
        """Resize as most terminals do: rows that are too long now are broken, and the cursor stays where it was in the
        text. Rows that were broken before stay so, which terminals do not all do."""
        rows, at = [], 0
        for y in range(self.lines):
            cells, width = self.buffer[y], len(self.display[y].rstrip())
            if y == self.cursor.y:
                width = max(width, self.cursor.x + 1)
                at, self.cursor.x = len(rows) + self.cursor.x // columns, self.cursor.x % columns
            for first in range(0, max(width, 1), columns):
                rows.append({x: cells[first + x] for x in range(min(columns, width - first))})
        last = max(at, *(y for y, row in enumerate(rows) if row))
        above = max(0, last + 1 - lines)
        for row in rows[:above]:
            line = StaticDefaultDict(self.default_char)
            line.update(row)
            self.history.top.append(line)
        super().resize(lines, columns)
        self.buffer.clear()
        for y, row in enumerate(rows[above : above + lines]):
            self.buffer[y].update(row)
        self.cursor.y = at - above


class Terminal:
    """`v4 chat ARGS` (or another program) on a screen of `columns` x `rows`. Within it, `prompt` has been shown: what
    is typed before that would not be keys yet."""

    def __init__(
        self, *args, columns=80, rows=24, program=(sys.executable, "-m", "v4cli", "chat"), cwd=None, env=(), prompt="›"
    ):
        self.prompt = prompt
        self.screen = Screen(columns, rows, history=5000)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        own = {"TERM": "xterm-256color", "COLUMNS": None, "LINES": None, "OMP_NUM_THREADS": "1"}
        environment = os.environ | own | dict(env)
        environment = {name: value for name, value in environment.items() if value is not None}
        self.started = time.monotonic()
        self.child = pexpect.spawn(
            program[0], [*program[1:], *args], dimensions=(rows, columns), cwd=cwd, env=environment, timeout=None
        )

    def __enter__(self) -> "Terminal":
        self.wait(self.prompt)
        return self

    def __exit__(self, *_) -> None:
        try:
            self.child.close(force=True)
        except pexpect.ExceptionPexpect:  # it has been killed, which takes a busy machine a while
            self.child.wait()

    def pump(self, seconds: float = 0.05) -> bool:
        """Take what the program has written; False once it has ended."""
        try:
            data = self.child.read_nonblocking(1 << 16, seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self.stream.feed(data)
        return True

    @property
    def rows(self) -> list[str]:
        return [row.rstrip() for row in self.screen.display]

    @property
    def text(self) -> str:
        """Scrollback and screen."""
        above = ["".join(line[x].data for x in range(max(line, default=0) + 1)) for line in self.screen.history.top]
        return "\n".join([*(line.rstrip() for line in above), *self.rows])

    def wait(self, condition, seconds: float = 30) -> None:
        """Until the text, or a condition of this terminal, is there."""
        end = time.monotonic() + seconds
        met = condition if callable(condition) else lambda terminal: condition in terminal.text
        while not met(self):
            alive = self.pump()
            if time.monotonic() > end or (not alive and not met(self)):
                raise AssertionError(f"waited for {condition!r}; the screen:\n{self.text}")

    def type(self, text: str) -> None:
        self.child.send(text)

    def line(self, text: str) -> None:
        """Type a line and send it."""
        self.child.send(text + "\r")

    def resize(self, columns: int, rows: int) -> None:
        self.screen.reflow(rows, columns)
        self.child.setwinsize(rows, columns)

    def end(self) -> int:
        """Until the program has ended; its exit code."""
        while self.pump(0.2):
            pass
        self.child.close()
        return self.child.exitstatus
