"""A tool call that waits for the user: the question, the keys that answer it, and what they mean."""

import time

from v4cli.agent.approval import Answer, Choice, Request
from v4cli.agent.tools import Kind
from v4cli.repl.choices import CHOICES
from v4cli.repl.items import Ask

QUIET = 0.7  # seconds without typing before a single key decides: it may have been meant for the input
MEANING = {"y": Choice.YES, "s": Choice.SESSION, "a": Choice.ALWAYS, "n": Choice.NO}


class Asking:
    """One question on the screen. `telling`: the user is writing why not."""

    def __init__(self, item: Ask, typed_at: float):
        self.item, self.typed_at = item, typed_at
        self.since = time.monotonic()
        self.telling = False

    @property
    def listens(self) -> bool:
        """Whether keys decide: not while the user writes, or wrote just when the question came."""
        return not self.telling and (self.since - self.typed_at > QUIET or time.monotonic() - self.since > QUIET)

    def question(self, draw, typing: bool) -> str:
        """The lines below the call; the keys once they decide, which they do not while something is in the input."""
        if self.telling:
            return draw.dim("Enter tells the model, Esc goes back")
        if typing or not self.listens:
            return draw.text(risk(self.item.request) + ("\n  (empty the input to answer)" if typing else ""), "yellow")
        return draw.text(question(self.item.request), "yellow")

    def answer_for(self, key: str) -> Answer | None:
        """What a key answers; None if that is not decided yet."""
        if key == "e":
            self.telling = True
            return None
        return Answer(MEANING[key]) if key in offered(self.item.request) else None

    def no(self, reason: str) -> Answer:
        return Answer(Choice.NO, reason.strip())


def offered(request: Request) -> list[str]:
    """The keys that make sense: rules only where there is a pattern."""
    return [key for key in CHOICES if request.pattern or key not in "sa"]


def risk(request: Request) -> str:
    """What is asked."""
    what = "make this change?" if request.call.tool.kind is Kind.EDIT else "run this?"
    return (f"not sandboxed ({request.unprotected}): " if request.unprotected else "") + what


def question(request: Request) -> str:
    """The same with the keys."""
    lines = [risk(request)]
    for key in offered(request):
        what = CHOICES[key] + (f": {request.pattern}" if key in "sa" else "")
        lines.append(f"  {key}  {what}")
    return "\n".join(lines)
