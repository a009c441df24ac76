"""Folders of a workspace, open: what is done with names in one of them happens there and nowhere else, whatever is
moved or becomes a link meanwhile. Windows opens no folders: there paths are looked at again before and after."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from v4cli import system


class Held:
    """A folder by its handle."""

    def __init__(self, handle: int):
        self.handle = handle

    @property
    def path(self) -> Path:
        return Path(system.path_of(self.handle))

    def open(self, name: str) -> int:
        """A file, or "." the folder, to read; no link is followed. OSError."""
        return os.open(name, os.O_RDONLY | system.flags_here(follow=False), dir_fd=self.handle)

    def names(self) -> Iterator[os.DirEntry]:
        with os.scandir(self.handle) as entries:
            yield from entries

    def about(self, name: str) -> os.stat_result:
        """What is known of what has this name, a link itself. OSError."""
        return os.stat(name, dir_fd=self.handle, follow_symlinks=False)

    def may_be_written(self, name: str) -> bool:
        return os.access(name, os.W_OK, dir_fd=self.handle)


class Named:
    """A folder by its real path."""

    def __init__(self, path: Path):
        self.path = path

    def open(self, name: str) -> int:
        place = self._real(name)
        if stat.S_ISDIR(os.stat(place).st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder; list_folder lists it", str(place))
        handle = system.open_file(place, os.O_RDONLY, follow=False)
        try:
            self._real(name)
        except OSError:
            os.close(handle)
            raise
        return handle

    def names(self) -> Iterator[os.DirEntry]:
        with os.scandir(self._real(".")) as entries:
            yield from entries

    def about(self, name: str) -> os.stat_result:
        return os.stat(self._real("") / name, follow_symlinks=False)

    def may_be_written(self, name: str) -> bool:
        return os.access(self._real(name), os.W_OK)

    def _real(self, name: str) -> Path:
        """The path of what has this name, which must be in this folder and nowhere else. OSError."""
        path = self.path / name
        if os.path.normcase(os.path.realpath(path)) != os.path.normcase(path):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        return Path(system.extended(path))


@contextlib.contextmanager
def walked(folder: Path, parts: tuple[str, ...], make: bool = False) -> Iterator[Held | Named]:
    """The folder at these names below another one, reached name by name: what became a link meanwhile is not followed.
    `make`: those that are missing are made. OSError."""
    if os.open not in os.supports_dir_fd:
        yield _named(Path(os.path.realpath(folder)), parts, make)
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=handle)
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = below
        yield Held(handle)
    finally:
        os.close(handle)


def _named(folder: Path, parts: tuple[str, ...], make: bool) -> Named:
    place = Named(folder)
    for part in parts:
        below = system.extended(place.path / part)
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(below)
        if not stat.S_ISDIR(place.about(part).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(below))
        place = Named(place.path / part)
    return place
