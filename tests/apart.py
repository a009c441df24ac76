"""Checks of memory that the kernel library counts for the whole process, whatever other tests it has run before."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor


def apart(check: Callable[..., None], *arguments) -> None:
    """Call it in a process of its own; raises what it raises."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(check, *arguments).result()
