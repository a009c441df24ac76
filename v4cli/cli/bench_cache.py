"""`v4 bench cache`: policies of the expert cache on a trace of routing."""

import csv
import sys
from pathlib import Path

from v4cli.bench import cache
from v4cli.bench.traces import KINDS, Trace, synthetic
from v4cli.cli import output
from v4cli.errors import UsageError


def bench_cache(trace: str, slots: str, n_tokens: int, style: str) -> None:
    """Replay a trace file, or a synthetic one. `style`: text, json or csv."""
    if trace in KINDS:
        replayed = synthetic(n_tokens, **KINDS[trace])
    elif Path(trace).is_file():
        replayed = Trace.load(Path(trace))
    else:
        raise UsageError(f"--trace {trace}: no such file, nor a kind", f"kinds are {', '.join(KINDS)}")
    rows = list(cache.rows(trace, replayed, slots.split(",")))
    if style == "json":
        output.json_page(rows)
    elif style == "csv":
        out = csv.DictWriter(sys.stdout, cache.FIELDS)
        out.writeheader()
        out.writerows(rows)
    else:
        output.answer(f"{trace}: {rows[0]['tokens']} tokens, {rows[0]['experts']} experts; share of requests hit\n\n")
        table = [("SLOTS", "OF ALL", *(name.upper() for name in cache.POLICIES), "V4 OF OPTIMUM")]
        for row in rows:
            hits = (f"{row[name]:.1%}" for name in cache.POLICIES)
            table.append((str(row["slots"]), f"{row['share']:.1%}", *hits, f"{row['of_optimum']:.1%}"))
        output.table(table)
