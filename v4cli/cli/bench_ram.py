"""`v4 bench --ram`: speed within a memory budget; `v4 bench cache`: policies of the expert cache on a trace."""

import csv
from pathlib import Path

from v4cli.cli import output
from v4cli.cli.bench import agree
from v4cli.cli.progress import waiting
from v4cli.errors import UsageError
from v4cli.store import library


def bench_ram(model: str, ram: str, prompt: int, tokens: int, trace: Path | None, style: str) -> None:
    """Measure and print. `style`: text, json or csv."""
    from v4kernels import native

    if not native.available():
        raise UsageError(f"v4 bench measures the cpu backend, which is not available: {native.reason()}")
    from v4cli.bench.demand import measure

    folder, budget = library.model_folder(model), output.ram_budget(ram)
    output.note(f"measuring: {prompt} tokens of prefill, {tokens} of decode; leave the machine alone meanwhile")

    def begin(seconds: float) -> None:
        agree(seconds, "--prompt and -n take fewer tokens", "at least")

    report = measure(folder, budget, prompt, tokens, trace, begin).to_dict()
    if style == "json":
        output.json_page(report)
    elif style == "csv":
        out = csv.DictWriter(output.Csv, report)
        out.writeheader()
        out.writerow(report)
    else:
        _text(report)


def _text(r: dict) -> None:
    size = output.size
    output.answer(
        f"{r['model']} in {size(r['ram'])}: {r['resident_share']:.1%} of the experts ({r['slots']} slots); "
        f"planned {size(r['planned_bytes'])}, peak {size(r['peak_rss_bytes'])}\n\n"
    )
    output.table(
        [
            ("prefill", f"{r['prompt_tokens']} tokens", f"{r['prefill_tokens_per_s']:.1f} tokens/s"),
            ("", "from SSD", f"{size(r['prefill_bytes_read'])}, {r['prefill_read_of_needed']:.3f} of what was needed"),
            ("decode", f"{r['decode_tokens']} tokens", f"{r['decode_tokens_per_s']:.2f} tokens/s"),
            ("", "bound", f"{r['bound_tokens_per_s']:.2f} tokens/s; reached {r['decode_fraction']:.1%}"),
            ("", "in order", f"{r['order_bound_tokens_per_s']:.2f} tokens/s: the head after all reads, later layers "
             f"after those of hash layers; reached {r['order_fraction']:.1%} of the lower"),
            ("", "hits", f"{r['hit_rate']:.1%}"),
            ("", "misses", f"{r['expected_of_misses']:.1%} expected, {r['wasted_of_reads']:.1%} of reads wasted"),
            ("", "SSD", f"{size(r['ssd_bytes_per_token'])} per token, busy {r['ssd_busy_share']:.1%} of the time, "
             f"{r['ssd_bandwidth']:.2f} GB/s measured"),
            ("", "memory", f"{size(r['ram_bytes_per_token'])} per token, {r['read_bandwidth']:.1f} GB/s measured"),
            ("", "waiting", f"{r['wait_share']:.1%} of the time"),
        ]
    )  # fmt: skip


def bench_cache(trace: str, slots: str, n_tokens: int, style: str) -> None:
    """Replay a trace file, or one made here. `style`: text, json or csv."""
    from v4cli.bench import cache
    from v4cli.bench.traces import KINDS, Trace, synthetic

    if trace == "nano":
        from v4cli.bench.nano_routing import nano_routing

        with waiting("nano reads"):
            replayed = nano_routing(n_tokens)
    elif trace in KINDS:
        replayed = synthetic(n_tokens, **KINDS[trace])
    elif Path(trace).is_file():
        replayed = Trace.load(Path(trace))
    else:
        raise UsageError(f"--trace {trace}: no such file, nor a kind", f"kinds are {', '.join(KINDS)}, nano")
    with waiting("replaying"):
        rows = list(cache.rows(trace, replayed, slots.split(",")))
    if style == "json":
        output.json_page(rows)
    elif style == "csv":
        out = csv.DictWriter(output.Csv, cache.FIELDS)
        out.writeheader()
        out.writerows(rows)
    else:
        output.answer(f"{trace}: {rows[0]['tokens']} tokens, {rows[0]['experts']} experts; share of requests hit\n\n")
        table = [("SLOTS", "OF ALL", *(name.upper() for name in cache.POLICIES), "V4 OF OPTIMUM")]
        for row in rows:
            hits = (f"{row[name]:.1%}" for name in cache.POLICIES)
            table.append((str(row["slots"]), f"{row['share']:.1%}", *hits, f"{row['of_optimum']:.1%}"))
        output.table(table)
