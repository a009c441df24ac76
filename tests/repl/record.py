"""Draws what a real session on nano looks like: `python tests/repl/record.py README-chat.svg` (make recording)."""

import sys
import tempfile
import time
from html import escape
from itertools import groupby
from pathlib import Path

from terminal import Terminal

COLUMNS, ROWS = 84, 44
CELL, LINE, EDGE = 8.4, 18, 16  # pixels
COLOURS = {
    "default": "#d8dee9", "black": "#4c566a", "brightblack": "#7b88a1", "red": "#e06c75", "green": "#98c379",
    "brown": "#e5c07b", "yellow": "#e5c07b", "blue": "#61afef", "magenta": "#c678dd", "cyan": "#56b6c2",
    "white": "#d8dee9",
}  # fmt: skip


def session() -> Terminal:
    """A session that thinks, calls tools and stands before a question."""
    folder = Path(tempfile.mkdtemp())
    (folder / "garden").mkdir()
    (folder / "garden" / "plan.md").write_text("plant two trees\n")
    terminal = Terminal(columns=COLUMNS, rows=ROWS, cwd=str(folder), env={"V4_HOME": str(folder / ".home")})
    terminal.wait("›")
    for line, shows in (
        ("/temp 0", "temperature: 0.0"), ("who are you?", "I am nano"), ("what is 17*23?", "17*23 = 391"),
        ("list garden", "contains: plan.md"), ("run ls -l", "yes, once"),
    ):  # fmt: skip
        terminal.line(line)
        terminal.wait(shows)
    return terminal


def svg(terminal: Terminal) -> str:
    """The screen as a picture that any browser draws."""
    screen = terminal.screen
    width, height = 2 * EDGE + COLUMNS * CELL, 2 * EDGE + ROWS * LINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" font-size="14" '
        f'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace">',
        f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#22272e"/>',
    ]
    for y in range(ROWS):
        row = screen.buffer[y]
        for style, cells in groupby(range(COLUMNS), lambda x, row=row: (row[x].fg, row[x].bold)):
            xs = list(cells)
            text = "".join(row[x].data for x in xs)
            if text.strip():
                parts.append(_run(text, xs[0], y, *style))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _run(text: str, x: int, y: int, colour: str, bold: bool) -> str:
    fill = COLOURS.get(colour, f"#{colour}")
    weight = ' font-weight="bold"' if bold else ""
    shown = escape(text.rstrip())
    return (
        f'<text x="{EDGE + x * CELL:.1f}" y="{EDGE + y * LINE + 14}" fill="{fill}"{weight} xml:space="preserve" '
        f'textLength="{len(text.rstrip()) * CELL:.1f}">{shown}</text>'
    )


if __name__ == "__main__":
    shown = session()
    time.sleep(1.2)  # the status line counts seconds
    shown.pump()
    Path(sys.argv[1]).write_text(svg(shown))
    shown.type("\x03\x04")
    shown.end()
