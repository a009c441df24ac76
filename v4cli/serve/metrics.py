"""What the server has done, as Prometheus reads it."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from v4cli.engine.engine import Engine
from v4cli.serve.events import Usage

if TYPE_CHECKING:
    from v4cli.serve.pool import Pool

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters since the start; any thread may add."""

    def __init__(self) -> None:
        self.start = time.time()
        self.sampled = self.cancelled = self.failed = self.n_running = 0
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.done: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._lock:
            self.n_running += 1
        try:
            yield
        finally:
            with self._lock:
                self.n_running -= 1

    def prefilled(self, done: int, total: int) -> None:
        """A piece of a prompt has been computed: `done` of its `total` tokens are there."""
        with self._lock:
            self.done["pieces"] += 1

    def answered(self, usage: Usage, seconds: float) -> None:
        with self._lock:
            self.done["answers"] += 1
            self.done["prompt"] += usage.prompt
            self.done["cached"] += usage.cached
            self.done["seconds"] += seconds

    def text(self, engine: Engine | None, pool: "Pool") -> str:
        """All of it, in Prometheus's format."""
        lines: list[str] = []

        def tell(name: str, kind: str, values: dict[str, float], help: str) -> None:
            lines.extend((f"# HELP v4_{name} {help}", f"# TYPE v4_{name} {kind}"))
            lines.extend(f"v4_{name}{labels} {_number(value)}" for labels, value in values.items())

        requests = {f'{{path="{path}",status="{status}"}}': n for (path, status), n in self.requests.items()}
        tell("requests_total", "counter", requests, "HTTP requests.")
        tell("answers_total", "counter", {"": self.done["answers"]}, "Answers that are complete.")
        tell("answers_cancelled_total", "counter", {"": self.cancelled}, "Answers whose client hung up.")
        tell("answers_failed_total", "counter", {"": self.failed}, "Answers that failed unexpectedly.")
        tell("answer_seconds_total", "counter", {"": self.done["seconds"]}, "Seconds from request to last token.")
        tell("prompt_tokens_total", "counter", {"": self.done["prompt"]}, "Tokens of prompts.")
        tell("cached_tokens_total", "counter", {"": self.done["cached"]}, "Tokens of prompts that were not computed.")
        tell("prefill_pieces_total", "counter", {"": self.done["pieces"]}, "Pieces of prompts that were computed.")
        tell("sampled_tokens_total", "counter", {"": self.sampled}, "Tokens of answers.")
        tell("requests_running", "gauge", {"": self.n_running}, "Requests that are queued or answered.")
        tell("requests_queued", "gauge", {"": pool.n_waiting}, "Requests that wait for a session.")
        kept = {'{state="busy"}': pool.n_busy, '{state="idle"}': pool.n_kept - pool.n_busy}
        tell("sessions", "gauge", kept, "Contexts in memory.")
        tell("sessions_limit", "gauge", {"": pool.most}, "Contexts that memory may hold.")
        tell("model_loaded", "gauge", {"": engine is not None}, "Whether the model is in memory.")
        memory = dict((engine and engine.memory()) or {})
        memory |= {f"VRAM {k}": v for k, v in ((engine and engine.vram()) or {}).items()}
        tell("memory_held_bytes", "gauge", {f'{{item="{k}"}}': v for k, (_, v) in memory.items()}, "Memory held.")
        tell("memory_planned_bytes", "gauge", {f'{{item="{k}"}}': v for k, (v, _) in memory.items()}, "Memory planned.")
        counted = engine.counts() if engine else None
        experts = counted.to_dict() if counted else {}
        counts = {f'{{kind="{k}"}}': v for k, v in experts.items() if isinstance(v, int | float)}
        tell("experts", "counter", counts, "Experts on demand, by what became of them.")
        tell("start_time_seconds", "gauge", {"": self.start}, "When the server started.")
        return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """With all its digits: a counter that is rounded stands still."""
    return repr(float(value)).removesuffix(".0")
