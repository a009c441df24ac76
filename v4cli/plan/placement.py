"""Where every byte of a model would live, and what a decoded token would cost: arithmetic only, nothing is measured.

Three tiers: VRAM, RAM, SSD. A card is used if it holds what every token reads: dense weights, head, KV state (of which
the entries that are chosen from may lie in pinned memory, `kv_host`), and what its kernels work in; else all of that is
in RAM. Rewind points take of the RAM what is left, as many as sessions have use for; then experts fill what is left of
VRAM and RAM, and the others stay on the SSD; the embedding, of which a token reads one row, takes what then is left of
RAM, or stays on the SSD.

How many expert reads a tier serves: hits.py. Without a card, as if all experts were used equally often.

Time counts bytes only, at the speeds given, each tier's bytes read where they lie; what comes from the SSD is read a
second time, from RAM. `pessimistic`: tier after tier; `optimistic`: all at once, so the slowest decides.
"""

from dataclasses import dataclass, field

from v4cli.errors import ResourceError
from v4cli.plan.hits import EVEN, EXPONENT, served
from v4cli.plan.ledger import RUNTIME
from v4cli.plan.memory import POINTS

EVERYTHING = 1 << 60  # bytes, that any model fits in
LEAST_POINTS = 2  # of a session: one that is kept, and the one that the step in progress goes back to if it fails
PINNED_KV = "pinned KV"  # of Tier.holds: entries that a token chooses from, in RAM that a card sees
VRAM_RUNTIME = 600_000_000  # driver context, kernels, graphs
VRAM_WORK = 388_000_000  # what the ops of a step work in: of many rows, so many at a time as fit
VRAM_STAGING = 2 * 256_000_000  # experts on their way to the card in a prefill: one batch is copied, one computed


@dataclass(frozen=True)
class Use:
    """Bytes held, and bytes of them that one decoded token reads."""

    held: int
    read: int


@dataclass(frozen=True)
class Needs:
    """What running a model in some sessions of some context takes, in bytes."""

    dense: tuple[Use, ...]  # layer by layer, then final norm and stream collapse
    head: int
    embed: Use
    draft: int  # draft blocks: on disk, not used
    expert: int  # one routed expert, on average
    slot: int  # the memory that one takes, on average
    kinds: tuple[int, ...]  # of experts that differ in formats: the memory that one takes
    n_experts: int  # in all layers
    experts_per_token: int  # in all layers
    experts_at_once: int  # in one layer
    sessions: int
    kv: Use  # of one session, logits included
    chosen: Use  # of that, entries of which a token reads those that are chosen
    pinned: int  # what card and host both see: jobs for the CPU, records of steps
    point: int  # one rewind point
    scratch: int  # working memory of a step

    @property
    def staging(self) -> int:
        """Room for two layers' experts on their way from the SSD, whatever their kind."""
        return sum(2 * self.experts_at_once * slot for slot in self.kinds)

    @property
    def spare(self) -> int:
        """Slots for experts on their way."""
        return 2 * self.experts_at_once * len(self.kinds)


@dataclass(frozen=True)
class Budget:
    """A machine: bytes that may be used, and bytes per second that can be read."""

    ram: int
    vram: int
    ram_speed: float
    vram_speed: float
    ssd_speed: float
    kv_host: bool = False  # the entries that a token chooses from lie in pinned memory
    work: int = VRAM_WORK  # bytes of VRAM that ops work in


@dataclass(frozen=True)
class Tier:
    """One kind of memory, what it holds by component, and what a token reads there by component; bytes."""

    name: str
    budget: int | None  # the SSD's is its owner's affair
    speed: float  # bytes per second
    holds: dict[str, int] = field(default_factory=dict)
    reads: dict[str, float] = field(default_factory=dict)

    def put(self, what: str, held: int, read: float) -> None:
        """Account for more of a component here."""
        if held:
            self.holds[what] = self.holds.get(what, 0) + held
        if read:
            self.reads[what] = self.reads.get(what, 0.0) + read

    @property
    def held(self) -> int:
        return sum(self.holds.values())

    @property
    def free(self) -> int:
        return (self.budget or 0) - self.held

    @property
    def read(self) -> float:
        return sum(self.reads.values())

    @property
    def seconds(self) -> float:
        """Time a token spends reading here."""
        return self.read / self.speed


@dataclass(frozen=True)
class Plan:
    """Who holds what. `slots`: experts in VRAM; `hits`: the share of expert reads that they serve; `resident`: the
    share of experts that need no SSD; `points`: those that a session may keep."""

    vram: Tier
    ram: Tier
    ssd: Tier
    slots: int
    hits: float
    resident: float
    points: int

    @property
    def on_card(self) -> bool:
        """Whether a card is used."""
        return bool(self.vram.holds)

    @property
    def tiers(self) -> tuple[Tier, Tier, Tier]:
        return self.vram, self.ram, self.ssd

    @property
    def pessimistic(self) -> float:
        """Seconds per token if the tiers are read one after the other."""
        return sum(tier.seconds for tier in self.tiers)

    @property
    def optimistic(self) -> float:
        """Seconds per token if all tiers are read at the same time."""
        return max(tier.seconds for tier in self.tiers)


