"""What the terminal shows below the scrollback: the turn in progress, a status line, the input, completions."""

import os
import sys
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby

from prompt_toolkit.application import Application
from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.formatted_text import ANSI, to_formatted_text
from prompt_toolkit.layout import (
    BufferControl,
    ConditionalContainer,
    Dimension,
    FormattedTextControl,
    HSplit,
    Layout,
    VerticalAlign,
    Window,
)
from prompt_toolkit.layout.menus import CompletionsMenu
from prompt_toolkit.layout.processors import AfterInput, ConditionalProcessor, TabsProcessor
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth
from prompt_toolkit.widgets import SearchToolbar

from v4cli import palette
from v4cli.clean import visible
from v4cli.repl.status import joined

REFLOWS = not (os.environ.get("TERM") == "linux" or {"XTERM_VERSION", "STY"} & set(os.environ))  # as most terminals
MOST_VIEW = 10  # lines of what is in progress: what a lower window pushes into the scrollback stays there as a copy
PLACEHOLDER = "Ask something, or /help"
STYLE = Style.from_dict({"status": palette.DIM, "prompt": "bold", "placeholder": palette.DIM})


class Screen(Vt100_Output):
    """A terminal; within `held` what is written stays back, to be shown together with what follows."""

    _held = False

    @classmethod
    def open(cls) -> "Screen":
        """Of this process's standard output."""
        screen = cls.from_pty(sys.stdout, term=os.environ.get("TERM"), enable_bell=False)
        screen.enable_cpr = False  # nothing here depends on where the cursor was
        return screen

    @contextmanager
    def held(self):
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def write(self, data: str) -> None:
        """Text of what is drawn below the scrollback, in which names of files and lines typed before may be; as wide
        as it was taken to be."""
        shown = visible(data) if data.strip("\r\n") else data
        if shown != data:
            shown = "".join(new if new == old else new * get_cwidth(old) for old, new in zip(data, shown))
        super().write(shown)

    def flush(self) -> None:
        if not self._held:
            super().flush()


class Resizable(Application):
    """An application that leaves no copy of itself behind where the terminal breaks what is drawn into more lines,
    because it has become narrower."""

    def _on_resize(self) -> None:
        if REFLOWS:
            self.output.cursor_up(self._added_rows())
        super()._on_resize()

    def _added_rows(self) -> int:
        """By which the cursor is now farther from the first line that was drawn."""
        drawn, columns = self.renderer.last_rendered_screen, self.output.get_size().columns
        if drawn is None:
            return 0
        cursor = drawn.get_cursor_position(self.layout.current_window)
        rows = [drawn.data_buffer[y] for y in range(cursor.y)]
        widths = [max((x + cell.width for x, cell in row.items() if cell.char.strip()), default=1) for row in rows]
        return sum(-(-width // columns) - 1 for width in widths) + cursor.x // columns


def layout(repl) -> Layout:
    """The rows below the scrollback; `repl` tells what is in them."""
    search = SearchToolbar()
    empty = Condition(lambda: not repl.buffer.text and not repl.asking) & ~is_searching
    control = BufferControl(
        repl.buffer,
        search_buffer_control=search.control,
        preview_search=True,
        input_processors=[
            TabsProcessor(char1=" ", char2=" "),
            ConditionalProcessor(AfterInput(PLACEHOLDER, "class:placeholder"), empty),
        ],
    )
    entry = Window(
        control,
        height=lambda: Dimension(min=1, max=max(1, repl.screen.get_size().rows // 2)),
        wrap_lines=True,
        get_line_prefix=lambda line, wrapped: _prefix(repl, line, wrapped),
        dont_extend_height=True,
    )
    above = Window(FormattedTextControl(lambda: _runs(above_text(repl))), dont_extend_height=True)
    experts = Window(
        FormattedTextControl(lambda: _fitting(repl, repl.status.experts())), height=1, style="class:status"
    )
    status = Window(
        FormattedTextControl(lambda: repl.notice or _fitting(repl, repl.status.parts())), height=1, style="class:status"
    )
    rows = [
        ConditionalContainer(above, Condition(lambda: bool(above_text(repl)))),
        Window(height=1),
        ConditionalContainer(experts, Condition(lambda: bool(repl.status.experts()))),
        status, entry, CompletionsMenu(max_height=8), search,
    ]  # fmt: skip
    return Layout(HSplit(rows, align=VerticalAlign.TOP), focused_element=entry)


@lru_cache(maxsize=1)
def _runs(text: str) -> list[tuple[str, str]]:
    """Lines with colours as runs of one style each: drawn faster than the single characters that ANSI gives."""
    characters = to_formatted_text(ANSI(text))
    return [(style, "".join(one[1] for one in run)) for style, run in groupby(characters, lambda one: one[0])]


def _prefix(repl, line: int, wrapped: int):
    mark = "answer › " if repl.answering else "› "
    return [("class:prompt", mark if line == wrapped == 0 else "  ")]


def above_text(repl) -> str:
    """What is in progress, the question about a call, and the lines that wait; as much as fits."""
    rows, columns = repl.screen.get_size()
    waiting = [
        visible(f"⋯ {' '.join(shown[:columns].split())}")[: columns - 1] for _, shown in list(repl.worker.waiting)
    ]
    if repl.live is None:
        return "\n".join(waiting[-3:])
    question = repl.asking.question(repl.draw, repl.answering) if repl.asking else ""
    below = repl.buffer.document.line_count + 4
    tail = ([question] if question else []) + waiting[-3:]
    height = rows - min(below, rows // 2 + 4) - sum(text.count("\n") + 1 for text in tail)
    view = repl.view(min(height, MOST_VIEW)) if height > 0 else ""
    return "\n".join([*([view] if view else []), *tail])


def _fitting(repl, parts: list[str]) -> str:
    return joined(parts, repl.screen.get_size().columns - 1)
