"""Progress of a long job on stderr: a line that changes on a terminal, plain lines now and then elsewhere."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from v4cli import streams, terminal
from v4cli.clean import harmless, on_one_line
from v4cli.cli import output
from v4cli.model.config import V4Config
from v4cli.words import span

LINE_EVERY = 10.0  # seconds between plain lines
REFRESH = 0.1  # seconds between changes of a line
PATIENCE_S = 1.0  # of waiting without a word
WINDOW = 30.0  # seconds over which rates are measured
BAR = 24  # columns, where there is room


class Meter:
    """How much of some total is done, and how fast lately."""

    def __init__(self, total: int, done: int = 0):
        self.total, self.done = total, done
        self._recent = deque([(time.monotonic(), done)])

    def add(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        if now - self._recent[-1][0] > 0.5:
            self._recent.append((now, self.done))
        while len(self._recent) > 1 and now - self._recent[0][0] > WINDOW:
            self._recent.popleft()

    @property
    def rate(self) -> float:
        """Units per second."""
        then, before = self._recent[0]
        return max(0.0, (self.done - before) / max(1e-3, time.monotonic() - then))

    @property
    def left(self) -> float | None:
        """Seconds, if that can be told."""
        if self.done >= self.total:
            return 0.0
        return (self.total - self.done) / self.rate if self.rate else None


def fitting(what: str, fraction: float, parts: list[str], left: float | None, width: int | None) -> str:
    """A line about a job: percent, as many of `parts` as fit, the most important first, and the time left, which is the
    last to be dropped; a bar where that leaves room. All of it, and no bar, if no `width` is given."""
    end = [] if left is None else [f"{span(left)} left"]
    what = harmless(on_one_line(what))
    percent = f"{min(max(fraction, 0.0), 1.0):.0%}"
    for n in range(len(parts), -1, -1):
        line = " · ".join([f"{what} {percent}", *parts[:n], *end])
        if width is None:
            return line
        if len(line) <= width:
            room = min(BAR, width - len(line) - 1)
            bar = "█" * round(room * fraction) if room >= BAR // 2 else ""
            return f"{what} {bar:░<{room}} {line[len(what) + 1 :]}" if room >= BAR // 2 else line
    return f"{what} {percent}"[:width]


def of_bytes(meter: Meter) -> list[str]:
    """Its rate, and how much of how much, for `fitting`."""
    return [f"{meter.rate / (1 << 20):,.1f} MiB/s", f"{output.size(meter.done)} of {output.size(meter.total)}"]


def columns() -> int:
    """Of a line that may change: the last one stays free."""
    return output.width() - 1


class Line:
    """How far a job is, on stderr: within, a line that changes on a terminal, else one now and then."""

    def __init__(self) -> None:
        self._live, self._told = streams.live(sys.stderr), time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            output.changing("")

    def tell(self, what: str, meter: Meter, parts: Callable[[], list[str]] = list) -> None:
        """Unless that was just told."""
        now = time.monotonic()
        if now - self._told > (REFRESH if self._live else LINE_EVERY):
            self._told, width = now, columns() if self._live else None
            line = fitting(what, meter.done / max(1, meter.total), parts(), meter.left, width)
            (output.changing if self._live else output.note)(line)


class Bytes(Line):
    """Counts bytes of a job whose total is known; usable from several threads."""

    def __init__(self, what: str, total: int):
        super().__init__()
        self.what, self.meter = what, Meter(total)
        self._lock, self._start = threading.Lock(), time.monotonic()

    @property
    def done(self) -> int:
        return self.meter.done

    @property
    def seconds(self) -> float:
        return max(1e-9, time.monotonic() - self._start)

    def advance(self, n: int) -> None:
        """`n` more bytes are done."""
        with self._lock:
            self.meter.add(n)
            self.tell(self.what, self.meter, lambda: of_bytes(self.meter))


class Units(Line):
    """Called with how many units of a job are done, and of how many; those that were done before it began do not count
    for its pace."""

    def __init__(self, what: str):
        super().__init__()
        self.what, self.meter = what, Meter(0)

    def __call__(self, done: int, total: int) -> None:
        if not self.meter.total:
            self.meter = Meter(total, done)
        self.meter.add(done - self.meter.done)
        self.tell(self.what, self.meter)


class Prefill:
    """Called with tokens done and in all, after every chunk; says something once that takes a while. The time left goes
    by the model's work, which grows with the context."""

    def __init__(self, config: V4Config, what: str = "prefill"):
        self.config, self.what = config, what
        self._start = self._told = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now, live = time.monotonic(), streams.live(sys.stderr)
        if self._first is None:
            self._first, self._start = done, now
        elif now - self._told > (PATIENCE_S if live else LINE_EVERY):
            from v4cli.plan.flops import prefill_s_left  # slow to import; who prefills has done so

            self._told = now
            seconds = now - self._start
            left = prefill_s_left(self.config, self._first, done, total, seconds)
            parts = [f"{(done - self._first) / seconds:,.0f} tokens/s", f"{done:,} of {total:,} tokens"]
            line = fitting(self.what, done / total, parts, left, columns() if live else None)
            (output.changing if live else output.note)(line)
        if live and done == total and self._told != self._start:
            output.changing("")


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Within: after a second, say what is waited for; on a terminal, how long."""
    done, begun, live = threading.Event(), time.monotonic(), streams.live(sys.stderr)

    def say() -> None:
        if done.wait(PATIENCE_S):
            return
        if not live:
            output.note(f"v4: {what} …", dim=True)
        while live and not done.wait(REFRESH):
            line = f"{what} … {span(time.monotonic() - begun)}"
            output.changing(line[: columns()])

    teller = threading.Thread(target=say, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
        if live:
            terminal.err.settle()
