"""Answers that say the same thing over and over: when they are past hope."""

from collections.abc import Sequence

LENGTH = 2000  # tokens at the end of an answer that are one passage, again and again;
MOST = 200  # tokens of that passage: so it is there ten times at least
EVERY = 64  # tokens from one look to the next


def is_loop(ids: Sequence[int]) -> bool:
    """Whether an answer's last LENGTH tokens have an exact period of MOST at most; asked after each token, it looks
    now and then."""
    if len(ids) < LENGTH or len(ids) % EVERY:
        return False
    tail = ids[-LENGTH:]
    return any(tail[-1] == tail[-1 - n] and tail[n:] == tail[:-n] for n in range(1, MOST + 1))
