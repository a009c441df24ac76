"""What was measured on this machine before, for estimates: how fast models answered, how fast memory and disks are."""

import json
from contextlib import suppress
from pathlib import Path

from v4cli import files, jsonfile
from v4cli.errors import V4Error

SAME = 0.05  # of a figure: too little to write it anew
MOST = 200  # figures that are kept, those noted last


def note(path: Path, what: str, value: float) -> None:
    """Keep a positive figure in the file at `path`, by a name, unless it is what is kept already, more or less; a file
    that cannot be written keeps nothing."""
    known = _read(path)
    if not value > 0 or abs(value - known.pop(what, 0.0)) < SAME * value:
        return
    known = dict([*known.items()][1 - MOST :]) | {what: float(value)}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.write_atomically(path, (json.dumps(known) + "\n").encode(), 0o600)


def figure(path: Path, what: str) -> float | None:
    """The figure that was kept last under this name; None if none was."""
    return _read(path).get(what)


def _read(path: Path) -> dict[str, float]:
    """What a file says; what is no figure, or damaged, says nothing."""
    with suppress(V4Error, OSError):
        found = jsonfile.read(path, limit=jsonfile.SMALL) if path.is_file() else None
        if isinstance(found, dict):
            return {name: value for name, value in found.items() if type(value) is float and value > 0}
    return {}
