"""Text of models, tools and files made harmless for a terminal: nothing in it can move the cursor or hide."""

import json
import re

# What terminals act on, each within bounds: longer ones are shown.
_ESCAPES = re.compile(
    r"\x1b\[[0-?]{0,64}[ -/]{0,8}[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b\n]{0,1024}(?:\x07|\x1b\\)"  # OSC and other strings: titles, clipboard, links
    r"|\x1b[ -/]{0,8}[0-~]"
)
# Controls but tab and newline; marks that reorder, hide or break text (bidi, zero width, tags, fillers); halves of
# surrogate pairs; what is no character.
_HIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Joiners stay only where they join: between signs of emoji, between letters of scripts that need them. Variation
# selectors stay only behind what has variants.
_JOINERS = "[\u200c\u200d]"
_UNJOINED = (  # Latin, Greek, Cyrillic, Armenian, Hebrew, Georgian, Cherokee, Chinese, Japanese, Korean and their like
    "[\x00-\u05ff\u10a0-\u11ff\u13a0-\u169f\u1c80-\u1cbf\u1d00-\u206f\u2c00-\u302f\u3031-\ua7ff\uab30-\uabbf"
    "\uac00-\ud7ff\uff00-\uff9f\U00020000-\U0003ffff]"
)
_VARIED = "[0-9#*\u00a9\u00ae\u0300-\ufdff\ufe10-\U0010ffff]"
_CONTROLS = re.compile(
    f"[{_HIDDEN}]|(?<={_UNJOINED}){_JOINERS}|{_JOINERS}(?={_UNJOINED})|(?<!{_VARIED})[\ufe00-\ufe0f]"
)
# The end of a piece whose meaning depends on what follows it.
_UNFINISHED = re.compile(r"(?:\x1b(?:\[[0-?]{0,64}[ -/]{0,8}|[\]PX^_][^\x07\x1b\n]{0,1024}\x1b?|[ -/]{0,8})|\r)\Z")
_JOINING = re.compile(f"(?<!{_JOINERS}){_JOINERS}+\\Z")


def harmless(text: str) -> str:
    """The text without escape sequences; other controls as symbols, carriage returns as newlines."""
    return visible(_plain(text))


class Cleaner:
    """The same for a text that comes in pieces, however it is cut. What may go on as an escape sequence is held back
    until that is known, never beyond the end of a line."""

    def __init__(self):
        self._unfinished = self._joining = self._last = ""

    def feed(self, text: str) -> str:
        """What can be shown now."""
        text, self._unfinished = _without_end(_UNFINISHED, self._unfinished + text)
        text, self._joining = _without_end(_JOINING, self._joining + _plain(text))
        before, self._last = self._last, text[-1:] or self._last
        return visible(before + text)[len(before) :]


def visible(text: str) -> str:
    """The text with every control character as a symbol: what a user decides on must not hide anything."""
    return _CONTROLS.sub(_symbol, text)


def escaped(text: str) -> str:
    """JSON whose hidden characters are escapes."""
    return _CONTROLS.sub(lambda match: json.dumps(match[0])[1:-1], text)


def on_one_line(text: str) -> str:
    """The text with a space for every break and tab."""
    return re.sub(r"\s*[\r\n\t]\s*", " ", text)


def beginning(text: str, n_lines: int) -> list[str]:
    """The first lines of a text, and how many more there are."""
    lines = text.rstrip("\n").split("\n")
    more = len(lines) - n_lines
    return lines[:n_lines] + ([f"… {more:,} more line{'s' * (more > 1)}"] if more > 0 else [])


def _plain(text: str) -> str:
    return _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _without_end(end: re.Pattern, text: str) -> tuple[str, str]:
    """A text before what the pattern finds at its end, and that."""
    found = end.search(text)
    return (text[: found.start()], found[0]) if found else (text, "")


def _symbol(match: re.Match) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"
