"""What all parts have in common: a model that is measured, and one thing to do with it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from v4cli.chat.turn import Chat
from v4cli.engine.session import Session
from v4cli.errors import Interrupted
from v4cli.evals.material import Material
from v4cli.options import Options


@dataclass
class Subject:
    """The model: what it is asked, and whether somebody wants an early end; loaded when it is first needed."""

    load: Callable[[], Chat]
    material: Material
    seed: int
    cancelled: Callable[[], bool] = lambda: False

    @cached_property
    def chat(self) -> Chat:
        return self.load()

    def session(self) -> Session:
        """A timeline of its own, for a long text: computed prompts are found and kept where those of `chat` are."""
        return self.chat.engine.session(prefixes=self.chat.session.prefixes)

    def heed(self) -> None:
        """Interrupted if an early end is wanted: what was computed since the last item counts for nothing then."""
        if self.cancelled():
            raise Interrupted("interrupted")

    def reply(self, messages: list[dict], max_tokens: int, tools: list[dict] | None = None) -> dict:
        """The model's greedy message, without thinking. Interrupted."""
        options = Options(thinking=False, temperature=0.0, max_tokens=max_tokens)
        for _ in self.chat.reply(messages, options, tools, cancelled=self.cancelled):
            pass
        self.heed()
        return self.chat.message


@dataclass(frozen=True)
class Item:
    """Computes at most about n_tokens. Its results are noted under its name; it may belong to more than one part."""

    parts: tuple[str, ...]
    name: str
    n_tokens: int
    run: Callable[[], dict[str, dict]]  # results by part
