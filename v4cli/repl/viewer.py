"""The whole conversation on a screen of its own; reasoning, calls and results can be folded."""

from dataclasses import dataclass

from prompt_toolkit.application import Application
from prompt_toolkit.data_structures import Point
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.layout import FormattedTextControl, HSplit, Layout, Window

from v4cli.chat.messages import calls_in
from v4cli.clean import harmless
from v4cli.repl.render import Renderer, summary

HELP = "↑ ↓ PgUp PgDn move · Enter unfolds · a all · q back"
FOLDED = ("reasoning", "call", "result")


@dataclass
class Section:
    """A part of a message; `open`: its text is shown."""

    kind: str
    title: str
    text: str
    open: bool


def sections(messages: list[dict]) -> list[Section]:
    """The conversation in parts."""
    parts = []
    for message in messages:
        text, role = message.get("content") or "", message["role"]
        if role == "tool":
            parts.append(Section("result", f"result, {_lines(text)}", text, False))
            continue
        if reasoning := message.get("reasoning_content"):
            parts.append(Section("reasoning", f"reasoning, {_lines(reasoning)}", reasoning, False))
        if text:
            parts.append(Section(role, {"user": "you"}.get(role, role), text, True))
        for name, arguments, fault in calls_in(message):
            title = f"{name}{' (not whole)' if fault else ''}  {' '.join(summary(arguments).split())}"
            parts.append(Section("call", title, summary(arguments), False))
    return parts


def _lines(text: str) -> str:
    n = text.rstrip("\n").count("\n") + 1
    return f"{n:,} line{'s' * (n != 1)}"


class Pages:
    """The lines of all sections, and the one the cursor is on."""

    def __init__(self, parts: list[Section], draw: Renderer):
        self.parts, self.draw = parts, draw
        self.line = self.top = self.width = 0
        self.lines: list[tuple[str, int]] = []  # ANSI text, number of the section
        self.layout()
        self.line = len(self.lines) - 1

    def layout(self) -> None:
        """Draw everything anew, as wide as the terminal is now."""
        self.lines, self.width = [], self.draw.width
        for number, part in enumerate(self.parts):
            mark = "▾" if part.open else "▸"
            style = "dim" if part.kind in FOLDED else "bold"
            title = harmless(part.title)[: self.draw.width - 3]
            self.lines.append((self.draw.text(f"{mark} {title}", style), number))
            if part.open:
                draw = self.draw.markdown if part.kind == "assistant" else self.draw.text
                self.lines += [("  " + line, number) for line in draw(part.text).split("\n")]
        self.line = max(0, min(self.line, len(self.lines) - 1))

    def visible(self, height: int) -> str:
        """The lines on a screen of this height, the one under the cursor among them."""
        if self.draw.width != self.width:
            self.layout()
        self.top = min(max(self.top, self.line - height + 1), self.line)
        return "\n".join(line for line, _ in self.lines[self.top : self.top + height])

    def move(self, by: int) -> None:
        self.line = max(0, min(self.line + by, len(self.lines) - 1))

    def fold(self) -> None:
        """Fold or unfold the section under the cursor."""
        if self.lines:
            number = self.lines[self.line][1]
            self.parts[number].open = not self.parts[number].open
            self.layout()
            self.line = next(i for i, (_, n) in enumerate(self.lines) if n == number)

    def fold_all(self) -> None:
        """Unfold everything, or fold again what can be."""
        unfold = not all(part.open for part in self.parts)
        for part in self.parts:
            part.open = unfold or part.kind not in FOLDED
        self.layout()


def viewer(messages: list[dict], draw: Renderer, screen) -> Application:
    """The application that shows it; it runs until the user goes back."""
    pages = Pages(sections(messages), draw)
    keys = KeyBindings()
    page = lambda: max(1, screen.get_size().rows - 2)  # noqa: E731
    for names, by in (
        (("up", "k"), lambda: -1), (("down", "j"), lambda: 1), (("pageup", "b"), lambda: -page()),
        (("pagedown",), page), (("home", "g"), lambda: -len(pages.lines)), (("end", "G"), lambda: len(pages.lines)),
    ):  # fmt: skip
        for name in names:
            keys.add(name)(lambda event, by=by: pages.move(by()))
    for name in ("enter", "space", "left", "right"):
        keys.add(name)(lambda event: pages.fold())
    keys.add("a")(lambda event: pages.fold_all())
    for name in ("q", "escape", "c-o", "c-c", "c-d"):
        keys.add(name, eager=True)(lambda event: event.app.exit())

    control = FormattedTextControl(
        lambda: ANSI(pages.visible(screen.get_size().rows - 1)),
        get_cursor_position=lambda: Point(0, pages.line - pages.top),
        focusable=True,
    )
    rows = [Window(control, cursorline=True), Window(FormattedTextControl(HELP), height=1, style="class:status")]
    return Application(layout=Layout(HSplit(rows)), key_bindings=keys, full_screen=True, output=screen)