def make_plan(needs: Needs, budget: Budget, exponent: float = EXPONENT) -> Plan:
    """Place everything. `exponent`: of hits, where there is a card. ResourceError if the RAM that remains cannot hold
    what must be there."""
    plan, missing = _place(needs, budget, exponent)
    if missing > 0:
        raise ResourceError(f"{missing} bytes of RAM are missing")
    return plan


def in_memory(needs: Needs) -> int:
    """Bytes of RAM within which, without a card, nothing of a model but its draft blocks is left on the SSD."""
    return make_plan(needs, Budget(EVERYTHING, 0, 1.0, 1.0, 1.0)).ram.held


def shortage(needs: Needs, budget: Budget) -> int:
    """Bytes of RAM missing; 0 or less if the model can run."""
    return _place(needs, budget, EXPONENT)[1]


def card_shortage(needs: Needs, budget: Budget) -> int:
    """Bytes of VRAM missing for a card to be of use; 0 or less if it is."""
    held = sum(use.held for use in _always(needs, budget.kv_host).values())
    return sum(_beside(budget).values()) + held - budget.vram


def _beside(budget: Budget) -> dict[str, int]:
    """What a card holds whatever the model."""
    return {"runtime": VRAM_RUNTIME, "work": budget.work, "staging": VRAM_STAGING}


def _always(needs: Needs, kv_host: bool) -> dict[str, Use]:
    """What every token reads, by component, but for what then lies in pinned memory."""
    kept = needs.chosen if kv_host else Use(0, 0)
    return {
        "dense": Use(sum(use.held for use in needs.dense), sum(use.read for use in needs.dense)),
        "head": Use(needs.head, needs.head),
        "KV": Use(needs.sessions * (needs.kv.held - kept.held), needs.kv.read - kept.read),
    }


def _place(needs: Needs, budget: Budget, exponent: float) -> tuple[Plan, int]:
    """The plan, and bytes of RAM missing. Where all experts are in memory none is on its way."""
    plan, missing = _placed(needs, budget, exponent, 0)
    return (plan, missing) if missing <= 0 and plan.resident == 1 else _placed(needs, budget, exponent, needs.staging)


def _placed(needs: Needs, budget: Budget, exponent: float, staging: int) -> tuple[Plan, int]:
    vram = Tier("VRAM", budget.vram, budget.vram_speed)
    ram = Tier("RAM", budget.ram, budget.ram_speed)
    ssd = Tier("SSD", None, budget.ssd_speed)
    uses = card_shortage(needs, budget) <= 0
    ram.put("runtime", RUNTIME, 0)
    ram.put("scratch", needs.scratch, 0)
    ram.put("staging", staging, 0)
    if uses:
        ram.put("pinned", needs.pinned + VRAM_STAGING, 0)
        if budget.kv_host:
            ram.put(PINNED_KV, needs.sessions * needs.chosen.held, needs.chosen.read)
        for what, n_bytes in _beside(budget).items():
            vram.put(what, n_bytes, 0)
    else:
        exponent = EVEN
    for what, use in _always(needs, uses and budget.kv_host).items():
        (vram if uses else ram).put(what, use.held, use.read)
    points = needs.sessions * needs.point  # one of every session
    ram.put("rewind points", LEAST_POINTS * points, 0)
    missing = -ram.free
    more = min(POINTS + 1 - LEAST_POINTS, max(0, ram.free) // points) if points else 0
    ram.put("rewind points", more * points, 0)
    asked, held, counts = needs.experts_per_token * needs.expert, 0, []
    for tier, room in ((vram, vram.free if uses else 0), (ram, ram.free)):
        counts.append(min(needs.n_experts - held, max(0, room) // needs.slot))
        before, held = served(held / needs.n_experts, exponent), held + counts[-1]
        tier.put("experts", counts[-1] * needs.slot, asked * (served(held / needs.n_experts, exponent) - before))
    (ram if needs.embed.held <= ram.free else ssd).put("embed", needs.embed.held, needs.embed.read)
    streamed = asked * (1 - served(held / needs.n_experts, exponent))
    ssd.put("experts", (needs.n_experts - held) * needs.expert, streamed)
    ram.put("streamed experts", 0, streamed)
    ssd.put("draft blocks", needs.draft, 0)
    hits = served(counts[0] / needs.n_experts, exponent)
    return Plan(vram, ram, ssd, counts[0], hits, held / needs.n_experts, LEAST_POINTS - 1 + more), missing
