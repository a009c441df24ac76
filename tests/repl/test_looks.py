"""How the terminal looks: on dark and light backgrounds, in windows of three sizes, without colours; and is it true."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.style import Style
from terminal import Terminal

from v4cli import palette
from v4cli.repl import screen
from v4cli.repl.live import Live
from v4cli.repl.render import Renderer

SLOW = (sys.executable, str(Path(__file__).with_name("slow_chat.py")), "chat")
BACKGROUNDS = "000000", "ffffff"
LEAST_CONTRAST = 3.0  # what WCAG asks of large text and of marks
STEPS = 0, 95, 135, 175, 215, 255  # of a channel in the cube of 216 colours
TEXT = """# Report

Some `code`, **bold**, *more* and [a link](http://x.y).

> quoted

1. one

| name | value |
|---|--:|
| alpha | 1 |
| beta | 22 |

```python
@wrapped
def f(x: int) -> str:  # a comment
    raise ValueError("no" + str(1.5))
```

---
"""


@pytest.fixture
def place(tmp_path):
    """A workspace, and the environment of its own."""
    work = tmp_path / "work"
    (work / "docs").mkdir(parents=True)
    (work / "docs" / "plan.txt").write_text("step\n")
    return {"cwd": str(work), "env": {"V4_HOME": str(tmp_path / "home")}}


def luminance(colour: str) -> float:
    """Of rrggbb, by WCAG."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def of_number(n: int) -> str:
    """rrggbb of one of the 256 colours whose values are fixed."""
    assert 16 <= n <= 255, "the first sixteen are anything"
    if n >= 232:
        return f"{8 + 10 * (n - 232):02x}" * 3
    return "".join(f"{STEPS[(n - 16) // power % 6]:02x}" for power in (36, 6, 1))


def idle(terminal: Terminal) -> bool:
    return any(row.startswith("nano ·") for row in terminal.rows)


def readable(terminal: Terminal) -> int:
    """Checks every cell on the screen on both backgrounds; how many have a colour of their own."""
    coloured = 0
    for y in range(terminal.screen.lines):
        for cell in (terminal.screen.buffer[y][x] for x in range(terminal.screen.columns)):
            if cell.data.strip() and (cell.fg, cell.bg) != ("default", "default"):
                coloured += 1
                assert cell.bg == "default" or not cell.fg.isalpha(), f"a block: {cell}"
                for background in BACKGROUNDS if cell.bg == "default" else (cell.bg,):
                    assert contrast(cell.fg, background) >= LEAST_CONTRAST, cell
    return coloured


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_colour_can_be_read_on_both_backgrounds(background):
    assert palette.DIM == "#" + of_number(palette.NUMBERS["dim"])
    for name, number in palette.NUMBERS.items():
        assert contrast(of_number(number), background) >= LEAST_CONTRAST, name


@pytest.fixture
def colours(monkeypatch):
    """A terminal of 256 colours. rich keeps the codes that a style had when it was drawn first, by any terminal."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLORTERM", raising=False)
    for kept in (palette.theme, palette.code_theme, Style.parse, Style._add):
        kept.cache_clear()


def test_what_is_drawn_has_these_colours_only(colours):
    draw = Renderer(lambda: 60, colour=True)
    drawn = draw.markdown(TEXT) + draw.exact("--- a\n+++ b\n@@ -1 +1 @@\n-one\n+two") + draw.thought("so")
    drawn += draw.call("run_shell", "{}", "?", "yellow") + draw.result("no", ok=False) + draw.asked("why?")
    used = set()
    for codes in re.findall(r"\x1b\[([0-9;]*)m", drawn):
        rest = re.sub(r"38;5;(\d+)", lambda colour: used.add(int(colour[1])) or "", codes)
        assert not {code for code in rest.split(";") if code} - {"0", "1", "3", "4", "9", "49"}, codes
    assert len(used) >= 6 and used <= set(palette.NUMBERS.values())


def test_tables_have_no_gaps_and_formulas_stay_as_they_are_written():
    draw = Renderer(lambda: 60, colour=False)
    drawn = draw.markdown(TEXT)
    assert re.search(r"one\n\n ?name +value\n[─ ]+\nalpha +1\nbeta +22\n\n", drawn), drawn
    for text in (r"\(a_1 * b * c_2\)", r"\[x_{i} = \frac{1}{2}\]", r"an open \( stays", r"\) and \]"):
        assert draw.markdown(text) == text
    assert draw.markdown("\\[\na *b* \\\\\nc\n\\]") == "\\[\na *b* \\\\\nc\n\\]"
    assert draw.markdown(r"\*no emphasis\*") == "*no emphasis*"


def test_reasoning_is_told_from_the_answer_without_colours():
    from v4cli.chat.parser import Text, Thinking

    view = Live(Renderer(lambda: 40, colour=False))
    view.take(Thinking("one thought that is longer than a line of it\n\nanother"))
    assert all(line.startswith("┊") for line in view.view(20).split("\n") if line)
    view = Live(Renderer(lambda: 40, colour=False))
    view.take(Text("the answer"))
    assert "┊" not in view.view(20)


@pytest.mark.parametrize("columns, rows", [(80, 24), (40, 15)])
def test_the_first_screen_says_what_answers_and_what_to_type(place, columns, rows):
    with Terminal(columns=columns, rows=rows, **place) as terminal:
        terminal.wait(idle)
        first_screen(terminal)
        terminal.type("\x04")
        assert terminal.end() == 0


def first_screen(terminal: Terminal) -> None:
    """Checks what it says and that it can be read."""
    text = " ".join(terminal.text.split())
    assert text.startswith("nano, 6.6 M parameters: the toy that comes with v4")
    assert re.search(r"runs on this CPU \(\w+, 1 thread\), all of it in memory; about [\d,.]+ tokens/s", text)
    assert "context 1,048,576 tokens" in text and "asks before it changes a file" in text
    assert re.search(r"flash here [\d.]+ GiB, \d+% of its experts|memory are missing", text)
    assert "try what is 17*23?" in text and "(/help tells the rest)" in text
    assert "approve: ask" in terminal.rows[[r.startswith("nano ·") for r in terminal.rows].index(True)]
    assert readable(terminal) > 20


def test_v4_alone_says_what_else_it_can_do_and_how_fast_it_was(place):
    figures = Path(place["env"]["V4_HOME"]) / "state" / "figures.json"
    figures.parent.mkdir(parents=True)
    nano = Path(palette.__file__).parent / "nano" / "checkpoint"
    figures.write_text(json.dumps({f"tokens/s of {nano} cpu": 77.7, "bytes/s of RAM": 4e10, "bytes/s of the SSD": 3e9}))
    with Terminal(program=(sys.executable, "-m", "v4cli"), **place) as terminal:
        terminal.wait(idle)
        text = " ".join(terminal.text.split())
        assert "talk what is 17*23?" in text and 'ask once v4 run "QUESTION"' in text and "v4 pull flash" in text
        assert "about 77.7 tokens/s" in text and re.search(r"flash here .* tokens/s|missing", text)
        terminal.type("\x04")
        assert terminal.end() == 0


def test_a_session_can_be_read_and_its_status_is_true(place):
    with Terminal(columns=200, rows=50, **place) as terminal:
        terminal.wait(idle)
        first_screen(terminal)
        terminal.line("/temp 0")
        terminal.line("what is 17*23?")
        terminal.wait("17*23 = 391")
        terminal.wait(lambda t: idle(t) and "tok/s" in t.text)
        assert readable(terminal) > 20
        terminal.line("/new")
        terminal.wait("nano · 0 of 1M tokens · approve: ask · 0")
        terminal.line("/resume")
        terminal.wait(lambda t: any(re.match(r"nano · [1-9]\d\d of 1M tokens · approve: ask · 0", r) for r in t.rows))
        terminal.type("\x1217")
        terminal.wait("I-search")
        found = [row for row in terminal.rows if row][-2]
        assert found == "› what is 17*23?" and "Ask something" not in terminal.text
        terminal.type("\x03")
        terminal.line("run ls")
        terminal.wait("yes, once")
        assert any(row.startswith("waiting for you") for row in terminal.rows) and readable(terminal) > 40
        terminal.line("/approve all")
        terminal.wait("└")
        terminal.wait(lambda t: any(re.match(r"nano · .* approve: all", row) for row in t.rows))
        terminal.type("\x04")
        assert terminal.end() == 0


def test_resizing_while_it_streams_leaves_no_copies(place):
    slow = place | {"program": SLOW, "env": place["env"] | {"SECONDS": "0.1", "XTERM_VERSION": None, "STY": None}}
    with Terminal(columns=160, **slow) as terminal:
        terminal.line("/temp 0")
        terminal.line("what can you do?")
        terminal.wait("I can chat about myself and about v4, call")
        for columns, rows in ((30, 24), (30, 15), (80, 24)):
            before = len(terminal.raw)
            terminal.resize(columns, rows)
            terminal.wait(lambda t, before=before: len(t.raw) > before + 200)
        terminal.wait(idle, 60)
        text = terminal.text
        assert text.count("I can chat") == text.count("tok/s") == 1 and "answering" not in text, text
        terminal.type("\x04")
        assert terminal.end() == 0


@pytest.mark.parametrize("rows, columns", [(50, 200), (24, 80), (15, 40)])
def test_what_is_in_progress_is_never_higher_than_a_low_window(rows, columns):
    """Else making the window lower would leave copies."""
    asked = []
    repl = SimpleNamespace(
        screen=SimpleNamespace(get_size=lambda: (rows, columns)),
        worker=SimpleNamespace(waiting=[("a", "a")] * 5), live=object(), asking=None,
        buffer=SimpleNamespace(document=SimpleNamespace(line_count=1)),
        view=lambda height: asked.append(height) or "\n".join(["line"] * height),
    )  # fmt: skip
    shown = screen.above_text(repl).count("\n") + 1
    assert shown + len(["gap", "status", "input"]) <= 16 and asked[0] >= 5


def test_a_dumb_terminal_gets_lines_and_words_for_marks(place):
    place["env"]["TERM"] = "dumb"
    with Terminal(prompt="nano is ready", **place) as terminal:
        terminal.line("/temp 0")
        terminal.line("what is 17*23?")
        terminal.wait("(answer) 17*23 = 391")
        assert "(thinking) I need the value" in terminal.text and "try: what is 17*23?" in terminal.text
        terminal.line("/exit")
        assert terminal.end() == 0
    assert b"\x1b" not in terminal.raw
