"""Threads that read experts into slots of one arena while the caller computes.

The caller's thread asks and takes; a few threads read, in the order of asking, and idle requests only when there is no
other. Nothing here decides which experts stay.
"""

import ctypes
import mmap
import sys
import threading
import time
from collections import deque

import numpy as np

from v4cli.weights.expert_files import ExpertFiles, anonymous

THREADS = 2  # large reads at a time: enough to keep an SSD busy
POPULATE_WRITE = 23  # of madvise, Linux 5.14: have the pages, their contents as they are


class Reader:
    """`n_slots` slots of page-aligned memory, one expert each."""

    def __init__(self, files: ExpertFiles, n_slots: int):
        self.files, self.n_slots = files, n_slots
        self._memory = anonymous(n_slots * files.room)
        self._view = memoryview(self._memory)
        self.at = np.frombuffer(self._memory, np.uint8).ctypes.data
        self.bytes_read = 0
        self._busy_s, self._busy_from, self._reading = 0.0, 0.0, 0
        self._changed = threading.Condition()
        self._asked: deque[tuple[int, int]] = deque()  # (slot, expert)
        self._idle: deque[tuple[int, int]] = deque()
        self._outcome: dict[int, Exception | None] = {}  # by slot: read, or why not
        self._closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(THREADS)]
        if sys.platform == "linux":
            self._threads.append(threading.Thread(target=self._populate, daemon=True))
        for thread in self._threads:
            thread.start()

    def address(self, slot: int) -> int:
        return self.at + slot * self.files.room

    def discard(self, slot: int) -> None:
        """Give the memory of a slot that nobody uses back to the system."""
        self._memory.madvise(mmap.MADV_DONTNEED, slot * self.files.room, self.files.room)

    def ask(self, expert: int, slot: int, idle: bool = False) -> None:
        """Read an expert into a slot that nobody uses; `take` tells when it is there."""
        with self._changed:
            (self._idle if idle else self._asked).append((slot, expert))
            self._changed.notify_all()

    def hurry(self, slot: int) -> None:
        """What was asked for into this slot is no longer idle."""
        with self._changed:
            found = next((request for request in self._idle if request[0] == slot), None)
            if found:
                self._idle.remove(found)
                self._asked.append(found)

    def cancel(self, slot: int) -> bool:
        """Whether the read into this slot had not begun: then it will not be."""
        with self._changed:
            for queue in (self._asked, self._idle):
                for request in queue:
                    if request[0] == slot:
                        queue.remove(request)
                        return True
            return False

    def take(self, wait: bool) -> dict[int, Exception | None]:
        """Slots that were read since, with None or the error; waits for at least one if asked to and reads are on."""
        with self._changed:
            while wait and not self._outcome and (self._asked or self._idle or self._reading):
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
            self._asked.clear()
            self._idle.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self.files.close()

    def _populate(self) -> None:
        """Have the system provide the pages ahead of the reads, which are several times slower where it has to."""
        madvise = ctypes.CDLL(None).madvise  # not mmap's, which keeps the GIL
        madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for slot in range(self.n_slots):
            if self._closed or madvise(self.address(slot), self.files.room, POPULATE_WRITE):
                return

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._asked or self._idle):
                    if self._closed:
                        return
                    self._changed.wait()
                slot, expert = (self._asked or self._idle).popleft()
                if not self._reading:
                    self._busy_from = time.perf_counter()
                self._reading += 1
            error = None
            try:
                room = self.files.room
                self.files.read_into(expert, self._view[slot * room : (slot + 1) * room])
            except Exception as problem:  # the caller's thread raises it
                error = problem
            with self._changed:
                self._reading -= 1
                if not self._reading:
                    self._busy_s += time.perf_counter() - self._busy_from
                self.bytes_read += 0 if error else self.files.n_bytes
                self._outcome[slot] = error
                self._changed.notify_all()
