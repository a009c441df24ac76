"""A part of a measurement: it ends in time, a failure in it is one line, and what it has found is on disk at once."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from v4cli.files import write_atomically

Found = dict[str, Any]


class Part:
    """What one part has found so far, in a file after each result: whoever ends the process loses none."""

    def __init__(self, file: Path | None, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.file, self.clock = file, clock
        self.end = clock() + seconds
        self.found: Found = {"missing": {}}  # why, by name of what is not there

    @property
    def left(self) -> float:
        """Seconds, at least one."""
        return max(1.0, self.end - self.clock())

    def begins(self, name: str) -> bool:
        """Whether there is time for something; else that is noted."""
        if self.clock() < self.end:
            return True
        self.lack(name, "no time was left")
        return False

    def row(self, table: str, line: Found) -> None:
        """One more line of a table."""
        self.found.setdefault(table, []).append(line)
        self.save()

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Whatever goes wrong within is why `name` is missing."""
        try:
            yield
        except Exception as error:
            self.lack(name, f"{type(error).__name__}: {error}"[:500])

    def each(self, name: str, results: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Results as they come into a dict `name`, which is there even if none comes."""
        self.found.setdefault(name, {})
        with self.guarded(name):
            for result in results:
                yield result
                self.save()

    def lack(self, name: str, why: str) -> None:
        """Note why something is not there."""
        self.found["missing"][name] = why
        self.save()

    def save(self) -> None:
        if self.file is not None:
            write_atomically(self.file, json.dumps(self.found, indent=1).encode())
