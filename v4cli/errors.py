"""Every error the user can meet: one message, one hint (the next command to type), one exit code.

Library code raises these; only `v4cli.cli` turns them into output and an exit status.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path


class Exit(IntEnum):
    """Documented exit codes of the `v4` command."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    MODEL = 3
    RESOURCES = 4
    NETWORK = 5
    LIMIT = 6
    INTERRUPTED = 130


LACKING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN}


def exit_code(error: OSError) -> Exit:
    """Of an error of the system: whether memory, disk or another of its resources is lacking."""
    return Exit.RESOURCES if error.errno in LACKING else Exit.FAILURE


class V4Error(Exception):
    """Base of all expected errors. `hint` names what to do next; it may be empty."""

    exit_code = Exit.FAILURE

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.hint = hint


@contextmanager
def hinted(hint: str) -> Iterator[None]:
    """Within: errors that do not say what to do next say this."""
    try:
        yield
    except V4Error as error:
        error.hint = error.hint or hint
        raise


class UsageError(V4Error):
    """The command line or a request is wrong."""

    exit_code = Exit.USAGE


class RequestError(UsageError):
    """A message list, tool schema or request body is not valid."""


class ContextError(UsageError):
    """A prompt leaves nothing of the model's context."""


class ModelError(V4Error):
    """A model is missing, incomplete, corrupt or of an unsupported kind."""

    exit_code = Exit.MODEL


class SnapshotError(V4Error):
    """A stored piece of a context cannot be used or made; `path` is the file that is to blame, if one is."""

    exit_code = Exit.MODEL

    def __init__(self, message: str, path: Path | None = None):
        super().__init__(message)
        self.path = path


class ResourceError(V4Error):
    """Not enough RAM, VRAM or disk."""

    exit_code = Exit.RESOURCES


class NetworkError(V4Error):
    """The network or the hub does not give what was asked for; trying again may help."""

    exit_code = Exit.NETWORK


class Interrupted(V4Error):
    """Stopped by the user on the way; what is finished is kept."""

    exit_code = Exit.INTERRUPTED
