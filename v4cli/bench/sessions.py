"""Sessions that decode at the same time: tokens per second of all of them together, by their number.

Dense weights are read once for the rows of all; every session's tokens are those it would get alone.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np
from v4kernels import native

from v4cli.engine.engine import Engine
from v4cli.engine.sampler import Sampling
from v4cli.engine.session import Session

ROUNDS = 3  # of all numbers in turn: the machine's speed may drift


@dataclass(frozen=True)
class Rate:
    """Of `sessions` together: tokens/s in the median round, and as a multiple of what one does in the same rounds."""

    sessions: int
    tokens_per_s: float
    of_one: float


@dataclass(frozen=True)
class SessionsReport:
    """Each session had `prompt_tokens` tokens of its own before it decoded `decode_tokens`."""

    model: str
    synthetic: bool
    backend: str
    isa: str
    threads: int
    prompt_tokens: int
    decode_tokens: int
    rates: list[Rate]

    def to_dict(self) -> dict:
        return asdict(self)


def measure(engine: Engine, synthetic: bool, counts: Sequence[int], prompt: int, tokens: int) -> SessionsReport:
    """Rates of these numbers of sessions, and of one."""
    rng = np.random.default_rng(0)
    sessions = [engine.session() for _ in range(max(counts))]
    for session in sessions:
        session.sync(rng.integers(0, engine.config.vocab_size, prompt).tolist())
    seconds: dict[int, list[float]] = {count: [] for count in sorted({1, *counts})}
    for _ in range(ROUNDS):
        for count, taken in seconds.items():
            taken.append(decode(sessions[:count], tokens))
    typical = {count: median(taken) for count, taken in seconds.items()}
    rates = [
        Rate(count, count * tokens / typical[count], count * typical[1] / typical[count])
        for count in sorted(set(counts))
    ]
    return SessionsReport(
        str(engine.path), synthetic, engine.model.ops.name, native.isa(), native.threads(), prompt, tokens, rates
    )


def decode(sessions: Sequence[Session], tokens: int) -> float:
    """Seconds in which every session, in a thread of its own, gets so many tokens more; it then goes back."""
    start = threading.Barrier(len(sessions) + 1)
    before = [len(session.tokens) for session in sessions]

    def work(session: Session) -> None:
        start.wait()
        for _ in session.generate(Sampling(temperature=0.0), tokens + 1):  # the last token is not fed
            pass

    with ThreadPoolExecutor(len(sessions)) as pool:
        done = [pool.submit(work, session) for session in sessions]
        start.wait()
        began = time.perf_counter()
        for one in done:
            one.result()
        taken = time.perf_counter() - began
    for session, n_tokens in zip(sessions, before):
        session.sync(session.tokens[:n_tokens])
    return taken
