"""Ctrl-C, SIGTERM and SIGHUP. First they are a wish: what is being made is finished early and kept. END_WITHIN later
the process ends, whatever it is at: a kernel, a thread that is waited for, a pipe that nobody reads."""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from v4cli import system, terminal

END_WITHIN = 0.2  # seconds
LAST_WORD = 0.05  # seconds that the main thread has to say what it is just saying


class Told(KeyboardInterrupt):
    """A signal came. Of a plain KeyboardInterrupt Python may remember, although it was dealt with, that it is to end by
    that signal and not with an exit code."""


class _Heard:
    """What signals have said so far."""

    number = 0  # of the first that is to end the process
    wish: threading.Event | None = None  # set by the first signal, if there is one
    going_on = False  # the first Ctrl-C ends what is being done, not the process
    spared_at = 0.0  # when a Ctrl-C last was all right
    handed_over = False  # somebody else deals with signals
    leaving = False  # nothing is left to interrupt
    saying = threading.Lock()  # held while the user is told
    said = False


_killers: list[Callable[[], None]] = []  # of programs that must not outlive this one


def install() -> None:
    """Heed signals, in the main thread. Those that are ignored, as under nohup, stay so. Children can be waited for
    even if whoever started this process ignores the end of its own."""
    for number in system.ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)
            atexit.register(signal.signal, number, signal.SIG_IGN)  # for the last moment, which knows no handlers
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.unraisablehook = _unraisable
    heard, hear = os.pipe()
    if hasattr(os, "set_blocking"):  # which a later Windows has
        os.set_blocking(hear, False)
    signal.set_wakeup_fd(hear, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard,), daemon=True, name="signals").start()


@contextmanager
def interrupts(stop: threading.Event, go_on: bool = False) -> Iterator[None]:
    """Within: the first signal only sets `stop`; a second one raises KeyboardInterrupt. `go_on`: Ctrl-C is not to end
    the process. In the main thread only."""
    stop.clear()
    before = signal.getsignal(signal.SIGINT)
    _Heard.wish, _Heard.going_on = stop, go_on
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _handle)
    try:
        yield
    finally:
        _Heard.wish, _Heard.going_on = None, False
        signal.signal(signal.SIGINT, before)


@contextmanager
def handed_over(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Within: `handler` is called for every signal, and nothing else comes of it. In the main thread only."""
    before = {number: signal.getsignal(number) for number in system.ENDING}
    _Heard.handed_over = True
    for number, handles in before.items():
        if handles is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handles in before.items():
            signal.signal(number, handles)
        _Heard.handed_over = False


@contextmanager
def killing(kill: Callable[[], None]) -> Iterator[None]:
    """Within: `kill` is called if the process has to be ended from outside of its main thread."""
    _killers.append(kill)
    try:
        yield
    finally:
        _killers.remove(kill)


def told() -> int:
    """The number of the signal that is to end this process; 0 if there was none."""
    return _Heard.number


def wished() -> bool:
    """Whether a signal has asked for an early end of what is being done."""
    return _Heard.wish is not None and _Heard.wish.is_set()


def spare() -> bool:
    """After a KeyboardInterrupt: go on. False if it was not Ctrl-C."""
    if _Heard.number != signal.SIGINT:
        return False
    _Heard.number, _Heard.spared_at = 0, time.monotonic()
    return True


def leave() -> None:
    """The command is done: from here on a signal raises nothing."""
    _Heard.leaving = True


def end() -> None:
    """End the process as the signal wants it, at once: an interpreter that takes itself apart, with all that torch has
    loaded, needs longer than a user who has said Ctrl-C waits. What is in the streams is written by then."""
    _kill()
    os._exit(128 + _Heard.number)


def say(message: str) -> None:
    """Tell the user how it ends, if a signal is the cause: once, whichever thread is quicker."""
    with _Heard.saying:
        if not _Heard.said:
            _Heard.said = _Heard.number != 0
            terminal.err.write(message)


def _handle(number, frame) -> None:
    if _Heard.going_on and number == signal.SIGINT and not _Heard.wish.is_set():
        _Heard.spared_at = time.monotonic()
    else:
        _Heard.number = _Heard.number or number
    if _Heard.wish is not None and not _Heard.wish.is_set():
        _Heard.wish.set()
    elif not _Heard.leaving:
        raise Told


def _watch(pipe: int) -> None:
    """End the process some time after a signal."""
    while heard := os.read(pipe, 64):
        at = time.monotonic()
        if ending := [number for number in heard if number in system.ENDING and not _Heard.handed_over]:
            time.sleep(END_WITHIN)
            spared = _Heard.going_on or _Heard.spared_at > at - END_WITHIN
            if ending[0] != signal.SIGINT or not spared:
                _end(ending[0])


def _kill() -> None:
    for kill in list(_killers):
        with contextlib.suppress(Exception):
            kill()


def _end(number: int) -> None:
    _kill()
    _Heard.saying.acquire(timeout=LAST_WORD)
    if not _Heard.said and system.can_write(2, 0):
        shown = "\x1b[?25h\n" if os.isatty(2) else ""  # a progress bar hides the cursor
        with contextlib.suppress(OSError):
            os.write(2, f"{shown}v4: interrupted\n".encode())
    os._exit(128 + number)


def _unraisable(about) -> None:
    """Ctrl-C where nothing can be raised, like the end of an object; main() and _watch know of it."""
    if not isinstance(about.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(about)
