"""stdin, stdout and stderr, whatever whoever started the program made of them: closed, full, read by nobody, in an
encoding that lacks characters. Imports little: it is needed before anything is opened."""

import io
import os
import sys
from pathlib import Path

from v4cli import system, terminal
from v4cli.clean import visible
from v4cli.errors import Exit, UsageError, exit_code

PATIENCE_S = 1.0  # of waiting for text without a word


def are_ours() -> bool:
    """Whether the three streams are those of the process, and not what someone has put in their place."""
    try:
        return all(s is None or s.fileno() == i for i, s in enumerate((sys.stdin, sys.stdout, sys.stderr)))
    except (OSError, ValueError):
        return False


def prepare() -> None:
    """Make the three streams usable. A closed one is /dev/null, so that no file gets its number. Input is UTF-8, text
    gets replacement characters; a stdout that cannot be written ends the program, stderr is then done without."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    os.umask(os.umask(0o077) & 0o077)  # files are at least their owner's
    keyboard = system.console(0, "rb") or _Input(0, "rb", closefd=False)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(keyboard), "utf-8-sig", "replace")
    sys.stdout = _text(_Stdout, 1, sys.stdout, "replace")
    sys.stderr = _text(_Stderr, 2, sys.stderr, "backslashreplace")


def colour() -> bool | None:
    """What the environment says about colour; None if nothing."""
    get = os.environ.get
    if get("NO_COLOR") or get("FORCE_COLOR", "").lower() in ("0", "false"):
        return False
    if get("FORCE_COLOR") or get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    return False if get("CLICOLOR") == "0" else None


def styled(stream) -> bool:
    """Whether colour makes sense on this stream."""
    wanted = colour()
    return is_screen(stream) if wanted is None else wanted


def live(stream) -> bool:
    """Whether lines that change make sense on this stream."""
    return is_screen(stream) and colour() is not False


def is_screen(stream) -> bool:
    """Whether this is a terminal whose cursor can move."""
    return stream.isatty() and system.understands_escapes(stream)


def read_stdin(limit: int) -> bytes:
    """All of stdin, at most `limit` bytes. Says so if it has to wait for the first of them. UsageError."""
    return _read_all(0, "stdin", limit, f"; {system.ENDS_INPUT} ends it, and < {os.devnull} is none")


def read_path(path: Path, limit: int, name: str = "") -> bytes:
    """The same of a file or a named pipe, called by its name."""
    what = name or str(path)
    try:
        handle = system.open_file(path, os.O_RDONLY)  # a pipe's writer may be still to come
    except OSError as error:
        raise UsageError(f"{what}: cannot be read ({error.strerror})") from None
    try:
        return _read_all(handle, what, limit)
    finally:
        os.close(handle)


def _read_all(handle: int, what: str, limit: int, advice: str = "") -> bytes:
    data = bytearray()
    try:
        if not system.can_read(handle, PATIENCE_S):
            terminal.err.write(f"v4: waiting for text on {visible(what)}{advice}\n")
        while system.can_read(handle) and (piece := system.read(handle, 1 << 20)):
            data += piece
            if len(data) > limit:
                raise UsageError(f"{what}: more than {limit >> 20} MiB of text")
    except OSError as error:
        raise UsageError(f"{what}: cannot be read ({error.strerror})") from None
    return bytes(data)


def _text(kind: type, number: int, before, errors: str) -> io.TextIOWrapper:
    """The stream anew. On Windows it is UTF-8 unless another encoding is asked for: the one that it has for files and
    pipes lacks most characters, and what is read is UTF-8."""
    raw = kind(number, "wb", closefd=False)
    is_told = not system.WINDOWS or ("PYTHONIOENCODING" in os.environ and not raw.isatty())
    encoding = before.encoding if before is not None and is_told else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=number == 2 or raw.isatty())


class _Input(io.FileIO):
    def isatty(self) -> bool:
        return system.is_terminal(self.fileno())


class _Patient(io.FileIO):
    """Waits where another program has made the stream one that does not wait."""

    def __init__(self, number: int, mode: str, closefd: bool):
        super().__init__(number, mode, closefd)
        self._screen = system.console(number, mode)

    def isatty(self) -> bool:
        return system.is_terminal(self.fileno())

    def write(self, data) -> int:
        if self._screen is not None:
            return self._screen.write(data)
        while (n := super().write(data)) is None:
            system.can_write(self.fileno())
        return n


class _Stdout(_Patient):
    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still to be flushed
            if isinstance(error, BrokenPipeError):
                raise SystemExit(Exit.OK) from None  # its reader has seen enough
            terminal.err.write(f"v4: stdout: cannot be written ({error.strerror})\n")
            raise SystemExit(exit_code(error)) from None


class _Stderr(_Patient):
    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)
