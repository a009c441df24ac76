"""Threads that read experts into slots of one arena while the caller computes.

The caller's thread asks and takes; a few threads read, the most urgent first, in the order of asking. What may turn out
not to be needed is read in pieces, so that it can be stopped. Nothing here decides which experts stay.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate

from v4cli.experts.files import ExpertFiles, anonymous

THREADS = 2  # large reads at a time: enough to keep an SSD busy
PIECE = 2 << 20  # bytes: about a millisecond, and large enough for an SSD's full rate


class Rank(IntEnum):
    """How urgent a read is."""

    NOW = 0  # a layer waits for it, or surely will
    SOON = 1  # a layer will probably ask for it
    IDLE = 2  # when there is nothing else to do


@dataclass(eq=False)
class Request:
    """An expert on its way into a slot; `end`: bytes that are there."""

    slot: int
    expert: int
    rank: Rank
    end: int = 0
    reading: bool = False
    wanted: bool = True


class Reader:
    """Slots of page-aligned memory, one expert each: those of one shape after the other's, numbered through."""

    def __init__(self, files: ExpertFiles, counts: Sequence[int]):
        """`counts`: of slots, by shape of `files`."""
        self.files, self.n_slots = files, sum(counts)
        self.shape_of = [shape for shape, count in enumerate(counts) for _ in range(count)]  # by slot
        self._starts = [0, *accumulate(files.rooms[shape] for shape in self.shape_of)]
        self._memory = anonymous(self._starts[-1])
        self._view = self._memory.data.data
        self.at = self._memory.at
        self.bytes_read, self.bytes_wasted = 0, 0  # of these, of reads that were cancelled
        self._busy_s, self._busy_from, self._reading = 0.0, 0.0, 0
        self._changed = threading.Condition()
        self._requests: dict[int, Request] = {}  # by slot
        self._waiting: tuple[deque[Request], ...] = tuple(deque() for _ in Rank)  # those nobody reads just now
        self._outcome: dict[int, Exception | None] = {}  # by slot: read, or why not
        self._closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(THREADS)]
        self._threads.append(threading.Thread(target=self._populate, daemon=True))
        for thread in self._threads:
            thread.start()

    def address(self, slot: int) -> int:
        return self.at + self._starts[slot]

    def _place(self, slot: int) -> tuple[int, int]:
        """Where in the memory it begins and ends."""
        return self._starts[slot], self._starts[slot + 1]

    def discard(self, slot: int) -> None:
        """Give the memory of a slot that nobody uses back to the system."""
        self._memory.discard(*self._place(slot))

    def ask(self, expert: int, slot: int, rank: Rank) -> None:
        """Read an expert into a slot that has room for it and that nobody uses; `take` tells when it is there.
        MemoryError where the slot was discarded and the system has no more."""
        self._memory.commit(*self._place(slot))
        with self._changed:
            request = self._requests[slot] = Request(slot, expert, rank)
            self._waiting[rank].append(request)
            self._changed.notify_all()

    def hurry(self, slot: int) -> None:
        """What was asked for into this slot, if it is not there yet, is needed now."""
        with self._changed:
            request = self._requests.get(slot)
            if request is None or request.rank == Rank.NOW:
                return
            if not request.reading:
                self._waiting[request.rank].remove(request)
                self._waiting[Rank.NOW].append(request)
                self._changed.notify_all()
            request.rank = Rank.NOW

    def cancel(self, expert: int, slot: int) -> bool:
        """Stop reading an expert into this slot. True if that is done; else `take` will tell when it is."""
        with self._changed:
            request = self._requests.get(slot)
            if request is None:
                self.bytes_wasted += self.files.sizes[expert]
                return False
            request.wanted = False
            if not request.reading:
                self._waiting[request.rank].remove(request)
                self._done(request)
            return not request.reading

    def take(self, wait: bool) -> dict[int, Exception | None]:
        """Slots that were read since, with None or the error; waits for at least one if asked to and reads are on."""
        with self._changed:
            while wait and not self._outcome and self._requests:
                self._changed.wait()
            outcome, self._outcome = self._outcome, {}
            return outcome

    @property
    def busy_s(self) -> float:
        """Seconds in which at least one read was on."""
        with self._changed:
            return self._busy_s + (time.perf_counter() - self._busy_from if self._reading else 0.0)

    def close(self) -> None:
        """Stop reading; the files are closed too."""
        with self._changed:
            self._closed = True
            for waiting in self._waiting:
                waiting.clear()
            for request in self._requests.values():
                request.wanted = False
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self.files.close()

    def _populate(self) -> None:
        """Have the system provide the pages ahead of the reads, which are several times slower where it has to."""
        for slot in range(self.n_slots):
            if self._closed or not self._memory.populate(*self._place(slot)):
                return

    def _work(self) -> None:
        while True:
            with self._changed:
                while not any(self._waiting):
                    if self._closed:
                        return
                    self._changed.wait()
                request = next(waiting for waiting in self._waiting if waiting).popleft()
                self._begin(request)
            before, error = request.end, None
            try:
                self._read(request)
            except Exception as problem:  # the caller's thread raises it
                error = problem
            with self._changed:
                self._pause(request, request.end - before)
                if error is None and request.wanted and request.end < self.files.sizes[request.expert]:
                    self._waiting[request.rank].appendleft(request)
                    continue
                self._done(request)
                self._outcome[request.slot] = error
                self._changed.notify_all()

    def _read(self, request: Request) -> None:
        """All the rest if it is needed now, else a piece: what is more urgent may come, or nobody want it any more."""
        size = self.files.sizes[request.expert]
        end = size if request.rank == Rank.NOW else min(request.end + PIECE, size)
        self.files.read_into(request.expert, self._view[slice(*self._place(request.slot))], request.end, end)
        request.end = end

    def _begin(self, request: Request) -> None:
        request.reading = True
        if not self._reading:
            self._busy_from = time.perf_counter()
        self._reading += 1

    def _pause(self, request: Request, n_bytes: int) -> None:
        request.reading = False
        self._reading -= 1
        if not self._reading:
            self._busy_s += time.perf_counter() - self._busy_from
        self.bytes_read += n_bytes

    def _done(self, request: Request) -> None:
        del self._requests[request.slot]
        self.bytes_wasted += 0 if request.wanted else request.end
