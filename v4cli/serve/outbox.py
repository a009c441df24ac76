"""Events of answers, on their way from the threads that make them to the event loop."""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable
from weakref import WeakSet

from v4cli.serve.events import End, Event, Failed, Text, Thinking, Usage

LATE_S = 0.001  # an event loop may be early by its clock's resolution
EVERY_S, LONGEST_S = 0.02, 0.1  # from one delivery to the next, unless something is urgent:
MOST = 150  # deliveries a second of all answers together, as far as that takes no longer


class Rounds:
    """Of one event loop: while answers come thick and fast, all that is ready is delivered in rounds. The loop then
    looks by itself: to wake it for every token of many answers would take more time than a small model needs for the
    tokens."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop, self.going, self.every = loop, False, EVERY_S
        self.boxes: WeakSet[Outbox] = WeakSet()

    def begin(self) -> None:
        """In the loop: look now, and again until nothing has come."""
        if not self.going:
            self._look()

    def _look(self) -> None:
        self.going = False  # who puts something from here on wakes the loop, unless the rounds go on
        delivered = sum(box.deliver() for box in self.boxes)
        if delivered:
            self.going, self.every = True, min(max(EVERY_S, delivered / MOST), LONGEST_S)
            self.loop.call_later(self.every, self._look)


class Outbox:
    """What comes first, or after a pause, is delivered at once; what comes thick and fast in rounds, pieces of text as
    one."""

    def __init__(self, rounds: Rounds):
        self._rounds, self._loop = rounds, rounds.loop
        self._events: deque[tuple[int, Event | End]] = deque()
        self._last = -math.inf  # when something was delivered
        self._ready = asyncio.Event()
        self._waking = self._loop.call_at(self._loop.time(), lambda: None)
        rounds.boxes.add(self)

    def put(self, choice: int, event: Event | End) -> None:
        """From any thread, in order."""
        self._events.append((choice, event))
        rounds = self._rounds
        if not rounds.going:
            self._call(rounds.begin)
        elif isinstance(event, Usage | Failed) or self._loop.time() >= self._last + 2 * rounds.every:
            self._last = self._loop.time()
            self._call(self.deliver)

    def _call(self, what: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            self._loop.call_soon_threadsafe(what)

    def deliver(self) -> bool:
        """In the loop: whether there was anything."""
        if not self._events:
            return False
        self._last = self._loop.time()
        self._ready.set()
        return True

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
