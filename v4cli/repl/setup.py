"""What a REPL is started with: choices of the command line, and what only the command line can do."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Setup:
    """Nothing in it has been loaded yet."""

    model: str | None  # name or folder; None: of the conversation, else the default
    system: str
    thinking: bool
    tools: str | None  # a spec for the toolbox; None: what suits the model
    approve: str
    folder: Path  # the workspace
    resume: Path | None  # the file of a conversation to go on with
    open: Callable  # of a model's name: Chat
    keep: Callable  # of the chat's session, after each answer: stores what can be reused, gives notes
    stats_line: Callable  # of Stats: a line for people
    network: bool = False  # whether what the model runs may use it
    sampling: dict = field(default_factory=dict)  # other fields of chat.turn.Options
