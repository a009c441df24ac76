"""A tool call that waits for the user: the question, and what a line typed at it answers. Nothing less than a whole
line, begun after the question could be read, decides; whatever is typed or pasted without Enter does not."""

import re
import time

from v4cli.agent.approval import Answer, Choice, Request
from v4cli.agent.tools import Kind
from v4cli.clean import on_one_line, visible
from v4cli.repl.items import Ask
from v4cli.repl.render import summary

READING = 0.5  # seconds that a question takes to read: a line begun sooner was meant for the model
NAMED = 60  # characters of what a question is about
ANSWERS = {
    "y": (Choice.YES, "yes, once"),
    "s": (Choice.SESSION, "yes, for this session"),
    "a": (Choice.ALWAYS, "always in this folder"),
    "n": (Choice.NO, "no; other words are a no, too, and the model is told them"),
}
DOES = {Kind.EDIT: "change", Kind.RUN: "run", Kind.NETWORK: "call with"}
RULES = ("s", "a")  # answers that make a rule


class Asking:
    """One question on the screen."""

    def __init__(self, item: Ask):
        self.item = item
        self.read_at = time.monotonic() + READING

    def question(self, draw, answering: bool) -> str:
        """The lines below the call, with the answers once they can be read; `answering`: the input is one."""
        text = question(self.item.request) if time.monotonic() >= self.read_at else about(self.item.request)
        if not answering:
            text = about(self.item.request) + "\n  (Enter sends what you are typing, which waits; then you can answer)"
        return draw.text(text, "yellow")

    def no(self) -> Answer:
        return Answer(Choice.NO)


def answer_to(line: str, request: Request) -> Answer | None:
    """What a whole line answers; None if that is not possible here."""
    text = line.strip()
    word = text.lower()
    for key, (choice, _) in ANSWERS.items():
        if word in (key, choice):
            return Answer(choice) if key in _offered(request) else None
    if reason := re.match(r"no?\s*[,;:.!]\s*(?=\w)", text, re.IGNORECASE):
        return Answer(Choice.NO, text[reason.end() :])
    return Answer(Choice.WORDS, text) if text else None


def about(request: Request) -> str:
    """What is asked: the tool, what it would work on, and whether that is safe."""
    given = request.call.arguments
    what = next((str(given[name]) for name in ("command", "path", "url") if name in given), summary(request.preview))
    what = visible(on_one_line(what))
    what = what if len(what) <= NAMED else what[: NAMED - 1] + "…"
    unsafe = f"not sandboxed ({request.unprotected}): " if request.unprotected else ""
    return f"{unsafe}{request.call.name}: {DOES[request.call.tool.kind]} {what}?"


def question(request: Request) -> str:
    """The same with the answers."""
    rules = {key: f": {request.pattern}" for key in RULES}
    lines = [f"  {key}  {ANSWERS[key][1]}{rules.get(key, '')}" for key in _offered(request)]
    return "\n".join([about(request), *lines, "  then Enter"])


def choices(request: Request) -> str:
    """The answers in a few words."""
    return f"type {', '.join(_offered(request))} and Enter, or other words for the model"


def _offered(request: Request) -> list[str]:
    """The answers that make sense: rules only where there is a pattern."""
    return [key for key in ANSWERS if request.pattern or key not in RULES]
