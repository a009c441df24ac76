"""Two models on the same items: the difference of their figures, with an interval, or how likely it is by chance."""

from collections.abc import Iterator

from v4cli.evals import statistics
from v4cli.evals.report import Results, number, percent

HEAD = ("PART", "OF", "OTHER", "THIS", "DIFFERENCE", "95 %, OR p", "N")
VALUES = {"kld": "kld", "ppl": "nll"}  # of positions, by part; smaller is better
HITS = {"tools": "exact", "needle": "right", "code": "right"}  # of items


def compared(other: Results, this: Results) -> list[dict]:
    """Part by part, of positions length by length, over the items that both have."""
    return [line for part in this if part in other for line in _part(part, other[part], this[part])]


def _part(part: str, other: dict[str, dict], this: dict[str, dict]) -> Iterator[dict]:
    names = [name for name in this if name in other]
    if part in VALUES:
        key = VALUES[part]
        for length in dict.fromkeys(this[name]["length"] for name in names):
            at = [name for name in names if this[name]["length"] == length and this[name][key]]
            if at:
                yield _positions(part, length, [other[name][key] for name in at], [this[name][key] for name in at])
    elif part in HITS and names:
        yield _hits(part, [other[name][HITS[part]] for name in names], [this[name][HITS[part]] for name in names])


def _positions(part: str, length: int, other: list, this: list) -> dict:
    change = statistics.difference(other, this)
    means = {"other": statistics.mean(other).value, "this": statistics.mean(this).value}
    return {"part": part, "of": "nats", "length": length} | means | {"difference": change.to_dict()}


def _hits(part: str, other: list[bool], this: list[bool]) -> dict:
    change = statistics.difference([[float(hit)] for hit in other], [[float(hit)] for hit in this])
    shares = {"other": sum(other) / len(other), "this": sum(this) / len(this)}
    p = statistics.mcnemar(other, this)
    return {"part": part, "of": HITS[part]} | shares | {"difference": change.to_dict(), "p": p}


def rows(lines: list[dict]) -> list[tuple[str, ...]]:
    """A table of them, its head first."""
    table = [HEAD]
    for line in lines:
        say, change = (percent if "p" in line else number), line["difference"]
        of = f"{line['of']} at {line['length']:,}" if "length" in line else line["of"]
        told = f"{say(change['low'])} to {say(change['high'])}" + (f", p {line['p']:.3f}" if "p" in line else "")
        values = (say(line["other"]), say(line["this"]), say(change["value"]))
        table.append((line["part"], of, *values, told, f"{change['n']:,}"))
    return table
