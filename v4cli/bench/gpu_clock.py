"""Time of work on a device, by a clock of the host.

A device does many short pieces of work in a row faster than they can be launched, so what is timed is a graph of them,
replayed until a round takes long enough for the clock; a piece takes the median of the rounds.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median
from typing import Protocol

ROUNDS = 5
ROUND_S = 0.02  # a round takes at least that long
MOST_REPLAYS = 1000

Piece = Callable[[int], None]


class Replayed(Protocol):
    def replay(self) -> None: ...


class Timed(Protocol):
    """What of a device (v4kernels/triton/device.py) its time is told by."""

    def synchronize(self) -> None: ...

    def record(self) -> AbstractContextManager[Replayed]: ...


class Stopwatch:
    """Times pieces of work on one device."""

    def __init__(self, device: Timed, clock: Callable[[], float] = time.perf_counter, round_s: float = ROUND_S):
        self.device, self.clock, self.round_s = device, clock, round_s

    def seconds(self, work: Callable[[], object]) -> float:
        """Of one call, until the device has done what it launched."""
        self.device.synchronize()
        start = self.clock()
        work()
        self.device.synchronize()
        return self.clock() - start

    def typical(self, work: Callable[[], object]) -> float:
        """Seconds of a call that is made again and again, the device busy all the time. The first one is not timed."""
        work()
        once = self.seconds(work)
        calls = max(1, min(MOST_REPLAYS, round(self.round_s / max(once, 1e-9))))

        def again() -> None:
            for _ in range(calls):
                work()

        return median(self.seconds(again) for _ in range(ROUNDS)) / calls

    def piece(self, work: Piece, count: int) -> float:
        """Seconds of one of `count` pieces, work(0) to work(count - 1), recorded once. They are launched once before,
        which compiles what they need."""
        for i in range(count):
            work(i)
        with self.device.record() as graph:
            for i in range(count):
                work(i)
        return self.typical(graph.replay) / count
