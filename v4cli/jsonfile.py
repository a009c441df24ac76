"""Strict reading of JSON that came from outside: bounded size, no duplicate keys, no NaN, errors in one line."""

import json
import reprlib
from collections import Counter
from pathlib import Path

from v4cli import files
from v4cli.errors import ModelError, V4Error

MAX_BYTES = 24 << 20  # twice the largest index; what brackets alone can make of it stays below 1 GiB
SMALL = 1 << 20  # of configs and the like
LFS_POINTER = b"version https://git-lfs"  # begins what a clone without git-lfs has in place of a large file


def parse(text: str | bytes, what: str, error: type[V4Error] = ModelError):
    """Parse JSON text; `what` names it in errors, which are raised as `error`."""

    def unique(pairs):
        values = dict(pairs)
        if len(values) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"key {twice[:60]!r} appears twice")
        return values

    def constant(name):
        raise ValueError(f"{name} is not a JSON number")

    if text[: len(LFS_POINTER)] in (LFS_POINTER, LFS_POINTER.decode()):
        raise error(f"{what}: a git-lfs pointer, not the file itself", "git lfs pull, in its folder, brings the file")
    if isinstance(text, bytes):
        text = files.decoded(text, what, error)
    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise error(f"{what}: nested too deeply") from None
    except ValueError as problem:
        raise error(f"{what}: not valid JSON ({problem})") from None


def read(path: Path, error: type[V4Error] = ModelError, limit: int = MAX_BYTES):
    """Parse a JSON file of at most `limit` bytes."""
    return parse(files.contents(path, limit, error), str(path), error)


def shown(value) -> str:
    """A parsed value for an error: short, however large or deep it is."""
    return reprlib.repr(value)[:80]
