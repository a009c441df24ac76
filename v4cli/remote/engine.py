"""A model that another program has loaded: as much of Engine and Session as conversations need, over HTTP. Prompts are
made and answers are read on this side; the server turns token ids into token ids.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from v4cli.engine.generation import Step
from v4cli.engine.sampler import Sampling
from v4cli.engine.stats import Stats
from v4cli.errors import NetworkError, ResourceError, UsageError
from v4cli.interrupts import wished
from v4cli.model.config import V4Config
from v4cli.remote.client import MODELS, Client, Lost, patiently, waited
from v4cli.remote.wire import Completions, Generate, Piece, Wanted, Wire

FIRST_WAITS = (0.25, 0.5)  # seconds, for a server that nobody has heard of yet
WAITS = (0.25, 0.5, 1.0, 2.0, 4.0)  # and for one that was there a moment ago
OTHER_MODEL = "--model NAME, of what is served"


class Served:
    """A server and what it serves."""

    def __init__(self, url: str, key: str = ""):
        """Ask it. NetworkError if nobody answers, UsageError if that is no such server."""
        self.client = Client(url, key)
        found = patiently(lambda: self.client.get(MODELS), iter(FIRST_WAITS))
        models = found.get("data") if isinstance(found, dict) else None
        self.models: list[dict[str, Any]] = [m for m in models or [] if isinstance(m, dict) and "id" in m]
        if not self.models:
            raise UsageError(f"{self.client.url}{MODELS} lists no model", "--engine http://HOST:PORT")

    @property
    def names(self) -> list[str]:
        return [str(model["id"]) for model in self.models]

    def model(self, name: str) -> dict[str, Any]:
        """The one that is called so, or the only one. UsageError."""
        named = [model for model in self.models if model["id"] == name]
        if not named and len(self.models) > 1:
            raise UsageError(f"{self.client.url} serves {', '.join(self.names)}", f"--model {self.names[0]}")
        return (named or self.models)[0]


class RemoteEngine:
    """A model on a server; its sessions may be in different threads."""

    placed = place = stream = held = identity = None  # where its bytes are is the server's affair
    passed_over = ""
    load_s = 0.0

    def __init__(self, served: Served, name: str, folder: Path):
        """`folder` has its config.json. ModelError."""
        model = served.model(name)
        self.client, self.served_name = served.client, str(model["id"])
        self.path, self.config = folder, V4Config.load(folder)
        most = model.get("max_model_len", model.get("context_length"))
        if type(most) is int and 0 < most < self.config.max_position_embeddings:
            self.config = replace(self.config, max_position_embeddings=most)
        self._wire: type[Wire] = Generate if model.get("owned_by") == "sglang" else Completions

    @property
    def where(self) -> str:
        """Who computes."""
        return f"at {self.client.url}"

    def session(self) -> "RemoteSession":
        return RemoteSession(self)

    def counts(self) -> None:
        """Nothing is known of its experts."""

    def remember(self, folder: Path) -> None:
        """Nothing is learned of them either."""

    def pieces(self, wanted: Wanted, cancelled: Callable[[], bool]) -> Generator[Piece, None, None]:
        """The stream of an answer. Lost, NetworkError, UsageError, ContextError."""
        wire = self._wire()
        with closing(self.client.events(wire.path, wire.body(self.served_name, wanted), cancelled)) as events:
            for event in events:
                try:
                    piece = wire.read(event)
                except (AttributeError, IndexError, KeyError, TypeError) as error:
                    said = f"{self.client.url}{wire.path} answers in other words ({type(error).__name__})"
                    raise NetworkError(said, "is it vLLM, SGLang or v4 serve?") from None
                yield piece


class RemoteSession:
    """One timeline of tokens. The server keeps what it has computed of it, or not: what it says it had is `cached`."""

    prefixes = None
    unsaved_s = 0.0

    def __init__(self, engine: RemoteEngine):
        self.engine = engine
        self.tokens: list[int] = []
        self.title = ""
        self.notes: list[str] = []
        self.stats = Stats()

    def sync(
        self,
        tokens: Sequence[int],
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        anchors: Sequence[int] = (),
    ) -> bool:
        """Be at exactly `tokens`: they are sent when an answer is wanted."""
        self.tokens = list(tokens)
        self.stats.prompt_tokens, self.stats.cached_tokens, self.stats.prefill_tokens = len(tokens), 0, len(tokens)
        return not cancelled()

    def keep(self, worth_s: float | None = None) -> None:
        """Nothing is stored here."""

    def generate(
        self,
        sampling: Sampling,
        max_tokens: int,
        stop_tokens: Sequence[int] = (),
        cancelled: Callable[[], bool] = lambda: False,
        allowed: Any = None,
        n_likeliest: int = 0,
    ) -> Iterator[Step]:
        """Sample up to `max_tokens` tokens after a sync. What is lost on the way is asked for again from where it was.
        `allowed`: a Constraint of chat/grammar.py. NetworkError, UsageError, ContextError, ResourceError."""
        grammar, n_prompt = allowed.grammar if allowed else None, len(self.tokens)
        self.stats.completion_tokens, self.stats.prefill_s, self.stats.decode_s = 0, 0.0, 0.0
        waits, asked_at = iter(WAITS), time.monotonic()
        while True:
            n_before = len(self.tokens)
            limit = max_tokens - (n_before - n_prompt)
            wanted = Wanted(tuple(self.tokens), sampling, limit, stop_tokens, grammar, n_likeliest)
            try:
                yield from self._steps(wanted, asked_at, lambda: wished() or cancelled())
                return
            except Lost:
                if len(self.tokens) > n_before:
                    waits = iter(WAITS)
                if (grammar and len(self.tokens) > n_prompt) or not waited(waits, cancelled):
                    raise

    def _steps(self, wanted: Wanted, asked_at: float, cancelled: Callable[[], bool]) -> Iterator[Step]:
        """The tokens of one request. The last is told when the server has said what it took."""
        n_told, n_vocab = 0, self.engine.config.vocab_size
        with closing(self.engine.pieces(wanted, cancelled)) as pieces:
            for piece in pieces:
                likeliest = piece.likeliest or [()] * len(piece.ids)
                for token, logprob, others in zip(piece.ids, piece.logprobs, likeliest):
                    if not 0 <= token < n_vocab:
                        name = self.engine.served_name
                        raise NetworkError(f"token {token} of {name} is none of {self.engine.path.name}", OTHER_MODEL)
                    n_told += 1
                    self._count(asked_at)
                    self.tokens.append(token)
                    finish = "stop" if token in wanted.stop_ids else "length" if n_told == wanted.limit else None
                    if finish:
                        self._read_usage(pieces, piece)
                    yield Step(token, logprob, finish, others)
                    if finish:
                        return
                if piece.finish:
                    self._ended_early(piece.finish, n_told)
        if not cancelled():
            raise Lost(f"{self.engine.client.url}: the answer has no end")

    def _count(self, asked_at: float) -> None:
        took = time.monotonic() - asked_at
        if not self.stats.completion_tokens:
            self.stats.prefill_s = took
        self.stats.completion_tokens += 1
        self.stats.decode_s = took - self.stats.prefill_s

    def _read_usage(self, pieces: Iterator[Piece], last: Piece) -> None:
        """What of the prompt was computed; no answer fails where that is not told."""
        with suppress(NetworkError):
            for piece in chain([last], pieces):
                if piece.cached is not None:
                    self.stats.cached_tokens = piece.cached
                    self.stats.prefill_tokens = self.stats.prompt_tokens - piece.cached

    def _ended_early(self, why: str, n_told: int) -> None:
        if why == "length":
            raise ResourceError(f"{self.engine.client.url} has ended the answer after {n_told:,} tokens: no more room")
        if why == "stop" and not n_told:
            raise NetworkError(
                f"{self.engine.client.url} tells no token ids", "it needs return_token_ids (vLLM 0.10.2)"
            )
        if why == "stop":
            raise NetworkError(f"{self.engine.client.url} ends answers at other tokens", OTHER_MODEL)
        raise Lost(f"{self.engine.client.url} has ended the answer ({why})")
