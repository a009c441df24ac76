"""Shards arriving ahead of the conversion, several at a time, never more on disk than allowed."""

import threading
import time
from functools import partial
from pathlib import Path
from typing import Protocol

from v4cli.pull.hub import Source
from v4cli.pull.sizes import Plan, Work
from v4cli.store.parts import Part

JOIN_S = 0.1  # how long an interrupted pull waits for its downloads to notice


class Reporter(Protocol):
    """Who listens to a pull. Calls come from several threads."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def plan(self, plan: Plan) -> None:
        """What is about to happen."""

    def start(self, name: str, n_bytes: int, fetching: bool) -> None:
        """A shard is begun to be fetched, or a part to be converted."""

    def advance(self, name: str, n_bytes: int) -> None:
        """More of it is done; less, if negative."""

    def finish(self, name: str) -> None:
        """It is done."""


class Fetcher:
    """Fetches the shards of `work` in order, `jobs` at a time, while fewer than its limit are held.

    `with` starts and stops the threads; what they have of unfinished shards stays in `staging`.
    """

    def __init__(self, source: Source, staging: Path, work: Work, jobs: int, reporter: Reporter):
        self.source, self.staging, self.work, self.reporter = source, staging, work, reporter
        self.landed: dict[str, Path] = {}
        self._ahead = list(work.order)
        self._held: set[str] = set()  # begun and not yet released
        self._urgent: set[str] = set()  # needed by the first unfinished part: fetched in spite of the limit
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._changed = threading.Condition()
        # daemons: a download that hangs must not keep an interrupted process alive, and may die at any point
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(min(jobs, len(work.order)))]

    def __enter__(self) -> "Fetcher":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        end = time.monotonic() + JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def next_part(self, todo: list[Part]) -> Part:
        """The first part whose shards are all here; waits for one. Raises what a download raised."""
        with self._changed:
            self._urgent = set(self.work.needs[todo[0].name])
            self._changed.notify_all()
            while True:
                if self._error is not None:
                    raise self._error
                for part in todo:
                    if all(shard in self.landed for shard in self.work.needs[part.name]):
                        return part
                self._changed.wait()

    def release(self, shard: str, drop: bool) -> None:
        """No part needs this shard any more."""
        if drop:
            self.source.drop(shard, self.staging)
        with self._changed:
            self._held.discard(shard)
            self._changed.notify_all()

    def _run(self) -> None:
        while (shard := self._take()) is not None:
            try:
                self.reporter.start(shard, self.source.files[shard].n_bytes, fetching=True)
                told = partial(self.reporter.advance, shard)
                path = self.source.fetch(shard, self.staging, told, self._stop.is_set)
                self.reporter.finish(shard)
            except BaseException as problem:
                with self._changed:
                    self._error = self._error or problem
                    self._stop.set()  # the others keep what they have; the pull ends
                    self._changed.notify_all()
                return
            with self._changed:
                self.landed[shard] = path
                self._changed.notify_all()

    def _take(self) -> str | None:
        """The next shard to fetch, once there is room for it; None if there is none, or no point."""
        with self._changed:
            while self._ahead and not self._stop.is_set():
                if len(self._held) < self.work.limit or self._ahead[0] in self._urgent:
                    self._held.add(self._ahead[0])
                    return self._ahead.pop(0)
                self._changed.wait()
            return None
