"""What a REPL is started with: what the command was told, and what only the command line can do."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from v4cli.options import ChatOptions


@dataclass(frozen=True)
class Setup:
    """Nothing in it has been loaded yet."""

    told: ChatOptions
    folder: Path  # the workspace
    resume: Path | None  # the file of a conversation to go on with
    open: Callable  # of a model's name: Chat
    keep: Callable  # of the chat's session, after each answer: stores what can be reused, gives notes
    greet: Callable  # of the dialogue: the rows of the first screen, labels and texts
    stats_line: Callable  # of Stats: a line for people
    opening: str = ""  # the first line, as if it were typed
