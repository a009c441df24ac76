"""Writes the table of machines into docs/machines.md: `python tests/plan/machine_table.py docs/machines.md`."""

import sys
from pathlib import Path

from v4cli.cli.plan_card import figure
from v4cli.model.known import known_config
from v4cli.plan import cost
from v4cli.plan.machines import MACHINES, SSD_SPEEDS, plans
from v4cli.store.parts import layout

N_TOKENS = 32_768
MODELS = (("flash", "native"), ("flash", "q4"), ("pro", "native"))
MARKS = "<!-- machines: tests/plan/machine_table.py writes them -->\n", "<!-- end of machines -->"


def rows() -> str:
    """A line of markdown for each machine."""
    lines = ["| machine | " + " | ".join(f"{name}, {recipe}" for name, recipe in MODELS) + " |", "|---|---|---|---|"]
    told = [_column(*model) for model in MODELS]
    lines += [f"| {machine.name} | {' | '.join(cells)} |" for machine, *cells in zip(MACHINES, *told)]
    return "\n".join(lines)


def _column(name: str, recipe: str) -> list[str]:
    config = known_config(name)
    needs = cost.needs(config, cost.stored_tensors(layout(config, recipe, with_mtp=True)))
    needs = cost.at_context(needs, config, N_TOKENS)
    cells = []
    for machine in MACHINES:
        found, _ = plans(needs, config, N_TOKENS, machine)
        if not found:
            cells.append("too small")
            continue
        slow, fast = (found[speed] for speed in SSD_SPEEDS)
        low, high = (1 / (one.expected or one.pessimistic) for one in (slow, fast))
        speed = figure(low) if figure(low) == figure(high) else f"{figure(low)} to {figure(high)}"
        cells.append(f"{slow.plan.resident:.0%} in memory, {speed} tokens/s")
    return cells


def with_table(text: str) -> str:
    """A text of docs/machines.md with the table as it should be."""
    before, rest = text.split(MARKS[0])
    return before + MARKS[0] + rows() + "\n" + MARKS[1] + rest.split(MARKS[1])[1]


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_table(page.read_text()))
