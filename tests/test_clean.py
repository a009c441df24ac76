"""No text of a model, tool or file reaches the terminal with anything in it that the terminal would act on."""

import json
import random
import unicodedata

import pytest

from v4cli.clean import Cleaner, escaped, harmless, on_one_line, visible
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
        ("р\u200cа α\u200dβ 中\u200d文", "р\ufffdа α\ufffdβ 中\ufffd文"),
        ("می‌خواهم", "می‌خواهم"),
        ("half \ud800", "half \ufffd"),
        ("unfinished \x1b[31", "unfinished 31"),
        ("unfinished \x1b", "unfinished ␛"),
        ("tab\tand\nnewline", "tab\tand\nnewline"),
        ("a string \x1b]0;over\nlines\x07", "a string 0;over\nlines␇"),
        ("note\ufff9a\ufffab\ufffb", "note\ufffda\ufffdb\ufffd"),
        ("a\ufe00\ufe0f hidden", "a\ufffd\ufffd hidden"),
        ("1\ufe0f\u20e3 ❤\ufe0f \u845b\U000e0100", "1\ufe0f\u20e3 ❤\ufe0f \u845b\ufffd"),
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


def test_no_format_control_or_separator_gets_through():
    joiners = {0x200C, 0x200D}  # which depend on what they join
    visible_ones = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}  # signs before numbers
    through = {
        code
        for code in range(0x110000)
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp") and visible(chr(code)) == chr(code)
    }
    assert through - joiners - visible_ones == {ord("\n"), ord("\t")}


def test_pieces_are_cleaned_like_the_whole_however_they_are_cut():
    rng = random.Random(3)
    parts = ["\x1b", "[", "]", "0;", "\x07", "\x1b\\", "\\", "\x9b", "m", "\r", "\n", "a", "1", "👩", "\u200d",
             "\ufe0f", "\u202e", "P", " ", "\x00", "س", "\u200c"]  # fmt: skip
    for _ in range(3000):
        text = "".join(rng.choice(parts) for _ in range(rng.randrange(14))) + "\n"
        cleaner, shown, at = Cleaner(), "", 0
        while at < len(text):
            step = rng.randrange(1, 5)
            shown += cleaner.feed(text[at : at + step])
            at += step
        assert shown == harmless(text)


def test_nothing_is_held_back_beyond_a_line_or_without_end():
    cleaner = Cleaner()
    assert cleaner.feed("a\x1b]0;title") == "a" and cleaner.feed(" goes on\nb") == "0;title goes on\nb"
    assert cleaner.feed("\x1b]" + "x" * 2000) == "x" * 2000


def test_json_keeps_its_value_when_what_is_hidden_is_escaped():
    value = {"a\u202e": "\x1b\x7f\x9b\u200b\U000e0041 é 日本\n"}
    text = escaped(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value and visible(text) == text and "日本" in text


def test_one_line_stays_one():
    assert on_one_line("a\r\n  hint: b\tc") == "a hint: b c"
