"""Events of answers, on their way from the threads that make them to the event loop."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable

from v4cli.serve.events import Call, End, Event, Failed, Text, Thinking, Usage

LATE_S = 0.001  # an event loop may be early by its clock's resolution


class Outbox:
    """Of one answer. What comes first, or after a pause, is delivered at once; then the loop looks by itself, after a
    while, for what has come since: to wake it for every token would take more time than a small model needs for the
    token. Pieces of text are delivered as one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, every: Callable[[], float]):
        """`every`: seconds from one delivery to the next, unless something is urgent."""
        self._loop, self._every = loop, every
        self._events: deque[tuple[int, Event | End]] = deque()
        self._looks = False  # the loop will look by itself
        self._ready = asyncio.Event()
        self._waking = loop.call_at(loop.time(), lambda: None)

    @property
    def is_due(self) -> bool:
        """Whether what is put now is delivered now."""
        return not self._looks

    def put(self, choice: int, event: Event | End) -> None:
        """From any thread, in order."""
        self._events.append((choice, event))
        if not self._looks:
            self._looks = True
            self._call(self._deliver)
        elif isinstance(event, Call | Usage | Failed):
            self._call(self._ready.set)

    def _call(self, what: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            self._loop.call_soon_threadsafe(what)

    def _deliver(self) -> None:
        self._ready.set()
        self._loop.call_later(self._every(), self._look)

    def _look(self) -> None:
        self._looks = False  # before it looks: who puts something from here on wakes the loop
        if self._events:
            self._looks = True
            self._deliver()

    def wake_at(self, time: float) -> None:
        """Have `take` return after this time of the loop, even if nothing comes. In place of an earlier wish."""
        self._waking.cancel()
        self._waking = self._loop.call_at(time + LATE_S, self._ready.set)

    async def take(self) -> list[tuple[int, Event | End]]:
        """What has come, in order; it may be nothing. Nothing is lost if this is cancelled."""
        await self._ready.wait()
        self._ready.clear()
        events = [self._events.popleft() for _ in range(len(self._events))]
        return events if len(events) < 2 else list(joined(events))


def joined(events: Iterable[tuple[int, Event | End]]) -> Iterable[tuple[int, Event | End]]:
    """The same, with texts that follow each other in one."""
    pieces: list[str] = []
    kind, at = None, -1

    def text() -> Iterable[tuple[int, Event]]:
        if kind is not None:
            yield at, kind("".join(pieces))
        pieces.clear()

    for choice, event in events:
        its = type(event) if isinstance(event, Text | Thinking) else None
        if its is None or (its, choice) != (kind, at):
            yield from text()
            kind, at = its, choice
        if isinstance(event, Text | Thinking):
            pieces.append(event.text)
        else:
            yield choice, event
    yield from text()
