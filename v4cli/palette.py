"""Colours that can be read on a dark and on a light background: of the 256 colours of terminals those that are fixed
and lie in the middle between black and white. The first sixteen are whatever a terminal makes of them, yellow on white
among it."""

from functools import cache

NUMBERS = {"red": 160, "green": 28, "yellow": 130, "blue": 32, "magenta": 133, "cyan": 30, "dim": 244}
DIM = "#808080"  # number 244
_MARKDOWN = {
    "code": "bold cyan", "code_block": "cyan", "block_quote": "magenta", "list": "none", "item.number": "cyan",
    "hr": "dim", "link": "blue", "link_url": "underline blue", "table.border": "dim", "table.header": "bold",
    "kbd": "bold",
}  # fmt: skip
_CODE = {
    "Text.Whitespace": "dim", "Comment": "dim", "Keyword": "blue", "Operator.Word": "blue", "Name.Builtin": "cyan",
    "Name.Function": "magenta", "Name.Class": "magenta", "Name.Namespace": "cyan", "Name.Exception": "cyan",
    "Name.Decorator": "magenta", "Name.Tag": "blue", "Name.Attribute": "cyan", "Literal.String": "green",
    "Literal.Number": "yellow", "Generic.Deleted": "red", "Generic.Inserted": "green", "Generic.Subheading": "cyan",
    "Error": "red",
}  # fmt: skip


@cache
def theme():
    """The same by name for rich: names of colours mean these, and dim is a grey."""
    from rich.theme import Theme

    return Theme({name: _style(name) for name in NUMBERS} | {f"markdown.{k}": _style(v) for k, v in _MARKDOWN.items()})


@cache
def code_theme():
    """For rich's Syntax: no background of its own."""
    from pygments.token import string_to_tokentype
    from rich.style import Style
    from rich.syntax import ANSISyntaxTheme

    return ANSISyntaxTheme({string_to_tokentype(name): Style.parse(_style(of)) for name, of in _CODE.items()})


def _style(words: str) -> str:
    """A style of rich, with numbers for names of colours."""
    return " ".join(f"color({NUMBERS[word]})" if word in NUMBERS else word for word in words.split())
