"""Progress of a long job on stderr: a bar or a changing line on a terminal, plain lines now and then elsewhere."""

import sys
import threading
import time
from collections.abc import Callable

from v4cli.cli import output

LINE_EVERY = 10.0  # seconds


class Job:
    """Counts what is done of a job whose total is known, in bytes unless `show` puts another unit into words; usable
    from several threads."""

    def __init__(self, what: str, total: int, show: Callable[[float], str] = output.size):
        self.what, self.total, self.show = what, total, show
        self.done = 0
        self._lock = threading.Lock()
        self._start = self._told = time.monotonic()
        self._bar = None

    def __enter__(self) -> "Job":
        if output.styled(sys.stderr):
            self._bar = _bar(self.what, self.total)
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        return max(1e-9, time.monotonic() - self._start)

    def advance(self, n: int) -> None:
        """`n` more are done."""
        with self._lock:
            self.done += n
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], completed=self.done, amount=self._amount())
            elif time.monotonic() - self._told > LINE_EVERY:
                self._told = time.monotonic()
                left = (self.total - self.done) * self.seconds / self.done
                output.note(f"{self.what}: {self.done / self.total:.0%} of {self._amount()}, {left:.0f} s left")

    def _amount(self) -> str:
        return f"{self.show(self.total)}, {self.show(self.done / self.seconds)}/s"


def tokens(n: float) -> str:
    """Tokens for people."""
    return f"{n:,.0f} tokens"


class Prefill:
    """Called with tokens done and in all, after every chunk; says something once that takes a while."""

    def __init__(self):
        self._start = self._told = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now, styled = time.monotonic(), output.styled(sys.stderr)
        if self._first is None:
            self._first, self._start = done, now
        elif now - self._told > (1.0 if styled else LINE_EVERY):
            self._told = now
            rate = (done - self._first) / (now - self._start)
            line = f"prefill {done:,} of {total:,} tokens, {rate:.0f} tokens/s, {(total - done) / rate:.0f} s left"
            output.note(f"\r\x1b[2m{line}\x1b[0m\x1b[K" if styled else line, end="" if styled else "\n")
        if styled and done == total and self._told != self._start:
            output.note("\r\x1b[K", end="")


def _bar(what: str, total: int):
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[amount]}")
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    bar.add_task(what, total=total, amount="")
    return bar
