"""`v4 bench --drafts`: what guessed tokens give."""

import csv
from dataclasses import asdict

from v4cli.cli import output
from v4cli.cli.bench import Synthetic, agree, open_engine
from v4cli.cli.progress import waiting
from v4cli.entries import entries
from v4cli.errors import UsageError
from v4cli.options import Loading
from v4cli.store import library

CHOICES = next(entry.choices for entry in entries(Loading) if entry.name == "drafts")
DIALOGUES = 20
LEAST_TOKENS = 64


def bench_drafts(
    model: str, synthetic: Synthetic | None, ram: str | None, which: str, prompt: int, tokens: int, style: str
) -> None:
    """Measure and print. `style`: text, json or csv. UsageError."""
    if which not in CHOICES:
        raise UsageError(f"--drafts must be one of {', '.join(CHOICES)}", "--drafts auto")
    if synthetic:
        if ram:
            raise UsageError("--synthetic and --ram exclude each other", "drop --ram")
        _forced(synthetic, prompt, max(tokens, LEAST_TOKENS), style)
        return
    from v4cli.bench.drafts import by_kind, by_kind_s
    from v4cli.bench.trial import Trial
    from v4cli.chat.turn import Chat

    with waiting(f"loading {model}"):
        chat = Chat.open(library.model_folder(model), ram=output.ram_budget(ram), drafts=which)
        takes = by_kind_s(Trial.of(chat.engine, LEAST_TOKENS), DIALOGUES)
    agree(takes, "--synthetic flash --layers 4 takes less", "at most about")
    output.note(f"measuring: answers to {DIALOGUES} dialogues, and as many copies; leave the machine alone meanwhile")
    with waiting("measuring"):
        kinds = [asdict(kind) for kind in by_kind(chat, which, DIALOGUES)]
    names = {"accepted_per_step": 2, "right": 2, "row_cost": 2, "speed": 2}
    _print(kinds, names, style)


def _forced(synthetic: Synthetic, prompt: int, tokens: int, style: str) -> None:
    from v4cli.bench.drafts import forced, forced_s
    from v4cli.bench.trial import Trial

    engine, _ = open_engine("", synthetic)
    with waiting("trying how fast this is"):
        takes = forced_s(Trial.of(engine, min(prompt, LEAST_TOKENS)), prompt, tokens)
    agree(takes, "--layers takes fewer of them")
    output.note(f"measuring: {tokens} tokens, plain and with guesses in turn; leave the machine alone meanwhile")
    with waiting("measuring"):
        report = forced(engine, prompt, tokens)
    if style == "json":
        output.json_page(report.to_dict())
        return
    if style == "text":
        times = ", ".join(f"{rows} rows {time:.2f}" for rows, time in report.row_times.items())
        output.answer(f"{report.model}, {report.threads} threads; steps of {times}\n")
        output.answer(f"share of routed experts: {report.share:.2f} by time, {report.share_of_bytes:.2f} by bytes\n\n")
    share = {"share": report.share, "share_of_bytes": report.share_of_bytes}
    rates = [asdict(rate) | (share if style == "csv" else {}) for rate in report.rates]
    digits = {"tokens_per_s": 2, "plain_tokens_per_s": 2, "speed": 3, "predicted": 3, "formula": 3}
    _print(rates, digits | {"accepted_per_step": 2, "row_cost": 2, "share": 3, "share_of_bytes": 3}, style)


def _print(rows: list[dict], digits: dict[str, int], style: str) -> None:
    """A table of rows with the same names."""
    if style == "json":
        output.json_page(rows)
        return
    told = [
        [f"{value:.{digits[name]}f}" if name in digits else str(value) for name, value in row.items()] for row in rows
    ]
    if style == "csv":
        csv.writer(output.Csv).writerows([list(rows[0]), *told])
    else:
        output.table([tuple(name.upper().replace("_", " ") for name in rows[0]), *map(tuple, told)])
