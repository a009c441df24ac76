"""Text of models, tools and files made harmless for a terminal: nothing in it can move the cursor or hide."""

import re

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC and other strings: titles, clipboard, links
    r"|\x1b[ -/]*[0-~]"
)
# Controls but tab and newline; marks that reorder, hide or break text (bidi, zero width, tags, fillers); halves of
# surrogate pairs. Joiners stay only where they join: between signs of emoji, between letters of scripts that need them.
_HIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_JOINERS, _UNJOINED = "[\u200c\u200d]", "[\x00-\u02ff\u200c\u200d]"
_CONTROLS = re.compile(f"[{_HIDDEN}]|(?<={_UNJOINED}){_JOINERS}|{_JOINERS}(?={_UNJOINED})")


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
