"""Progress of a long job on stderr: a bar or a changing line on a terminal, plain lines now and then elsewhere."""

import sys
import threading
import time

from v4cli import streams
from v4cli.clean import harmless, on_one_line
from v4cli.cli import output

LINE_EVERY = 10.0  # seconds


class Bytes:
    """Counts bytes of a job whose total is known; usable from several threads."""

    def __init__(self, what: str, total: int):
        self.what, self.total = what, total
        self.done = 0
        self._lock = threading.Lock()
        self._start = self._told = time.monotonic()
        self._bar = None

    def __enter__(self) -> "Bytes":
        if streams.live(sys.stderr):
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
        """`n` more bytes are done."""
        with self._lock:
            self.done += n
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], completed=self.done)
            elif time.monotonic() - self._told > LINE_EVERY:
                self._told = time.monotonic()
                left = (self.total - self.done) * self.seconds / self.done
                output.note(
                    f"{self.what}: {self.done / self.total:.0%} of {output.size(self.total)}, "
                    f"{output.size(self.done / self.seconds)}/s, {left:.0f} s left"
                )


class Prefill:
    """Called with tokens done and in all, after every chunk; says something once that takes a while."""

    def __init__(self):
        self._start = self._told = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now, styled = time.monotonic(), streams.live(sys.stderr)
        if self._first is None:
            self._first, self._start = done, now
        elif now - self._told > (1.0 if styled else LINE_EVERY):
            self._told = now
            rate = (done - self._first) / (now - self._start)
            line = f"prefill {done:,} of {total:,} tokens, {rate:.0f} tokens/s, {(total - done) / rate:.0f} s left"
            (output.changing if styled else output.note)(line)
        if styled and done == total and self._told != self._start:
            output.changing("")


def _bar(what: str, total: int):
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True))
    columns += (TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=output.console(stderr=True), transient=True)
    bar.add_task(harmless(on_one_line(what)), total=total)
    return bar
