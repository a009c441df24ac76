"""`v4 bench --compare A.json B.json`: what became faster between two measurements, and whether they can be compared."""

from pathlib import Path

from v4cli import jsonfile
from v4cli.bench.load import MOST
from v4cli.cli import output
from v4cli.cli.bench import DOUBT
from v4cli.errors import UsageError

SAME = ("model", "weights", "synthetic", "cache", "backend", "card", "isa", "threads", "prompt_tokens", "tokens")
RATES = ("tokens_per_s", "_bandwidth", "product_rates.")  # of names: more is better
TIMES = ("s_per_token", "parts.")  # less is


def compare(one: Path, other: Path) -> None:
    """Print the figures that both files of `v4 bench --json` have. UsageError."""
    reports = [_read(path) for path in (one, other)]
    figures = [_figures(report) for report in reports]
    rows = [("", *(path.stem for path in (one, other)), "RATIO")]
    for name in (name for name in figures[0] if name in figures[1]):
        (a, doubt_a), (b, doubt_b) = (one[name] for one in figures)
        doubt = DOUBT if doubt_a or doubt_b else ""
        rows.append((name, f"{a:,.4g}", f"{b:,.4g}", (f"{b / a:.2f}" if a else "") + doubt))
    if len(rows) == 1:
        raise UsageError(f"{one} and {other} have no figure in common", "compare two outputs of one v4 bench command")
    output.table(rows)
    differing = [f"{key} {reports[0][key]}, {reports[1][key]}" for key in SAME if _differ(key, *reports)]
    if differing:
        output.note(f"they differ in more than speed: {'; '.join(differing)}")
    if any(doubt for name, (_, doubt) in (*figures[0].items(), *figures[1].items())):
        output.note(f"{DOUBT.strip()} other programs used the processors while one of the two was measured")


def _differ(key: str, one: dict, other: dict) -> bool:
    return key in one and key in other and one[key] != other[key]


def _read(path: Path) -> dict:
    """UsageError if it is no output of v4 bench --json."""
    report = jsonfile.read(path, UsageError, jsonfile.SMALL)
    if not isinstance(report, dict) or "model" not in report:
        raise UsageError(f"{path}: not what v4 bench --json prints", "v4 bench --json > A.json")
    return report


def _figures(report: dict) -> dict[str, tuple[float, bool]]:
    """Rates and times by name, frontiers and sessions by their number; and whether each is in doubt."""
    found: dict[str, tuple[float, bool]] = {}
    for prefix, part in (("", report), *_rows(report)):
        doubt = isinstance(others := part.get("others", 0.0), float) and others > MOST
        for name, value in _flat(part):
            if any(word in name for word in (*RATES, *TIMES)) and not name.endswith((".reached", ".ceiling")):
                found[prefix + name] = float(value), doubt
    return found


def _rows(report: dict) -> list[tuple[str, dict]]:
    """Parts of a report that are lists, each with a name of its own."""
    rows = []
    for key, number in (("frontiers", "n_tokens"), ("rates", "sessions")):
        for row in report.get(key) if isinstance(report.get(key), list) else ():
            if isinstance(row, dict) and isinstance(row.get(number), int):
                rows.append((f"{row[number]:,} {'tokens' if key == 'frontiers' else 'sessions'}: ", row))
    return rows


def _flat(part: dict, prefix: str = "") -> list[tuple[str, float]]:
    """Numbers in nested objects, with dots between names."""
    flat = []
    for name, value in part.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{name}.")
        elif type(value) in (int, float):
            flat.append((prefix + name, value))
    return flat
