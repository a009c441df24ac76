"""Common machines, and what would become of a model on them."""

from dataclasses import dataclass

from v4cli.model.config import V4Config
from v4cli.plan import memory, speed
from v4cli.plan.apple import CHIPS
from v4cli.plan.budget import SHARE, VRAM_SHARE
from v4cli.plan.cards import Card, named
from v4cli.plan.hits import EXPONENT, RANGE
from v4cli.plan.placement import Budget, Needs, Plan, make_plan, shortage

SSD_SPEED = 3e9  # bytes/s, assumed where it cannot be measured
SSD_SPEEDS = (3e9, 7e9)
DESKTOP, HOST, WORKSTATION, SERVER = 80e9, 118e9, 300e9, 460e9

APPLE = "M1 Pro", "M1 Max", "M2 Max", "M4 Pro", "M4 Max", "M2 Ultra", "M3 Ultra"  # those of most use here


@dataclass(frozen=True)
class Machine:
    """RAM in GiB, of which SHARE is used; bytes/s of RAM; a GPU, of whose memory VRAM_SHARE is used."""

    name: str
    ram: int
    ram_speed: float
    card: Card | None = None

    def budget(self, config: V4Config, n_tokens: int, ssd_speed: float) -> Budget:
        """For contexts of n_tokens."""
        vram, read = (int(VRAM_SHARE * self.card.vram), self.card.read) if self.card else (0, 1.0)
        work = memory.card_work_bytes(config, memory.card_chunk(config, vram), n_tokens)
        return Budget(int(SHARE * (self.ram << 30)), vram, self.ram_speed, read, ssd_speed, work=work)


def _with(ram: int, card: str, ram_speed: float = DESKTOP) -> Machine:
    found = named(card)
    assert found is not None
    return Machine(f"{ram} GB + {found.name}", ram, ram_speed, found)


MACHINES = (
    *(Machine(f"{n} GB", n, DESKTOP) for n in (16, 32, 64, 128, 192)),
    Machine("512 GB workstation", 512, WORKSTATION),
    Machine("1 TB server", 1024, SERVER),
    *(Machine(f"{CHIPS[chip][0]} GB {chip}", *CHIPS[chip]) for chip in APPLE),
    _with(64, "RTX 4090"),
    *(_with(192, card) for card in ("RTX 4060", "RTX 4070", "RTX 4080 SUPER", "RTX 3090", "RTX 4090", "RTX 5090")),
    *(_with(256, card, HOST) for card in ("L40S", "H100 80GB", "H200")),
)


def plans(needs: Needs, config: V4Config, n_tokens: int, machine: Machine) -> tuple[dict[float, "Outlook"], int]:
    """The outlook on a machine by speed of its SSD; bytes of RAM missing, if there is none."""
    missing = shortage(needs, machine.budget(config, n_tokens, SSD_SPEED))
    if missing > 0:
        return {}, missing
    budgets = {ssd: machine.budget(config, n_tokens, ssd) for ssd in SSD_SPEEDS}
    return {ssd: outlook(needs, config, n_tokens, budget, machine.card) for ssd, budget in budgets.items()}, 0


@dataclass(frozen=True)
class Outlook:
    """A plan, and the seconds that a token takes: with a card as predicted, for a poor cache and for a good one;
    without, one tier read after the other and all at once."""

    plan: Plan
    expected: float | None
    pessimistic: float
    optimistic: float


def outlook(needs: Needs, config: V4Config, n_tokens: int, budget: Budget, card: Card | None) -> Outlook:
    """What becomes of a model on a machine. ResourceError where it does not fit."""
    plan = make_plan(needs, budget)
    if card is None or not plan.on_card:
        return Outlook(plan, None, plan.pessimistic, plan.optimistic)
    rates = speed.Rates(card, speed.CPU_SHARE * budget.ram_speed, budget.ssd_speed)
    expected, poor, good = (
        speed.decode_s(make_plan(needs, budget, exponent), config, n_tokens, rates) for exponent in (EXPONENT, *RANGE)
    )
    return Outlook(plan, expected, poor, good)
