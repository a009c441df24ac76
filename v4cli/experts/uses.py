"""What the rows of a step use, kept until it is known which of them count: guessed tokens may be wrong, and a policy is
to learn what it would have learned from the right ones, computed one by one."""

from collections.abc import Sequence

import numpy as np

from v4cli.experts.policy import Residency, nearness


class Uses:
    """Of one step some of whose rows are guesses."""

    def __init__(self, guesses: Sequence[int]):
        """Numbers of the rows that are."""
        self.guesses = frozenset(guesses)
        self._layers: list[tuple[int, np.ndarray, np.ndarray | None]] = []

    def note(self, first: int, ids: np.ndarray, scores: np.ndarray | None) -> None:
        """A layer, whose experts are numbered from `first`, routes to ids (N, k) by scores (N, E), None in hash
        layers."""
        self._layers.append((first, ids.copy(), None if scores is None else scores.copy()))

    def learn(self, policy: Residency) -> None:
        """The step is over: it counts as far as it is certain."""
        policy.forget_step()
        n = len(self._layers[0][1]) if self._layers else 0
        self._teach(policy, [row for row in range(n) if row not in self.guesses])

    def confirm(self, policy: Residency, row: int) -> None:
        """Between later steps: this guess was right, and counts as a step of its own."""
        self._teach(policy, [row])

    def _teach(self, policy: Residency, rows: list[int]) -> None:
        for first, ids, scores in self._layers:
            experts, counts = np.unique(ids[rows], return_counts=True)
            if scores is not None:
                policy.scored(first, nearness(scores[rows], ids.shape[1]))
            policy.used(experts + first, counts, len(rows))
        policy.end_step(len(rows))
