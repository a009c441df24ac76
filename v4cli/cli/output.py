"""All output goes through here: answers to stdout, everything else to stderr, style only on a terminal."""

import json
import re
import sys

from v4cli.errors import UsageError
from v4cli.streams import styled

UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def answer(text: str) -> None:
    """A piece of the answer, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def line(data: bytes) -> None:
    """A line of the answer that is the same under every locale."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.buffer.flush()


def note(text: str, end: str = "\n", dim: bool = False) -> None:
    """Anything that is not the answer."""
    if dim and styled(sys.stderr):
        text = f"\x1b[2m{text}\x1b[0m"
    sys.stderr.write(text + end)
    sys.stderr.flush()


def json_line(value) -> None:
    """One JSON value on a line of its own."""
    _json(value)


def json_page(value) -> None:
    """One JSON value, indented."""
    _json(value, indent=2)


def _json(value, indent: int | None = None) -> None:
    """JSON with characters as they are, in UTF-8 under every locale; halves of some, no text, stay escaped."""
    line(json.dumps(value, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace"))


def table(rows: list[tuple[str, ...]]) -> None:
    """Aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)) for row in rows)
    answer("".join(line.rstrip() + "\n" for line in lines))


def size(n_bytes: float) -> str:
    """Bytes for people: 3.4 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.2f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.2f} TiB"


def parse_size(text: str, option: str) -> int:
    """Bytes from 12G, 12GiB (both 2^30), 12GB (10^9), 800M, 1.5T or a plain number. UsageError names the option."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([KMGT]?)(I?B)?", text.strip().upper())
    if match is None or (match[3] == "IB" and not match[2]):
        raise UsageError(f"{option} {text!r} is not a size", f"sizes look like 12G, 12GiB or 800M: {option} 12G")
    return int(float(match[1]) * (1000 if match[3] == "B" else 1024) ** UNITS[match[2]])


def ram_budget(text: str | None) -> int | None:
    """Bytes of --ram or V4_RAM; None if neither is given. UsageError."""
    return parse_size(text, "--ram") if text else None
