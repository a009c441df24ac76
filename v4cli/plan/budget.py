"""What a memory budget means for one model: what is held, how many experts stay, or that it cannot be run in it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from v4cli.errors import ResourceError
from v4cli.model.config import V4Config
from v4cli.model.schema import TensorSpec
from v4cli.plan import cost
from v4cli.plan.ledger import Ledger
from v4cli.plan.memory import CONTEXT
from v4cli.plan.placement import PINNED_KV, Budget, Needs, Plan, make_plan, shortage

SHARE = 0.9  # of the RAM that is free, by default; the rest is for everything else
VRAM_SHARE = 0.98  # of the VRAM
SPEED = 1.0  # of any tier: this plan is about room, not time
WEIGHTS = ("dense", "head", "embed")  # what of a model is not its experts
DRAFTS = "draft blocks"  # and what guesses tokens for it


@dataclass(frozen=True)
class Residence:
    """`plan`: who holds what; `ledger`: the same of the RAM."""

    plan: Plan
    ledger: Ledger


def residence(config: V4Config, tensors: Mapping[str, TensorSpec], ram: int, drafts: int = 0) -> Residence:
    """Place a store's tensors in `ram` bytes, beside so many of draft blocks. ResourceError, with what would fit, if
    that is impossible."""
    needs = cost.at_context(cost.needs(config, tensors), config, min(CONTEXT, config.max_position_embeddings))
    budget = Budget(ram - drafts, 0, SPEED, SPEED, SPEED)
    missing = shortage(needs, budget)
    if missing > 0:
        least = -(-(ram + missing) >> 20)
        raise ResourceError(
            f"the model needs {least} MiB of RAM with its experts on disk, {ram >> 20} MiB may be used",
            f"--ram {least}M",
        )
    plan = make_plan(needs, budget)
    ledger = ledger_of(plan, needs)
    if drafts:
        ledger = replace(ledger, budget=ram, weights={**ledger.weights, DRAFTS: drafts})
    return Residence(plan, ledger)


def ledger_of(plan: Plan, needs: Needs) -> Ledger:
    """What the RAM of a plan holds, as a ledger."""
    holds = plan.ram.holds
    spare, staging = (needs.spare, needs.staging) if plan.resident < 1 else (0, 0)
    return Ledger(
        budget=plan.ram.budget or 0,
        weights={name: holds[name] for name in WEIGHTS if name in holds},
        scratch=holds["scratch"],
        slot=needs.slot,
        slots=holds.get("experts", 0) // needs.slot + spare,
        spare=spare,
        staging=staging,
        kv=holds.get("KV", 0) + holds.get(PINNED_KV, 0),
        points=holds.get("rewind points", 0),
        pinned=holds.get("pinned", 0),
    )


def longest_context(needs: Needs, config: V4Config, memory: Budget) -> int:
    """The longest context of as many sessions that fits; 0 if none does."""
    low, high = 0, config.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        fits = shortage(cost.at_context(needs, config, middle, needs.sessions), memory) <= 0
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
