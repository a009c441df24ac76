"""The door between token ids and the model: an Engine is a loaded model, a Session one timeline of tokens.

A caller hands `Session.sync` the full list of tokens it wants to be at; the session reuses the common prefix,
goes back if it must and prefills the rest. `Session.generate` then yields tokens. Knows nothing of text.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from v4kernels import ops as op_table

from v4cli.engine.sampler import Sampler, Sampling
from v4cli.engine.stats import Stats
from v4cli.errors import ResourceError, UsageError
from v4cli.model.sources import DenseSource, PackedSource
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.weights.schema import expected_tensors
from v4cli.weights.store import open_model

PREFILL_CHUNK = 512
MAX_POINTS = 16  # places a session can go back to without recomputing everything
MEMORY_SHARE = 0.6  # of what is free: a larger model is not read as a whole at load


@dataclass(frozen=True)
class Step:
    """One generated token; `finish` is "stop" at a stop token, "length" at the limit, else None."""

    token: int
    logprob: float
    finish: str | None


class Engine:
    """A loaded model. Sessions share it."""

    def __init__(self, model: V4, path: Path, load_s: float):
        self.model = model
        self.config = model.config
        self.path = path
        self.load_s = load_s

    @classmethod
    def open(cls, path: Path, backend: str | None = None, numerics: str | None = None) -> "Engine":
        """Load the store or official checkpoint in folder `path`, by default for the fastest backend.

        ModelError, ResourceError, UsageError.
        """
        start = time.monotonic()
        try:
            ops = op_table(backend, numerics)
        except ValueError as error:
            raise UsageError(str(error)) from None
        checkpoint = open_model(Path(path))
        room = MEMORY_SHARE * psutil.virtual_memory().available
        if ops.packed:
            source = PackedSource(checkpoint, check=checkpoint.nbytes < room)
        else:
            values = sum(spec.n_values for spec in expected_tensors(checkpoint.config, False).values())
            source = DenseSource(checkpoint, lazy=4 * values > room)
        with ops.inference():
            weights = build(checkpoint.config, source)
            try:
                model = V4(checkpoint.config, weights, ops)
            except ValueError as error:
                raise UsageError(str(error), "--backend reference takes any size") from None
        return cls(model, Path(path), time.monotonic() - start)

    def session(self) -> "Session":
        """A new, empty timeline."""
        return Session(self)


class Session:
    """One timeline: the tokens fed so far, the model's state after them, and the logits of the last one."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.tokens: list[int] = []
        self.state = engine.model.new_state()
        self.logits: np.ndarray | None = None  # (vocab,) fp32 after the last token
        self.points = [self.state.checkpoint()]
        self.stats = Stats(load_s=engine.load_s)

    def sync(
        self,
        tokens: Sequence[int],
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Be at exactly `tokens`, with logits for the next one; False if cancelled on the way (work is kept).

        `progress(done, total)` is called after every chunk with prompt tokens in place.
        """
        tokens = self.checked(tokens)
        start = time.monotonic()
        common = next((i for i, (a, b) in enumerate(zip(self.tokens, tokens)) if a != b), None)
        common = min(len(self.tokens), len(tokens)) if common is None else common
        if common < len(tokens) or len(self.tokens) != len(tokens):
            common = min(common, len(tokens) - 1)  # the last token is run again for its logits
            self.rewind(common)
        self.stats.prompt_tokens, self.stats.cached_tokens = len(tokens), common
        while len(self.tokens) < len(tokens) and not cancelled():
            self.feed(tokens[len(self.tokens) : len(self.tokens) + PREFILL_CHUNK])
            self._mark()
            if progress:
                progress(len(self.tokens), len(tokens))
        self.stats.prefill_tokens = len(self.tokens) - common
        self.stats.prefill_s = time.monotonic() - start
        self.stats.kv_bytes = self.state.nbytes
        return len(self.tokens) == len(tokens)

    def generate(
        self,
        sampling: Sampling,
        max_tokens: int,
        stop_tokens: Sequence[int] = (),
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Step]:
        """Sample up to `max_tokens` tokens after a sync. A token is fed only when the next one is asked for."""
        if self.logits is None:
            raise UsageError("nothing to continue: sync the session to a prompt first")
        sampler = Sampler(sampling)
        self.stats.completion_tokens, self.stats.decode_s = 0, 0.0
        try:
            for count in range(1, max_tokens + 1):
                if cancelled():
                    return
                start = time.monotonic()
                token, logprob = sampler.pick(self.logits)
                finish = "stop" if token in stop_tokens else "length" if count == max_tokens else None
                self.stats.completion_tokens = count
                self.stats.decode_s += time.monotonic() - start
                yield Step(token, logprob, finish)
                if finish:
                    return
                start = time.monotonic()
                self.feed([token])
                self.stats.decode_s += time.monotonic() - start
        finally:
            self.stats.kv_bytes = self.state.nbytes

    def feed(self, tokens: Sequence[int], all_logits: bool = False) -> np.ndarray:
        """Run tokens through the model: logits of the last, or (T, vocab) of all. All or nothing on error."""
        model, before = self.engine.model, self.state.checkpoint(n_next=len(tokens))
        try:
            with model.ops.inference():
                hidden = model.forward(tokens, self.state)
                logits = np.asarray(model.logits(hidden if all_logits else model.ops.last(hidden)))
        except BaseException:  # Ctrl-C included: some layers may have advanced
            self.state.restore(before)
            raise
        self.tokens.extend(tokens)
        self.logits = logits[-1]
        return logits if all_logits else logits[-1]

    def rewind(self, n_tokens: int) -> None:
        """Go back to the first `n_tokens` tokens: nearest checkpoint before them, then replay."""
        if n_tokens >= len(self.tokens):
            return
        while self.points[-1].n_tokens > n_tokens:
            self.points.pop()
        at = self.points[-1].n_tokens
        replay = self.tokens[at:n_tokens]
        self.state.restore(self.points[-1])
        del self.tokens[at:]
        self.logits = None
        for i in range(0, len(replay), PREFILL_CHUNK):
            self.feed(replay[i : i + PREFILL_CHUNK])

    def fork(self) -> "Session":
        """An independent session at the same place."""
        twin = Session(self.engine)
        twin.tokens = list(self.tokens)
        twin.state = self.state.fork()
        twin.logits = self.logits
        twin.points = list(self.points)
        return twin

    def _mark(self) -> None:
        """Remember this place; when there are too many, drop the one that costs least to do without."""
        if self.points[-1].n_tokens != len(self.tokens):
            self.points.append(self.state.checkpoint())
        if len(self.points) > MAX_POINTS:
            n = [point.n_tokens for point in self.points]
            # Spacing may grow with the distance from the end: far rewinds are rare.
            cost = [(n[i + 1] - n[i - 1]) / (n[-1] - n[i - 1]) for i in range(1, len(n) - 1)]
            del self.points[1 + cost.index(min(cost))]

    def checked(self, tokens: Sequence[int]) -> list[int]:
        """Tokens as ints; UsageError if none or outside the vocabulary, ResourceError if beyond the context."""
        tokens = [int(token) for token in tokens]
        vocab, limit = self.engine.config.vocab_size, self.engine.config.max_position_embeddings
        if not tokens:
            raise UsageError("the prompt is empty")
        if len(tokens) > limit:
            raise ResourceError(f"{len(tokens)} tokens exceed the model's context of {limit}")
        bad = next((token for token in tokens if not 0 <= token < vocab), None)
        if bad is not None:
            raise UsageError(f"token id {bad} is outside the vocabulary of {vocab}")
        return tokens
