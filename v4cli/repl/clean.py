"""Text of models, tools and files made harmless for a terminal: nothing in it can move the cursor or hide."""

import re

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC and other strings: titles, clipboard, links
    r"|\x1b[ -/]*[0-~]"
)
# controls but tab and newline; marks that reorder or break lines; halves of surrogate pairs
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> str:
    """The text without escape sequences; other controls as symbols, carriage returns as newlines."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return visible(_ESCAPES.sub("", text))


def visible(text: str) -> str:
    """The text with every control character as a symbol: what a user decides on must not hide anything."""
    return _CONTROLS.sub(_symbol, text)


def beginning(text: str, n_lines: int) -> list[str]:
    """The first lines of a text, and how many more there are."""
    lines = text.rstrip("\n").split("\n")
    more = len(lines) - n_lines
    return lines[:n_lines] + ([f"… {more:,} more line{'s' * (more > 1)}"] if more > 0 else [])


def _symbol(match: re.Match) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"
