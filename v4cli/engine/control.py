"""How many drafts are worth verifying: what a row more costs here, as measured, against the chance that it is right.

Nobody is asked what a machine can do: the routed experts of a row may come from VRAM, RAM or an SSD, and their share of
a step, which is what another row costs, shows in how long steps of so many rows take.
"""

from collections import deque
from statistics import median

from v4cli.engine.draft import Draft

KEPT = 15  # latest times of steps of a number of rows, of which the median counts: others compute here, too
ROW = 0.02  # of a step, that each further row costs beside its experts: assumed
ANEW = 64  # steps of several rows, after which one of one row is timed again
FORGET = 64  # steps of one row, after which the oldest time of every other number of rows is forgotten

GAIN = 1.05  # of speed that drafts must promise before any is verified
FIRST, MOST = 1.0, 8.0  # steps in a purse: at first, and at most, so that old gains do not pay for long losses
SHARE = 0.02  # of decoding's time, that goes into the purses of all drafters
EASE = 0.8  # of what making a draft took, kept from one to the next;
LEAP = 4.0  # times that, beyond which it was interrupted
DEAR = 1.25  # times what steps of so many rows take, beyond which one was interrupted
STAKE = 0.5  # of the purse, that more than one token may cost: bad luck leaves something to go on with
VAIN, SELDOM = 8, 4  # drafts of no use in a row, after which there is one at every fourth step only


