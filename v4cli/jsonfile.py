"""Strict reading of JSON that came from outside: bounded size, no duplicate keys, no NaN, errors in one line.

The library's decoder is deaf to Ctrl-C, and to every other thread, until it is through: what has so many values that
this could be felt is left to the slower one, which listens.
"""

import json
import reprlib
from collections import Counter
from json import scanner
from pathlib import Path

from v4cli import files
from v4cli.errors import ModelError, V4Error

MAX_BYTES = 24 << 20  # twice the largest index; what brackets alone can make of it stays below 1 GiB
SMALL = 1 << 20  # of configs and the like
BYTES_OF_VALUE = 6  # a file has no more values than one for so many bytes of its limit
MAX_VALUES = MAX_BYTES // BYTES_OF_VALUE
MANY = 1 << 19  # values; the tokenizers and indexes of all releases have fewer
LFS_POINTER = b"version https://git-lfs"  # begins what a clone without git-lfs has in place of a large file


def loads(text: str, most: int = MAX_VALUES, **hooks):
    """json.loads that hears Ctrl-C. ValueError also for more than `most` values; RecursionError."""
    decoder, n_values = json.JSONDecoder(**hooks), _n_values(text)
    if n_values > MANY:
        n_values = _n_values(_without_strings(text))
    if n_values > most:
        raise ValueError(f"more than {most:,} values")
    if n_values > MANY:
        decoder.scan_once = scanner.py_make_scanner(decoder)
    return decoder.decode(text)


def _n_values(text: str) -> int:
    """At least as many as there are, but for the first."""
    return sum(map(text.count, ",[{"))


def _without_strings(text: str) -> str:
    return "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])


def parse(text: str | bytes, what: str, error: type[V4Error] = ModelError, most: int = MAX_VALUES):
    """Parse JSON text of at most `most` values; `what` names it in errors, which are raised as `error`."""

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
        return loads(text, most, object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise error(f"{what}: nested too deeply") from None
    except ValueError as problem:
        raise error(f"{what}: not valid JSON ({problem})") from None


def read(path: Path, error: type[V4Error] = ModelError, limit: int = MAX_BYTES):
    """Parse a JSON file of at most `limit` bytes."""
    return parse(files.contents(path, limit, error), str(path), error, limit // BYTES_OF_VALUE)


def shown(value) -> str:
    """A parsed value for an error: short, however large or deep it is."""
    return reprlib.repr(value)[:80]
