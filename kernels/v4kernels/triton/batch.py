"""The rows of a step on a device."""

from dataclasses import dataclass

from v4kernels.triton.dense import FEW
from v4kernels.triton.memory import Buffer
from v4kernels.triton.record import StepRecord


@dataclass(frozen=True, slots=True)
class TritonBatch:
    """Rows of a step: `record` says them, `last` is how many tokens the longest of their timelines has behind it."""

    record: StepRecord
    last: int

    @property
    def rows(self) -> int:
        return self.record.rows

    @property
    def few(self) -> bool:
        """Whether they are so few that the step may be recorded; what it launches does not depend on positions then."""
        return self.rows <= FEW

    @property
    def lines(self) -> Buffer:
        return self.record.at("lines")

    def turns(self, ratio: int) -> Buffer:
        """cos, sin of the rows' positions, as layers of that compression ratio have them."""
        return self.record.at("turns", ratio)
