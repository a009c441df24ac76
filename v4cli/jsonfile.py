"""Strict reading of JSON that came from outside: bounded size, no duplicate keys, no NaN, errors in one line."""

import json
from pathlib import Path

from v4cli import files
from v4cli.errors import ModelError, V4Error

MAX_BYTES = 64 << 20


def parse(text: str | bytes, what: str, error: type[V4Error] = ModelError):
    """Parse JSON text; `what` names it in errors, which are raised as `error`."""

    def unique(pairs):
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"key {twice!r} appears twice")
        return dict(pairs)

    def constant(name):
        raise ValueError(f"{name} is not a JSON number")

    if isinstance(text, bytes):
        text = files.decoded(text, what, error)
    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise error(f"{what}: nested too deeply") from None
    except ValueError as problem:
        raise error(f"{what}: not valid JSON ({problem})") from None


def read(path: Path, error: type[V4Error] = ModelError):
    """Parse a JSON file."""
    return parse(files.contents(path, MAX_BYTES, error), str(path), error)
