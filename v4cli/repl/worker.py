"""The thread in which the model works, and the box through which it tells the terminal's event loop what happened."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from v4cli.repl import items
from v4cli.repl.setup import Setup

EVERY = 0.05  # seconds between deliveries


class Mailbox:
    """`put` from any thread; `deliver(items)` is called in the event loop, in batches."""

    def __init__(self, deliver: Callable[[list], None]):
        self.loop: asyncio.AbstractEventLoop | None = None  # set before the first item comes
        self.deliver = deliver
        self.items: deque = deque()
        self.paused = False
        self._due = False
        self._last = 0.0

    def put(self, item) -> None:
        self.items.append(item)
        if not self._due:
            self._due = True
            self.loop.call_soon_threadsafe(self._schedule)

    def resume(self) -> None:
        """Deliver what came while it was paused."""
        self.paused = False
        self._schedule()

    def _schedule(self) -> None:
        self.loop.call_at(max(self.loop.time(), self._last + EVERY), self._flush)

    def _flush(self) -> None:
        self._due = False
        if self.paused:
            return
        self._last = self.loop.time()
        batch = [self.items.popleft() for _ in range(len(self.items))]
        if batch:
            self.deliver(batch)


class Worker:
    """Loads the model, then deals with lines one after the other."""

    def __init__(self, setup: Setup, put: Callable):
        self.setup, self.put = setup, put
        self.dialogue = None  # once the model is loaded
        self.busy = True
        self.closed = False
        opening = [(setup.opening, setup.opening)] if setup.opening else []
        self.waiting: deque[tuple[str, str]] = deque(opening)  # lines, and how they looked where they were typed
        self._asked: items.Ask | None = None  # the question asked last
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True, name="model")

    def start(self) -> None:
        self._thread.start()

    def submit(self, line: str, shown: str) -> None:
        """Deal with a line when those before it are done."""
        with self._wake:
            self.waiting.append((line, shown))
            self._wake.notify()

    def take_back(self) -> str | None:
        """The last line that waits, as typed, which then is not dealt with."""
        with self._wake:
            return self.waiting.pop()[1] if self.waiting else None

    def interrupt(self) -> None:
        if self.dialogue:
            self.dialogue.interrupt()

    def close(self, timeout: float) -> None:
        """End; the answer so far is kept."""
        with self._wake:
            self.closed = True
            self.waiting.clear()
            self._wake.notify()
            if self._asked:
                self._asked.answer.put(_no())
        self.interrupt()
        if self.dialogue:
            self._thread.join(timeout)

    @property
    def is_working(self) -> bool:
        """Whether something is still being done for the dialogue."""
        return self.dialogue is not None and self._thread.is_alive()

    def _work(self) -> None:
        try:
            from v4cli.repl import live  # noqa: F401  imported here, so that the event loop need not wait for it
            from v4cli.repl.dialogue import Dialogue

            self.dialogue = Dialogue(self.setup, self.put, self._ask)
            self.dialogue.begin()
        except Exception as error:  # it ends the program, in the main thread
            self.put(items.Failed(error))
            return
        while (line := self._next()) is not None:
            self.dialogue.line(*line)

    def _next(self) -> tuple[str, str] | None:
        with self._wake:
            self.busy = bool(self.waiting)
            while not self.waiting and not self.closed:
                self._wake.wait()
            if self.closed:
                return None
            self.busy = True
            self.dialogue.stop.clear()
            return self.waiting.popleft()

    def _ask(self, request):
        """Wait for the user's answer to a call; nobody answers once this is closed."""
        with self._wake:
            self._asked = None if self.closed else items.Ask(request, SimpleQueue())
        if self._asked is None:
            return _no()
        self.put(self._asked)
        return self._asked.answer.get()


def _no():
    from v4cli.agent.approval import Answer, Choice

    return Answer(Choice.NO)
