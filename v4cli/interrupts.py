"""Ctrl-C as a wish: what is being made is finished early and kept. A second one interrupts at once."""

import signal
from contextlib import contextmanager
from threading import Event


@contextmanager
def interrupts(stop: Event):
    """Within: the first Ctrl-C only sets `stop`. In the main thread only."""

    def handler(signum, frame):
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    stop.clear()
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
