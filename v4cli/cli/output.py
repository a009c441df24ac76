"""What commands print: answers to stdout, everything else to stderr, style only on a terminal."""

import json
import os
import re
import sys

from v4cli import terminal
from v4cli.clean import escaped, harmless, on_one_line, visible
from v4cli.errors import UsageError
from v4cli.streams import styled

UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
LEAST = 1 << 20  # bytes; a smaller number without a unit was meant to have one
MOST = 1 << 50
COUNTS = {"": 1, "k": 1_000, "m": 1_000_000}


def answer(text: str) -> None:
    """A piece of the answer, at once."""
    terminal.out.write(text)


def note(text: str, end: str = "\n", dim: bool = False) -> None:
    """Anything that is not the answer."""
    terminal.err.write(text + end, terminal.DIM if dim and styled(sys.stderr) else "")


def changing(line: str) -> None:
    """A note that the next one takes the place of; where `streams.live` says that lines may change."""
    terminal.err.changing(line, terminal.DIM)


def json_line(value) -> None:
    """One JSON value on a line of its own."""
    _json(value)


def json_page(value) -> None:
    """One JSON value, indented."""
    _json(value, indent=2)


def _json(value, indent: int | None = None) -> None:
    """JSON with characters as they are, in UTF-8 under every locale; halves of some, no text, stay escaped, and on a
    terminal all that is hidden."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    text = escaped(text) if terminal.out.is_terminal else text
    terminal.out.line(text.encode("utf-8", "backslashreplace"))


class Csv:
    """What csv.writer takes for a file."""

    write = staticmethod(answer)


def console(stderr: bool = False):
    """A rich Console that shows texts without anything a terminal would act on."""
    from rich.console import Console

    class Clean(Console):
        def render(self, renderable, options=None):
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=visible(segment.text))

    return Clean(stderr=stderr)


def table(rows: list[tuple[str, ...]]) -> None:
    """Aligned columns; on a terminal, every row on a line."""
    if terminal.out.is_terminal:
        rows = [tuple(on_one_line(harmless(cell)) for cell in row) for row in rows]
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


def rate(bytes_per_second: float) -> str:
    """For people: 22.0 GB/s."""
    return f"{bytes_per_second / 1e9:.1f} GB/s"


def parse_size(text: str, option: str) -> int:
    """Bytes from 12G, 12GiB (both 2^30), 12GB (10^9), 800M, 1.5T, or a plain number of bytes: 0, or LEAST and more.

    UsageError names the option, or the variable.
    """
    example = f"{option}{'=' if option.isupper() else ' '}{{}}".format
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([KMGT]?)(I?B)?", text.strip(), re.ASCII | re.IGNORECASE)
    if match is None or (match[3] and len(match[3]) == 2 and not match[2]):
        raise UsageError(f"{option} {text!r} is not a size", f"sizes look like 12G, 12GiB or 800M: {example('12G')}")
    n_bytes = int(float(match[1]) * (1000 if match[3] and len(match[3]) == 1 else 1024) ** UNITS[match[2].upper()])
    if 0 < n_bytes < LEAST and not match[2]:
        hint = example(f"{match[1]}G" if n_bytes < 10_000 else "12G")
        raise UsageError(f"{option} {text!r} would be {n_bytes:,} bytes; the unit is missing", hint)
    if n_bytes > MOST:
        raise UsageError(f"{option} {text!r} is more than any machine has", f"sizes look like 12G: {example('12G')}")
    return n_bytes


def ram_budget(text: str | None) -> int | None:
    """Bytes of --ram or V4_RAM; None if neither is given. UsageError."""
    if not text:
        return None
    option = "V4_RAM" if text == os.environ.get("V4_RAM") else "--ram"
    n_bytes = parse_size(text, option)
    if not n_bytes:
        raise UsageError(f"{option} {text!r} leaves no memory to a model", "v4 doctor shows how much is free")
    return n_bytes


def parse_tokens(text: str, option: str) -> int:
    """A number of tokens: 4096, 4k (4,000), 1.5M (1,500,000). UsageError names the option."""
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([km]?)", text.strip().lower(), re.ASCII)
    count = float(match[1]) * COUNTS[match[2]] if match else 0.0
    if count < 1 or count != int(count):
        raise UsageError(f"{option} {text!r} is not a number of tokens", "k is 1,000 and M is 1,000,000: 4k, 1M, 4096")
    return int(count)
