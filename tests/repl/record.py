"""Draws what real runs look like: `python tests/repl/record.py README-chat.svg docs/pictures` (make recording)."""

import re
import signal
import subprocess
import sys
import tempfile
import time
from html import escape
from itertools import groupby
from pathlib import Path

from terminal import Terminal

from v4cli.bench.synthetic import write_synthetic
from v4cli.model.config import V4Config
from v4cli.paths import NANO

TESTS = Path(__file__).parent.parent
sys.path += [str(TESTS), str(TESTS / "pull")]  # whose hub a model is pulled from

V4 = (sys.executable, "-m", "v4cli")
PATIENCE_S = 300.0
CELL, LINE, EDGE = 8.4, 18, 16  # pixels
COLOURS = {
    "default": "#d8dee9", "black": "#4c566a", "brightblack": "#7b88a1", "red": "#e06c75", "green": "#98c379",
    "brown": "#e5c07b", "yellow": "#e5c07b", "blue": "#61afef", "magenta": "#c678dd", "cyan": "#56b6c2",
    "white": "#d8dee9",
}  # fmt: skip


def place(**more: str | None) -> dict:
    """A workspace of its own, and what a Terminal runs there in."""
    folder = Path(tempfile.mkdtemp())
    (folder / "garden").mkdir()
    (folder / "garden" / "plan.md").write_text("plant two trees\n")
    return {"cwd": str(folder), "env": {"V4_HOME": str(folder / ".home"), "NO_COLOR": None} | more}


def talked(lines: list[tuple[str, str]], *options: str, columns: int, rows: int) -> Terminal:
    """A conversation with nano: lines, each with what it is waited for."""
    terminal = Terminal(*options, columns=columns, rows=rows, **place())
    for line, shows in [("", "nano ·"), *lines]:
        if line:
            terminal.line(line)
        terminal.wait(shows, PATIENCE_S)
    time.sleep(1.2)  # the status line counts seconds
    terminal.pump()
    return terminal


def chat() -> Terminal:
    """One that thinks, calls tools and stands before a question."""
    lines = [("/temp 0", "temperature: 0.0"), ("who are you?", "I am nano"), ("what is 17*23?", "17*23 = 391")]
    lines += [("list garden", "contains: plan.md"), ("run ls -l", "yes, once")]
    return talked(lines, columns=84, rows=44)


def first() -> Terminal:
    """The first screen of `v4` alone."""
    terminal = Terminal(program=V4, columns=84, rows=14, **place())
    terminal.wait("nano ·", PATIENCE_S)
    return terminal


def diff() -> Terminal:
    """A change that waits: nano is held to the only tool it has by a grammar."""
    lines = [("/temp 0", "temperature: 0.0"), ("run ls -l", "yes, once")]
    return talked(lines, "--tools", "write_file", "--constrain", columns=84, rows=32)


def pull() -> Terminal:
    """A pull on its way, from a hub on this machine that is slow."""
    from hub_server import serving
    from pulling import REPO, by_block

    source = by_block(write_synthetic(Path(tempfile.mkdtemp()) / "source", V4Config.load(NANO / "config.json")))
    with serving() as hub:
        hub.add(REPO, source)
        size = sum(map(len, hub.repos[REPO].files.values()))
        hub.rate = size / 60
        there = place(**hub.environment(Path(tempfile.mkdtemp())))
        terminal = Terminal("pull", REPO, "--name", "random", columns=84, rows=12, program=V4, prompt="", **there)
        terminal.wait(lambda t: any(re.match(r"random .*\b[3-9]\d% · part", row) for row in t.rows), PATIENCE_S)
        end(terminal)
    return terminal


def end(terminal: Terminal) -> None:
    """End what runs there."""
    terminal.child.kill(signal.SIGKILL)
    terminal.child.wait()


def bench(path: Path) -> None:
    """The plot of a context that grows, as a PNG of a real run: what it measured, and how busy the machine was, stands
    on it."""
    command = [*V4, "bench", "--ctx", "256k", "--fill", "synthetic", "-n", "16", "--plot", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def svg(terminal: Terminal) -> str:
    """The screen as a picture that any browser draws."""
    screen = terminal.screen
    width, height = 2 * EDGE + screen.columns * CELL, 2 * EDGE + screen.lines * LINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" font-size="14" '
        f'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace">',
        f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#22272e"/>',
    ]
    for y in range(screen.lines):
        row = screen.buffer[y]
        for style, cells in groupby(range(screen.columns), lambda x, row=row: (row[x].fg, row[x].bold)):
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


def main(readme: Path, folder: Path) -> None:
    """Draw all pictures, that of the README apart from the others."""
    bench(folder / "bench.png")
    for path, scene in ((readme, chat), *((folder / f"{scene.__name__}.svg", scene) for scene in (first, diff, pull))):
        terminal = scene()
        path.write_text(svg(terminal))
        if terminal.child.isalive():
            end(terminal)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
