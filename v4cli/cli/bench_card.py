"""`v4 bench` with a GPU."""

import csv
from dataclasses import dataclass

from v4cli import hardware
from v4cli.cli import output
from v4cli.cli.progress import waiting
from v4cli.engine.gpu import OnCard
from v4cli.errors import UsageError
from v4cli.store import library


@dataclass(frozen=True)
class CardRequest:
    """What the command line asks for. `style`: text, json or csv."""

    model: str
    ram: str | None
    on_card: OnCard
    prompt: int
    tokens: int
    style: str


def bench_on_card(asked: CardRequest) -> None:
    """Measure and print."""
    from v4cli.bench.card import WARM, measure
    from v4cli.engine.engine import Engine

    folder, ram = library.model_folder(asked.model), output.ram_budget(asked.ram)
    with waiting(f"loading {asked.model}"):
        engine = Engine.open(folder, "triton", ram=ram, on_card=asked.on_card)
    limit = engine.config.max_position_embeddings
    if asked.prompt + WARM + asked.tokens > limit:
        raise UsageError(f"--prompt and --tokens exceed the model's context of {limit}")
    output.note(
        f"measuring: {asked.prompt} tokens of prefill, {asked.tokens} of decode; leave the machine alone meanwhile"
    )
    card = hardware.gpus()[asked.on_card.number].name
    with waiting("measuring"):
        report = measure(engine, card, asked.prompt, asked.tokens).to_dict()
    STYLES[asked.style](report)


def _text(r: dict) -> None:
    output.answer(
        f"{r['model']} on {r['card']}, triton backend; slots for {r['slots']:,} of {r['experts']:,} experts\n\n"
    )
    rows = [("", "TOKENS", "TOKENS/S", "IN VRAM", "IN RAM", "FROM SSD", "WAITING", "READ OF VRAM", "PCIE", "SSD")]
    for name in ("prefill", "decode"):
        part = r[name]
        shares = (f"{part[share]:.1%}" for share in ("in_vram", "in_ram", "from_ssd", "wait_share"))
        speeds = _rate(part["vram"], part["of_vram"]), _rate(part["link"], part["of_link"]), _rate(part["ssd"], None)
        rows.append((name, str(part["tokens"]), f"{part['tokens_per_s']:.1f}", *shares, *speeds))
    output.table(rows)
    output.answer(
        "\nin VRAM, in RAM, from SSD: of the experts that were asked for; waiting: of the time, for those not\n"
        "in VRAM; in brackets: of what v4 doctor measured\n\n"
    )
    items = r["memory"].items()
    output.table([("VRAM", "PLANNED", "HELD"), *((name, *map(output.size, both)) for name, both in items)])


def _rate(value: float | None, of: float | None) -> str:
    if not value:
        return ""
    return output.rate(value) + ("" if of is None else f" ({of:.0%})")


def _csv(r: dict) -> None:
    """A row of prefill and one of decode."""
    about = {name: r[name] for name in ("model", "card", "slots", "experts")}
    rows = [about | {"what": name} | r[name] for name in ("prefill", "decode")]
    out = csv.DictWriter(output.Csv, rows[0])
    out.writeheader()
    out.writerows(rows)


STYLES = {"text": _text, "csv": _csv, "json": output.json_page}
