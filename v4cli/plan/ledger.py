"""One ledger of memory: what a process holds of its budget, item by item.

It is filled twice, beforehand from formulas (budget.py) and while a model runs by asking whoever holds the bytes
(engine/account.py); whatever decides about memory decides by it. Sessions grow at the expense of experts, down to the
slots that must be there for those on their way; then rewind points go; what does not fit then is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

RUNTIME = 256 << 20  # interpreter, libraries, tokenizer, what the allocator keeps


@dataclass(frozen=True)
class Ledger:
    """Bytes of RAM of a process. `weights` by component; `slots` of on average `slot` bytes hold experts, `spare` of
    them, `staging` bytes in all, those on their way, none if all experts fit; `kv` and `points` are those of all
    sessions together; `pinned`: what a GPU sees too."""

    budget: int
    weights: Mapping[str, int]
    scratch: int
    slot: int
    slots: int
    spare: int
    staging: int
    kv: int
    points: int
    runtime: int = RUNTIME
    pinned: int = 0

    @property
    def items(self) -> dict[str, int]:
        """All of it by name."""
        return {
            "runtime": self.runtime,
            **self.weights,
            "scratch": self.scratch,
            "staging": self.staging,
            "experts": (self.slots - self.spare) * self.slot,
            "KV": self.kv,
            "rewind points": self.points,
        } | ({"pinned": self.pinned} if self.pinned else {})

    @property
    def least(self) -> int:
        """Slots that must stay: what is not read on demand cannot give way."""
        return self.spare or self.slots

    @property
    def held(self) -> int:
        return sum(self.items.values())

    @property
    def free(self) -> int:
        """What is left of the budget; negative if it is exceeded."""
        return self.budget - self.held

    def with_sessions(self, kv: int, points: int, scratch: int) -> "Ledger":
        """The same while sessions hold so much: experts give way where it does not fit, as far as they can."""
        full = replace(self, kv=kv, points=points, scratch=scratch)
        excess = -(full.free // self.slot) if full.free < 0 else 0
        return replace(full, slots=max(self.least, self.slots - excess))
