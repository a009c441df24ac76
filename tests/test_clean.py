"""No text of a model, tool or file reaches the terminal with anything in it that the terminal would act on."""

import random

import pytest

from v4cli.clean import harmless, visible
from v4cli.repl.render import Renderer


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]52;c;cm0gLXJm\x1b\\after", "after"),
        ("\x1bP1$r0m\x1b\\x", "x"),
        ("\x1b[2J\x1b[Hcleared", "cleared"),
        ("\x1bc reset", " reset"),
        ("\x9b31mC1", "\ufffd31mC1"),
        ("bell\x07", "bell␇"),
        ("10 %\r20 %\r\n", "10 %\n20 %\n"),
        ("a\u202egnp.exe", "a\ufffdgnp.exe"),
        ("zero\u200bwidth, tag\U000e0041, soft\u00adhyphen", "zero\ufffdwidth, tag\ufffd, soft\ufffdhyphen"),
        ("pay\u200dpal \u200d\u200d", "pay\ufffdpal \ufffd\ufffd"),
        ("می‌خواهم", "می‌خواهم"),
        ("half \ud800", "half \ufffd"),
        ("unfinished \x1b[31", "unfinished 31"),
        ("unfinished \x1b", "unfinished ␛"),
        ("tab\tand\nnewline", "tab\tand\nnewline"),
        ("emoji 👩‍👩‍👧 日本語", "emoji 👩‍👩‍👧 日本語"),
    ],
)
def test_escapes_go_and_other_controls_become_symbols(text, shown):
    assert harmless(text) == shown


def test_what_the_user_decides_on_hides_nothing():
    assert visible("rm x\x1b[8m; echo\r#") == "rm x␛[8m; echo␍#"


def test_no_mixture_of_bytes_gets_through():
    rng = random.Random(2)
    draw = Renderer(lambda: 60, colour=False)
    parts = ["\x1b", "[", "]", "0;", "\x07", "\x1b\\", "\x9b", "\x90", "m", "\r", "\x00", "`", "*", "\n", "a", "- "]
    for _ in range(300):
        text = "".join(rng.choice(parts) for _ in range(20))
        for drawn in (draw.markdown(text), draw.text(text), draw.exact(text), draw.result(text, True),
                      draw.call(text, text), draw.asked(text)):  # fmt: skip
            bad = [c for c in drawn if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160]
            assert not bad, (text, drawn)
