"""What an answer is made of, while it is made: typed events, the same for all dialects."""

from dataclasses import dataclass

from v4cli.chat.parser import Text as Text
from v4cli.chat.parser import Thinking as Thinking


@dataclass(frozen=True)
class Logprob:
    """A token of the answer and how likely it was, or of the prompt, whose first one nothing is known of; `top`: the
    likeliest at its place, as (token, log-probability, id)."""

    token: bytes
    logprob: float | None
    top: tuple[tuple[bytes, float, int], ...] = ()
    id: int = -1
    of_prompt: bool = False


@dataclass(frozen=True)
class Call:
    """A whole tool call; `arguments` is the JSON text of an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Finish:
    """The end of a choice. `reason`: stop, length or tool_calls; `stop_sequence`: the text that ended it, if any."""

    reason: str
    stop_sequence: str | None = None


@dataclass(frozen=True)
class Usage:
    """The end of an answer: what it took, in tokens; all choices together."""

    prompt: int = 0
    cached: int = 0  # of the prompt, not computed for this answer
    completion: int = 0
    reasoning: int = 0  # of the completion


@dataclass(frozen=True)
class Failed:
    """The end of an answer that failed; `status` is what HTTP would have said."""

    message: str
    status: int = 500
    code: str | None = None


Event = Thinking | Text | Logprob | Call | Finish
End = Usage | Failed
