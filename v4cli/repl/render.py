"""From text to lines with colours, as wide as the terminal is now: markdown, reasoning, tool calls, diffs."""

import io
import json
import re
from collections.abc import Callable

from markdown_it import MarkdownIt
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.markdown import CodeBlock, Heading, Markdown, TableElement
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from v4cli import palette
from v4cli.clean import harmless, visible

WIDEST = 120  # columns: longer lines are hard to read
RESULT_LINES = 4  # of a result that is folded
BAR = "┊"  # at the left of reasoning
LARGE, LINES = 1 << 16, 500  # characters, lines: what takes long to lay out
_TRAILING = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)


class _Heading(Heading):
    """Bold and at the left."""

    def __rich_console__(self, console, options):
        yield Text("#" * int(self.tag[1]) + " " + self.text.plain, style="bold")


class _Code(CodeBlock):
    """Without a frame, so that pieces of a long block join."""

    def __rich_console__(self, console, options):
        lexer, theme = self.lexer_name or "text", palette.code_theme()
        yield Syntax(str(self.text).rstrip(), lexer, theme=theme, word_wrap=True, background_color="default", padding=0)


class _Table(TableElement):
    """Without empty lines above and below, which the blocks around it have already."""

    def __rich_console__(self, console, options):
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, border_style="markdown.table.border")
        for cell in self.header.row.cells if self.header and self.header.row else ():
            table.add_column(cell.content, header_style="markdown.table.header", overflow="fold")
        for row in self.body.rows if self.body else ():
            table.add_row(*(cell.content for cell in row.cells))
        yield table


def _formula(state, silent: bool) -> bool:
    r"""\( \) and \[ \], with all that is between them, as they are written: no escapes, no emphasis in them."""
    mark = state.src[state.pos : state.pos + 2]
    if mark not in ("\\(", "\\)", "\\[", "\\]"):
        return False
    close = state.src.find({"\\(": "\\)", "\\[": "\\]"}.get(mark, mark), state.pos)
    end = max(close, state.pos) + 2
    if not silent:
        state.push("text", "", 0).content = state.src[state.pos : end]
    state.pos = end
    return True


_PARSER = MarkdownIt().enable("strikethrough").enable("table")
_PARSER.inline.ruler.before("escape", "formula", _formula)


class _Markdown(Markdown):
    elements = Markdown.elements | {
        "heading_open": _Heading, "fence": _Code, "code_block": _Code, "table_open": _Table,
    }  # fmt: skip

    def __init__(self, text: str):
        super().__init__("", hyperlinks=False)
        self.markup, self.parsed = text, _PARSER.parse(text)


class Renderer:
    """`width()`: columns of the terminal; `colour`: whether styles may be used."""

    def __init__(self, width: Callable[[], int], colour: bool):
        self.terminal_width = width
        system = "auto" if colour else None
        self.console = Console(
            file=io.StringIO(), force_terminal=True, color_system=system, highlight=False, markup=False, emoji=False,
            theme=palette.theme(),
        )  # fmt: skip

    @property
    def width(self) -> int:
        return max(8, min(self.terminal_width(), WIDEST))

    def ansi(self, thing, width: int | None = None) -> str:
        """Anything rich can draw; the last line without a newline, no spaces at ends of lines."""
        with self.console.capture() as captured:
            self.console.print(thing, width=width or self.width, end="")
        return _TRAILING.sub(r"\1", captured.get().rstrip("\n"))

    def markdown(self, text: str) -> str:
        return self.ansi(_Markdown(harmless(text)))

    def text(self, text: str, style: str = "") -> str:
        if len(text) > LARGE:  # the terminal breaks lines faster
            return harmless(text)
        return self.ansi(Text(harmless(text), style=style, overflow="fold"))

    def dim(self, text: str) -> str:
        return self.text(text, "dim")

    def thought(self, text: str) -> str:
        """Reasoning: behind a bar, which tells it from the answer without colours."""
        if len(text) > LARGE:
            return self.dim(text)
        lines = self.ansi(Text(harmless(text), style="dim", overflow="fold"), self.width - 2).split("\n")
        bar = self.dim(BAR)
        return "\n".join(f"{bar} {line}" if line else bar for line in lines)

    def rows(self, rows: list[tuple[str, str]]) -> str:
        """A title, then labels with texts beside them, or below where that would be narrow."""
        (_, title), *rest = rows
        parts = [Text(harmless(title), style="bold", overflow="fold")]
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for label, text in rest:
            grid.add_row(Text(label), Text(harmless(text)))
        return self.ansi(Group(*parts, grid))

    def asked(self, text: str) -> str:
        """A line of the user's."""
        return self.ansi(Text("› " + harmless(text).replace("\n", "\n  "), style="bold", overflow="fold"))

    def exact(self, text: str) -> str:
        """What the user decides on, with nothing hidden; lines of a diff coloured; of very much, its beginning."""
        lines = visible(text[:LARGE]).split("\n")[:LINES]
        if rest := len(text) - sum(len(line) + 1 for line in lines) + 1:
            lines.append(f"[{rest:,} more characters: Ctrl-O shows the call in full]")
        if not any(line.startswith("@@") for line in lines):
            return self.ansi(Text("\n".join(lines), overflow="fold"))
        return self.ansi(Group(*(Text(line, style=_diff_style(line), overflow="fold") for line in lines)))

    def call(self, name: str, arguments: str, mark: str = "●", style: str = "cyan") -> str:
        """A tool call: its name and its arguments, as far as they are there, on one line."""
        head = Text.assemble((mark + " ", style), (harmless(name), "bold"))
        head.append("  " + harmless(summary(arguments)).replace("\n", "⏎"), style="dim")
        head.truncate(self.width, overflow="ellipsis")
        return self.ansi(head)

    def result(self, text: str, ok: bool) -> str:
        """The first lines of a call's result."""
        lines = harmless(text).rstrip("\n").split("\n")
        more = len(lines) - RESULT_LINES
        shown = lines if more <= 1 else lines[:RESULT_LINES]
        folded = [Text(("└ " if i == 0 else "  ") + line) for i, line in enumerate(shown)]
        if more > 1:
            folded.append(Text(f"  … {more:,} more lines, Ctrl-O shows them"))
        for line in folded:
            line.stylize("dim" if ok else "red")
            line.truncate(self.width, overflow="ellipsis")
        return self.ansi(Group(*folded))


def _diff_style(line: str) -> str:
    if line.startswith(("+++", "---")):
        return "bold"
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")


def summary(arguments: str) -> str:
    """Arguments in JSON, perhaps cut off, for people: the value of a single one, else name: value."""
    values = None
    for end in ("", '"}', "}", '""}', "null}"):
        try:
            values = json.loads(arguments + end)
            break
        except (ValueError, RecursionError):
            continue
    if not isinstance(values, dict):
        return arguments
    texts = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in values.items()}
    return next(iter(texts.values())) if len(texts) == 1 else ", ".join(f"{k}: {v}" for k, v in texts.items())
