"""What a dialogue tells whoever shows it, beside the events of the agent. Tuples: they are made before the prompt is
on the screen, and fifteen dataclasses would take 15 ms."""

from queue import SimpleQueue
from typing import NamedTuple


class Ready(NamedTuple):
    """The model is loaded."""

    model: str


class Welcome(NamedTuple):
    """The first screen: labels and texts; the first text has none."""

    rows: list[tuple[str, str]]


class Asked(NamedTuple):
    """A line of the user's is being answered now."""

    text: str


class Prefill(NamedTuple):
    """Tokens of the prompt that are in place, and all of them."""

    done: int
    total: int


class Thought(NamedTuple):
    """Reasoning has ended."""

    seconds: float
    tokens: int


class Output(NamedTuple):
    """What a running tool or command of the user's prints."""

    text: str


class Note(NamedTuple):
    """A few lines for the user; `error` if something went wrong."""

    text: str
    error: bool = False


class Earlier(NamedTuple):
    """Messages of a conversation that is taken up again; `left_out` of them came before."""

    messages: list[dict]
    left_out: int = 0


class Draft(NamedTuple):
    """Text for the user to go on from."""

    text: str


class Experts(NamedTuple):
    """Show what experts on demand cost, as it goes, or hide it."""

    shown: bool


class Code(NamedTuple):
    """The answer that comes is code, to its end."""

    language: str


class Copy(NamedTuple):
    """Text for the clipboard."""

    text: str


class Show(NamedTuple):
    """Whether reasoning is printed in full from now on."""

    thinking: bool


class Ask(NamedTuple):
    """A call waits for the user: `request` is an approval.Request, `answer` takes an approval.Answer."""

    request: object
    answer: SimpleQueue


class Finished(NamedTuple):
    """The line has been dealt with."""


class Failed(NamedTuple):
    """There is no model to talk to: the program has to end with this error."""

    error: Exception
