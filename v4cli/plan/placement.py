"""Where every byte of a model would live, and what a decoded token would cost: arithmetic only, nothing is measured.

Three tiers: VRAM, RAM, SSD. What every token reads comes first: dense weights (block by block), head, KV state, each
to VRAM while it fits, else to RAM; rewind points take of the RAM what is left, as many as sessions have use for; then
experts fill what is left of VRAM and RAM, and the others stay on the SSD; the embedding, of which a token reads one
row, takes what then is left of RAM, or stays on the SSD.

Assumption: within a layer all experts are used equally often, so the share of experts that a tier holds is the share
of expert reads it serves. Real routing is uneven, which a cache turns into more hits than that.

Time counts bytes only, at the speeds given, each tier's bytes read where they lie; what comes from the SSD is read a
second time, from RAM. `pessimistic`: tier after tier; `optimistic`: all at once, so the slowest decides.
"""

from dataclasses import dataclass, field

from v4cli.errors import ResourceError
from v4cli.plan.ledger import RUNTIME
from v4cli.plan.memory import POINTS

LEAST_POINTS = 2  # of a session: one that is kept, and the one that the step in progress goes back to if it fails
VRAM_RUNTIME = 256 << 20  # driver context and kernels


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
    expert: int  # one routed expert
    slot: int  # the memory that one takes
    n_experts: int  # in all layers
    experts_per_token: int  # in all layers
    experts_at_once: int  # in one layer
    sessions: int
    kv: Use  # of one session, logits included
    point: int  # one rewind point
    scratch: int  # working memory of a step

    @property
    def staging(self) -> int:
        """Room for two layers' experts on their way from the SSD."""
        return self.spare * self.slot

    @property
    def spare(self) -> int:
        """Slots for experts on their way."""
        return 2 * self.experts_at_once


@dataclass(frozen=True)
class Budget:
    """A machine: bytes that may be used, and bytes per second that can be read."""

    ram: int
    vram: int
    ram_speed: float
    vram_speed: float
    ssd_speed: float


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
    """Who holds what. `resident`: the share of experts that need no SSD; `points`: those that a session may keep."""

    vram: Tier
    ram: Tier
    ssd: Tier
    resident: float
    points: int

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


def make_plan(needs: Needs, budget: Budget) -> Plan:
    """Place everything. ResourceError if the RAM that remains cannot hold what must be there."""
    plan, missing = _place(needs, budget)
    if missing > 0:
        raise ResourceError(f"{missing} bytes of RAM are missing")
    return plan


def shortage(needs: Needs, budget: Budget) -> int:
    """Bytes of RAM missing; 0 or less if the model can run."""
    return _place(needs, budget)[1]


def _place(needs: Needs, budget: Budget) -> tuple[Plan, int]:
    vram = Tier("VRAM", budget.vram, budget.vram_speed)
    ram = Tier("RAM", budget.ram, budget.ram_speed)
    ssd = Tier("SSD", None, budget.ssd_speed)
    if budget.vram > VRAM_RUNTIME + needs.scratch:
        vram.put("runtime", VRAM_RUNTIME, 0)
        vram.put("scratch", needs.scratch, 0)
        spare = vram.free
    else:
        spare = 0
    ram.put("runtime", RUNTIME, 0)
    ram.put("scratch", needs.scratch, 0)
    ram.put("staging", needs.staging, 0)
    fixed = [("dense", use) for use in needs.dense] + [("head", Use(needs.head, needs.head))]
    fixed.append(("KV", Use(needs.sessions * needs.kv.held, needs.kv.read)))
    for what, use in fixed:
        tier = vram if use.held <= spare else ram
        tier.put(what, use.held, use.read)
        spare -= use.held if tier is vram else 0
    points = needs.sessions * needs.point  # one of every session
    ram.put("rewind points", LEAST_POINTS * points, 0)
    missing = -ram.free
    more = min(POINTS + 1 - LEAST_POINTS, max(0, ram.free) // points) if points else 0
    ram.put("rewind points", more * points, 0)
    left = needs.n_experts
    for tier, room in ((vram, spare), (ram, ram.free)):
        count = min(left, max(0, room) // needs.slot)
        tier.put("experts", count * needs.slot, needs.experts_per_token * needs.expert * count / needs.n_experts)
        left -= count
    (ram if needs.embed.held <= ram.free else ssd).put("embed", needs.embed.held, needs.embed.read)
    streamed = needs.experts_per_token * needs.expert * left / needs.n_experts
    ssd.put("experts", left * needs.expert, streamed)
    ram.put("streamed experts", 0, streamed)
    ssd.put("draft blocks", needs.draft, 0)
    return Plan(vram, ram, ssd, 1 - left / needs.n_experts, LEAST_POINTS - 1 + more), missing
