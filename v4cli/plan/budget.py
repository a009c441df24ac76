"""What a memory budget means for one model: how many experts stay in memory, or that it cannot be run in it."""

from collections.abc import Mapping
from dataclasses import dataclass

from v4cli.errors import ResourceError
from v4cli.model.config import V4Config
from v4cli.model.schema import TensorSpec
from v4cli.plan import cost
from v4cli.plan.placement import Budget, Plan, make_plan, shortage

CONTEXT = 32_768  # tokens whose KV state is planned for
SHARE = 0.9  # of what is free, by default; the rest is for everything else
SPEED = 1.0  # of any tier: this plan is about room, not time


@dataclass(frozen=True)
class Residence:
    """`plan`: who holds what. `slots`: experts in memory at a time, of them `spare` on their way; none if all fit."""

    plan: Plan
    slots: int
    spare: int


def residence(config: V4Config, tensors: Mapping[str, TensorSpec], ram: int) -> Residence:
    """Place a store's tensors in `ram` bytes. ResourceError, with what would fit, if that is impossible."""
    needs = cost.at_context(cost.needs(config, tensors), config, min(CONTEXT, config.max_position_embeddings))
    budget = Budget(ram, 0, SPEED, SPEED, SPEED)
    missing = shortage(needs, budget)
    if missing > 0:
        least = -(-(ram + missing) >> 20)
        raise ResourceError(
            f"the model needs {least} MiB of RAM with its experts on disk, {ram >> 20} MiB may be used",
            f"--ram {least}M",
        )
    plan = make_plan(needs, budget)
    if plan.resident == 1:
        return Residence(plan, 0, 0)
    spare = needs.staging // needs.expert
    return Residence(plan, plan.ram.holds.get("experts", 0) // needs.expert + spare, spare)
