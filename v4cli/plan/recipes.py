"""What each recipe that comes along would make of a model: bytes on disk and in memory, and what a token would cost."""

from collections.abc import Iterator
from dataclasses import dataclass

from v4cli.model.config import V4Config
from v4cli.plan import cost
from v4cli.plan.cards import Card
from v4cli.plan.machines import Outlook, outlook
from v4cli.plan.placement import Budget, Needs, in_memory, shortage
from v4cli.store.recipe import RECIPES, Named


@dataclass(frozen=True)
class Offer:
    """A model by a recipe, with what its sessions take."""

    recipe: Named
    bits: float  # of a weight of the routed experts, on average
    needs: Needs

    @property
    def file_bytes(self) -> int:
        """All of its tensors on disk."""
        return sum(cost.held_by_part(self.needs).values())

    @property
    def read_bytes_per_token(self) -> int:
        """Of its weights."""
        return sum(cost.read_by_part(self.needs).values())

    @property
    def ram(self) -> int:
        """Bytes of RAM, without a card, in which all of it is in memory."""
        return in_memory(self.needs)

    def outlook(self, config: V4Config, n_tokens: int, budget: Budget, card: Card | None) -> Outlook | None:
        """What becomes of it on a machine; None where it does not fit."""
        return None if shortage(self.needs, budget) > 0 else outlook(self.needs, config, n_tokens, budget, card)


def offers(config: V4Config, with_mtp: bool, n_tokens: int, sessions: int) -> Iterator[Offer]:
    """Every recipe's."""
    values = 3 * config.hidden_size * config.moe_intermediate_size
    for recipe in RECIPES.values():
        bare = cost.needs_of_release(config, recipe.rules, with_mtp)
        yield Offer(recipe, 8 * bare.expert / values, cost.at_context(bare, config, n_tokens, sessions))