class Costs:
    """What steps take by their number of rows, in steps of one row. Told by one thread at a time."""

    def __init__(self, experts: int, top_k: int, share: float):
        """`share` of a token's time that its routed experts take: assumed until steps were measured. Rows use
        other experts, by chance, and share all else."""
        self.experts, self.top_k, self.share = experts, top_k, share
        self.single = 0.0  # seconds of a step of one row; 0: not known yet
        self._singles: deque[float] = deque(maxlen=KEPT)
        self._seen: dict[int, deque[float]] = {}  # in steps of one row of their time, which drifts
        self._typical = {1: 1.0}  # medians of these
        self._likely: dict[int, float] = {}  # what `of` has found, until a step tells more
        self._since = 0  # steps of several rows after the last of one; below 0: of one row

    def told(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        if rows == 1:
            self._since = min(self._since, 0) - 1
            self._singles.append(seconds)
            self.single = sorted(self._singles)[len(self._singles) // 2]
            if self._since <= -FORGET:
                self._since = 0
                self._forget()
        elif self.single:  # rows cost no more together than one by one, else the step was interrupted
            self._since = max(self._since, 0) + 1
            seen = self._seen.setdefault(rows, deque(maxlen=KEPT))
            seen.append(min(max(seconds / self.single, 1.0), rows))
            self._typical[rows], self._likely = median(seen), {}

    def _forget(self) -> None:
        """The oldest time of every other number of rows: what made it may be over."""
        self._likely = {}
        for rows, seen in list(self._seen.items()):
            seen.popleft()
            if seen:
                self._typical[rows] = median(seen)
            else:
                del self._seen[rows], self._typical[rows]

    def assumed(self, rows: int) -> float:
        """By the experts that the rows use together."""
        used = self.experts * (1 - (1 - self.top_k / self.experts) ** rows) / self.top_k
        return 1 + self.share * (used - 1) + ROW * (rows - 1)

    def of(self, rows: int) -> float:
        """A step of so many rows. What other numbers of rows let expect counts like one that was seen."""
        found = self._likely.get(rows)
        if found is None:
            found = median([*self._seen.get(rows, ()), self._between(rows)]) if rows > 1 else 1.0
            self._likely[rows] = found
        return found

    def _between(self, rows: int) -> float:
        """By the nearest other numbers of rows that were seen, in the shape that is assumed."""
        others = {n: steps for n, steps in self._typical.items() if n != rows}
        below, above = max(n for n in others if n < rows), min((n for n in others if n > rows), default=None)
        risen = self.assumed(rows) - self.assumed(below)
        if above is not None:
            return others[below] + (others[above] - others[below]) * risen / (self.assumed(above) - self.assumed(below))
        steepness = (others[below] - 1) / (self.assumed(below) - 1) if below > 1 else 1.0
        return others[below] + steepness * risen

    @property
    def stale(self) -> bool:
        """The time of a step of one row was last seen too long ago."""
        return self._since >= ANEW

    @property
    def most_rows(self) -> int:
        """Of a step that is no leap into the unknown: twice what was seen."""
        return 2 * max(self._typical)


class Control:
    """Of one drafter of one timeline: whether it is asked, and how many of its guesses are verified.

    It has a purse of time, counted in steps of one row. A share of all decoding goes in, and what right guesses save;
    out goes what making drafts and verifying them takes, and never more than is there. So drafts slow nothing down by
    more than that share, whatever is guessed; where they pay, the purse is full and does not matter.
    """

    def __init__(self, costs: Costs, share: float, effort: tuple[float, int] = (0.0, 1)):
        """`effort` of the drafter (draft.py)."""
        self.costs, self.share, self.effort = costs, share, effort
        self.purse = FIRST
        self._made = 0.0  # what a draft took, as far as that is known
        self._vain = 0  # drafts, and steps without one, since the last that was of use

    @property
    def _making(self) -> float:
        """What a draft takes."""
        layers, rows = self.effort
        return self._made or layers * self.costs.of(rows)

    def can_pay(self, beside: int = 0) -> bool:
        """For a draft and the verification of a token of it, in a step with so many rows of others."""
        return self.purse > self._making + self.costs.of(2 + beside) - self.costs.of(1 + beside)

    def noted(self, seconds: float) -> None:
        """To let the drafter know what happens took so long."""
        if self.costs.single:
            self.purse -= seconds / self.costs.single

    def may_ask(self, beside: int) -> bool:
        """Whether to ask for a draft: it can be paid, with the verification of a token of it."""
        self._vain += 1
        if not self.costs.single or (self._vain > VAIN and self._vain % SELDOM):
            return False
        return self.can_pay(beside)

    def made(self, seconds: float) -> None:
        """To ask for a draft took so long."""
        took = seconds / self.costs.single
        took = min(took, LEAP * self._made) if self._made else took
        self._made = EASE * self._made + (1 - EASE) * took if self._made else took
        self.purse -= took

    def worth(self, draft: Draft, beside: int) -> int:
        """How many of a draft's tokens to verify in a step that has so many rows `beside` this timeline's own: those
        that make most tokens of the time, and that the purse can pay if none is right."""
        costs = self.costs
        if not beside and costs.stale:
            return 0
        alone, expected, survival = costs.of(1 + beside), 1.0 + beside, 1.0
        best, best_rate = 0, GAIN * expected / (alone + self._making)
        for n, chance in enumerate(draft.chances[: max(costs.most_rows - 1 - beside, 0)], 1):
            survival *= chance
            if survival < ROW:
                break
            expected += survival
            step = costs.of(1 + beside + n)
            rate = expected / (step + self._making)
            if step - alone > (self.purse if n == 1 else STAKE * self.purse):
                break
            if rate > best_rate:
                best, best_rate = n, rate
        self._vain = 0 if best else self._vain
        return best

    def stepped(self, seconds: float, n_drafts: int, beside: int) -> None:
        """A step that verified so many of its drafts took so long."""
        alone, step = self.costs.of(1 + beside), self.costs.of(1 + beside + n_drafts)
        if n_drafts:
            step = min(seconds / self.costs.single, DEAR * step)
            self.purse -= step - alone
        self._put(self.share * step)

    def gained(self, beside: int) -> None:
        """A draft was right: it has saved this timeline's part of a step."""
        self._put(self.costs.of(1 + beside) / (1 + beside))

    def _put(self, steps: float) -> None:
        self.purse = min(self.purse + steps, MOST)
