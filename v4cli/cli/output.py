"""What commands print: answers to stdout, everything else to stderr, style only on a terminal."""

import json
import os
import re
import shutil
import sys
import textwrap
import threading
from itertools import zip_longest

from v4cli import terminal
from v4cli.clean import escaped, harmless, on_one_line, visible
from v4cli.errors import UsageError
from v4cli.streams import styled

UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
LEAST = 1 << 20  # bytes; a smaller number without a unit was meant to have one
MOST = 1 << 50
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LEAST_CELL = 16  # columns of the longest words that are not broken
GAP = "  "  # between columns of a table
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


def width() -> int:
    """Columns of the terminal."""
    return shutil.get_terminal_size().columns


def table(rows: list[tuple[str, ...]]) -> None:
    """Aligned columns, every row on a line; on a terminal, cells are broken into lines, or rows into lines with the
    names of the first row, where they would be wider."""
    if terminal.out.is_terminal:
        rows = [tuple(on_one_line(harmless(cell)) for cell in row) for row in rows]
    answer("".join(line.rstrip() + "\n" for line in table_lines(rows, width() if terminal.out.is_terminal else None)))


def table_lines(rows: list[tuple[str, ...]], most: int | None) -> list[str]:
    """The lines of a table of at most `most` columns, if that is given."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    room = None if most is None else most - len(GAP) * (len(widths) - 1)
    if room is None or sum(widths) <= room:
        return [GAP.join(f"{cell:<{n}}" for cell, n in zip(row, widths)) for row in rows]
    least = [
        min(LEAST_CELL, max(len(word) for cell in column for word in (*cell.split(), ""))) for column in zip(*rows)
    ]
    if sum(least) > room:
        return _records(rows, most)
    while sum(widths) > room:
        widest = max((i for i, n in enumerate(widths) if n > least[i]), key=widths.__getitem__)
        widths[widest] -= 1
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, n) or [""] for cell, n in zip(row, widths)]
        for parts in zip_longest(*cells, fillvalue=""):
            lines.append(GAP.join(f"{part:<{n}}" for part, n in zip(parts, widths)))
    return lines


def _records(rows: list[tuple[str, ...]], most: int) -> list[str]:
    """A block for each row but the first, whose names stand before the values."""
    names, lines = rows[0], []
    for row in rows[1:]:
        for name, cell in zip(names, row):
            head, indent = ("", "") if name == names[0] else (f"  {name}: ", "    ")
            if cell:
                lines += textwrap.wrap(head + cell, max(most, 8), subsequent_indent=indent, drop_whitespace=True)
    return lines


def paragraph(text: str) -> None:
    """Text for people: on a terminal, lines end between words."""
    lines = text.split("\n")
    if terminal.out.is_terminal:
        lines = [part for line in lines for part in textwrap.wrap(harmless(line), max(width(), 8)) or [""]]
    answer("\n".join(lines) + "\n")


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


def at_most(bytes_per_second: float) -> str:
    """What a maker says: up to 400 GB/s by its maker."""
    return f"up to {bytes_per_second / 1e9:.0f} GB/s by its maker"


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


def parse_duration(text: str, option: str) -> float:
    """Seconds from 90s, 30m, 1.5h or 1d. UsageError names the option."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd])", text.strip().lower(), re.ASCII)
    seconds = float(match[1]) * SECONDS[match[2]] if match else 0.0
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise UsageError(f"{option} {text!r} is not a time", f"times look like 90s, 30m or 2h: {option} 30m")
    return seconds


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
