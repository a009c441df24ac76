"""Walking a folder that others fill: however deep it is, and whatever becomes of it meanwhile."""

import os
import time
from collections.abc import Callable, Iterator

from v4cli import system

LONG = 3500  # bytes of a path; the kernel takes 4095


class _Handle:
    """An open folder. Paths through it are short, as long as it lives; it keeps alive the one it was reached by."""

    def __init__(self, path: str, above: "_Handle | None"):
        self.fd, self.above = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW), above

    def __del__(self):
        if hasattr(self, "fd"):
            os.close(self.fd)


def folders(
    root: str, unreadable: Callable[[str], bool] = lambda path: False
) -> Iterator[tuple[str, list[os.DirEntry], list[str]]]:
    """Every folder from `root` on, with what is in it and the names of the folders below that are visited next, which
    the caller may change. Nothing behind symbolic links. `unreadable` is given a folder that must not be listed, and
    says whether that has changed. Paths are good until the next folder is asked for."""
    todo: list[tuple[str, _Handle | None]] = [(root, None)]
    while todo:
        path, handle = todo.pop()
        try:
            if len(os.fsencode(path)) > LONG and not system.WINDOWS:
                handle = _Handle(path, handle)
                path = system.path_of(handle.fd)
            entries = _listed(path, unreadable)
        except OSError:  # it is gone
            continue
        below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        yield path, entries, below
        todo += [(os.path.join(path, name), handle) for name in below]


def _listed(path: str, unreadable: Callable[[str], bool]) -> list[os.DirEntry]:
    try:
        found = os.scandir(system.extended(path))
    except PermissionError:
        if not unreadable(path):
            raise
        found = os.scandir(system.extended(path))
    with found:
        return list(found)


class Growth:
    """How many files and folders have come into a folder, found out in small steps. `sizes` gives the number folder
    after folder; `n_before`: the sum of it before, or None for what is found by going through it once."""

    def __init__(self, sizes: Callable[[], Iterator[int]], n_before: int | None = None):
        self.sizes, self.n_before = sizes, n_before
        self.rest, self.n_seen = sizes(), 0

    def step(self, seconds: float) -> int:
        """Count on for this time; how many more there are at least."""
        end = time.monotonic() + seconds
        for n in self.rest:
            self.n_seen += n
            if time.monotonic() > end:
                return 0 if self.n_before is None else self.n_seen - self.n_before
        n_seen, self.rest, self.n_seen = self.n_seen, self.sizes(), 0
        if self.n_before is None:
            self.n_before = n_seen
        return n_seen - self.n_before


def sizes(root: str) -> Iterator[int]:
    """How many entries folder after folder has."""
    for _, entries, _ in folders(root):
        yield len(entries)
