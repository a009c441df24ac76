"""Threads that stay for the next piece of work: to start one takes longer than a small model needs for a token."""

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Workers:
    """As many threads as there was work at a time. They do not keep the process from ending."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._lock = threading.Lock()
        self._n_free = 0  # threads that nothing has been put into the queue for

    def submit(self, work: Callable[[], object]) -> None:
        """Have it done, in a thread of its own; it must not raise."""
        with self._lock:
            starts = not self._n_free
            self._n_free -= not starts
        self._work.put(work)
        if starts:
            threading.Thread(target=self._serve, daemon=True, name="worker").start()

    def _serve(self) -> None:
        while True:
            self._work.get()()
            with self._lock:
                self._n_free += 1
