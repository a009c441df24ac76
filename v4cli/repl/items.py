"""What a dialogue tells whoever shows it, beside the events of the agent. Plain data; imports nothing heavy."""

from dataclasses import dataclass, field
from queue import SimpleQueue


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    model: str


@dataclass(frozen=True)
class Asked:
    """A line of the user's is being answered now."""

    text: str


@dataclass(frozen=True)
class Prefill:
    """Tokens of the prompt that are in place, and all of them."""

    done: int
    total: int


@dataclass(frozen=True)
class Thought:
    """Reasoning has ended."""

    seconds: float
    tokens: int


@dataclass(frozen=True)
class Output:
    """What a running tool or command of the user's prints."""

    text: str


@dataclass(frozen=True)
class Note:
    """A few lines for the user; `error` if something went wrong."""

    text: str
    error: bool = False


@dataclass(frozen=True)
class Earlier:
    """Messages of a conversation that is taken up again; `left_out` of them came before."""

    messages: list[dict]
    left_out: int = 0


@dataclass(frozen=True)
class Draft:
    """Text for the user to go on from."""

    text: str


@dataclass(frozen=True)
class Experts:
    """Show what experts on demand cost, as it goes, or hide it."""

    shown: bool


@dataclass(frozen=True)
class Copy:
    """Text for the clipboard."""

    text: str


@dataclass(frozen=True)
class Show:
    """Whether reasoning is printed in full from now on."""

    thinking: bool


@dataclass(frozen=True)
class Ask:
    """A call waits for the user: `request` is an approval.Request, `answer` takes an approval.Answer."""

    request: object
    answer: SimpleQueue = field(default_factory=SimpleQueue)


@dataclass(frozen=True)
class Finished:
    """The line has been dealt with."""


@dataclass(frozen=True)
class Failed:
    """There is no model to talk to: the program has to end with this error."""

    error: Exception
