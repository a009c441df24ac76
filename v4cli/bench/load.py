"""Whether the machine was left alone while something was measured."""

import time

import psutil

MOST = 0.1  # of all processors: what others may use before a figure is in doubt


class Others:
    """Within it, what other programs use of the processors is counted; afterwards `share` is that, of all of them."""

    share = 0.0

    def __enter__(self) -> "Others":
        self._begun = self._used()
        return self

    def __exit__(self, *_) -> None:
        (own, everyone, then), (own_now, everyone_now, now) = self._begun, self._used()
        seconds = max(1e-9, now - then) * (psutil.cpu_count() or 1)
        self.share = min(1.0, max(0.0, (everyone_now - everyone - (own_now - own)) / seconds))

    @staticmethod
    def _used() -> tuple[float, float, float]:
        """Seconds that this process and that everyone has computed, and the time. What a virtual machine is kept
        waiting for counts as others'."""
        times, mine = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted as user's, too
        return mine.user + mine.system, sum(times) - idle - guests, time.monotonic()
