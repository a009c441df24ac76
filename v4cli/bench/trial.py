"""How long a measurement will take: by a chunk and a few steps of the engine, and the work that all of it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from v4cli.bench.speed import seconds
from v4cli.engine.engine import Engine
from v4cli.model.config import V4Config
from v4cli.plan import flops
from v4cli.plan.memory import CHUNK

STEPS = 3  # the median of them counts


@dataclass(frozen=True)
class Trial:
    """What was tried: a chunk of `rows` tokens and a step after it, in seconds. Loading and probes are in nothing that
    is told from it."""

    config: V4Config
    rows: int
    chunk_s: float
    step_s: float

    @classmethod
    def of(cls, engine: Engine, rows: int = CHUNK) -> "Trial":
        session, ids = engine.session(), [0] * rows
        session.feed(ids)  # working memory
        chunk_s = seconds(lambda: session.feed(ids))
        return cls(engine.config, rows, chunk_s, median(seconds(lambda: session.feed([0])) for _ in range(STEPS)))

    def prefill_s(self, start: int, end: int) -> float:
        """Of the tokens from `start` to `end`."""
        tried = flops.prefill_macs(self.config, self.rows, 2 * self.rows)
        return self.chunk_s * flops.prefill_macs(self.config, start, end) / tried

    def decode_s(self, context: int, tokens: int, together: int = 1) -> float:
        """Of so many tokens after so many, for each of the sessions that decode `together`."""
        work = flops.token_macs(self.config, context) / flops.token_macs(self.config, 2 * self.rows)
        more_rows = (together - 1) / max(1, self.rows - 1)
        return tokens * work * (self.step_s + max(0.0, self.chunk_s - self.step_s) * more_rows)


def speed_s(trial: Trial, prompt: int, tokens: int) -> float:
    """Of speed.measure and card.measure."""
    return trial.prefill_s(0, prompt) + trial.decode_s(prompt, 2 * tokens)


def sessions_s(trial: Trial, counts: Sequence[int], prompt: int, tokens: int, rounds: int) -> float:
    """Of sessions.measure."""
    decoding = sum(trial.decode_s(prompt, tokens, count) for count in {1, *counts})
    return max(counts) * trial.prefill_s(0, prompt) + rounds * decoding


def context_s(trial: Trial, frontiers: Sequence[int], tokens: int) -> tuple[float, float]:
    """Of context.measure with all frontiers prefilled, and filled with random entries; `tokens` as of its Plan."""
    decoding = sum(trial.decode_s(n, 2 * tokens) + trial.decode_s(frontiers[0], 2 * tokens) for n in frontiers)
    chunks = sum(trial.prefill_s(max(0, n - CHUNK), n) for n in frontiers)
    return decoding + trial.prefill_s(0, frontiers[-1]), decoding + chunks
