"""What `v4 plan` says of a GPU: slots for experts, what else it holds, predicted hits and speeds."""

from dataclasses import dataclass, replace

from v4cli import hardware
from v4cli.cli import output
from v4cli.engine import gpu
from v4cli.errors import UsageError
from v4cli.model.config import V4Config
from v4cli.plan import cost, memory, speed
from v4cli.plan.budget import VRAM_SHARE
from v4cli.plan.cards import CARDS, Card, like, named
from v4cli.plan.hits import EXPONENT, RANGE, served
from v4cli.plan.placement import PINNED_KV, Budget, Needs, card_shortage, make_plan, shortage

CONTEXTS = 4_096, 131_072, 1 << 20
ASSUMPTION = (
    f"of the requests for experts, share^{EXPONENT} find theirs in VRAM where it holds that share of all (from "
    f"share^{RANGE[0]} of a poor cache to share^{RANGE[1]} of a good one); nothing of this was measured on a GPU"
)


@dataclass(frozen=True)
class Wanted:
    """The options."""

    vram: str | None
    name: str | None
    chunk: int | None
    kv_host: bool

    def card(self) -> tuple[Card | None, int]:
        """The card to plan for, and bytes of its memory that may be used: the one that is named, the one that is here
        with the most memory, or one with as much memory as is asked for. UsageError."""
        asked = None if self.vram is None else output.parse_size(self.vram, "--vram")
        if self.name is not None:
            card = named(self.name)
            if card is None:
                known = ", ".join(card.name for card in CARDS)
                raise UsageError(f"--gpu-name {self.name!r} is not known", f"choose from {known}, or --vram 24G alone")
            if not _has(card.vram, asked):
                has = f"{card.name} has {output.size(card.vram)}"
                raise UsageError(f"--vram {self.vram} is more than there is: {has}", "drop --gpu-name, or --vram")
            usable = int(VRAM_SHARE * card.vram)
        else:
            here = max(hardware.gpus(), key=lambda one: one.total, default=None)
            if here is None or not _has(here.total, asked):
                return (None, 0) if not asked else (_guessed(asked), asked)
            card, usable = gpu.rated(here), int(VRAM_SHARE * here.free)
        return (None, 0) if asked == 0 else (card, usable if asked is None else min(asked, card.vram))

    def ignored(self) -> str:
        """The option that says nothing without a card, if one was given."""
        return "--chunk" if self.chunk is not None else "--kv-host" if self.kv_host else ""


def _has(vram: int, asked: int | None) -> bool:
    """Whether a card has as much as is asked for, which may be what its box says: drivers count a little less."""
    return (asked or 0) <= -(-vram >> 30) << 30


def _guessed(vram: int) -> Card:
    """A card that is only imagined."""
    card = like(vram)
    return replace(card, name=f"a GPU with {output.size(vram)}, as fast as {card.name}", vram=vram)


def about(bare: Needs, config: V4Config, budget: Budget, card: Card, chunk: int, assumed: list[str]) -> dict:
    """The part of the page as data; bytes, seconds, bytes per second."""
    rates = speed.Rates(card, speed.CPU_SHARE * budget.ram_speed, budget.ssd_speed)
    contexts = [n for n in CONTEXTS if n < config.max_position_embeddings] + [config.max_position_embeddings]
    return {
        "name": card.name,
        "vram": budget.vram,
        "kv_host": budget.kv_host,
        "chunk": chunk,
        "bandwidths": {
            "VRAM": {"bytes_per_second": card.read, "measured": "read" in card.measured},
            "PCIe": {"bytes_per_second": card.link, "measured": "link" in card.measured},
            "RAM": {"bytes_per_second": budget.ram_speed, "measured": True},
            "SSD": {"bytes_per_second": rates.ssd, "measured": "SSD" not in assumed},
        },
        "contexts": [_at(bare, config, n, budget, rates, chunk) for n in sorted(set(contexts))],
    }


def _at(bare: Needs, config: V4Config, n_tokens: int, budget: Budget, rates: speed.Rates, chunk: int) -> dict:
    """What holds at a length of every context."""
    needs = cost.at_context(bare, config, n_tokens, bare.sessions)
    budget = replace(budget, work=memory.card_work_bytes(config, chunk, n_tokens))
    row = {"context_tokens": n_tokens, "sessions": needs.sessions}
    missing, ram = card_shortage(needs, budget), shortage(needs, budget)
    if missing > 0 or ram > 0:
        return row | {"fits": False, "missing_vram": max(0, missing), "missing_ram": max(0, ram)}
    plan = make_plan(needs, budget)
    decode = {
        name: 1 / speed.decode_s(make_plan(needs, budget, exponent), config, n_tokens, rates)
        for name, exponent in (("expected", EXPONENT), ("pessimistic", RANGE[0]), ("optimistic", RANGE[1]))
    }
    share = plan.slots / needs.n_experts
    return row | {
        "fits": True,
        "holds": plan.vram.holds,
        "slots": plan.slots,
        "share": share,
        "hits": {"expected": plan.hits, "pessimistic": served(share, RANGE[0]), "optimistic": served(share, RANGE[1])},
        "pinned": plan.ram.holds["pinned"] + plan.ram.holds.get(PINNED_KV, 0),
        "decode_tokens_per_second": decode,
        "prefill_tokens_per_second": n_tokens / speed.prefill_s(plan, needs, config, n_tokens, rates, chunk),
    }


def figure(value: float) -> str:
    """Three digits of a number, without an exponent."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def show(about: dict) -> None:
    """The same for people."""
    chunks = f"prompts in chunks of {about['chunk']:,} tokens (--chunk)"
    output.paragraph(f"\n{about['name']}, {output.size(about['vram'])} of it; {chunks}")
    rows = [("CONTEXT", "SLOTS", "HITS IN VRAM", "DECODE, TOKENS/S", "PREFILL", "PINNED")]
    for at in about["contexts"]:
        if not at["fits"]:
            short = ("VRAM", at["missing_vram"]) if at["missing_vram"] else ("RAM", at["missing_ram"])
            rows.append((f"{at['context_tokens']:,}", f"{output.size(short[1])} of {short[0]} missing", *[""] * 4))
            continue
        hits, rates = at["hits"], at["decode_tokens_per_second"]
        rows.append(
            (
                f"{at['context_tokens']:,}",
                f"{at['slots']:,} ({at['share']:.1%})",
                f"{hits['expected']:.0%} ({hits['pessimistic']:.0%}–{hits['optimistic']:.0%})",
                f"{figure(rates['expected'])} ({figure(rates['pessimistic'])}–{figure(rates['optimistic'])})",
                f"{at['prefill_tokens_per_second']:,.0f}",
                output.size(at["pinned"]),
            )
        )
    output.table(rows)
    short = [at for at in about["contexts"] if at.get("missing_vram")]
    if short and not about["kv_host"]:
        output.paragraph(
            "--kv-host keeps the entries that a token chooses from in pinned memory; --quant q4 is smaller"
        )
    told = (
        f"{name} {output.rate(of['bytes_per_second'])} {'measured' if of['measured'] else 'assumed'}"
        for name, of in about["bandwidths"].items()
    )
    output.paragraph(", ".join(told))
