"""Experts on demand: some stay in memory (residency.py says which), the others are read when a step needs them.

A step asks layer by layer with `serve`, which hands out experts as they are there: those just read first, as they
block the reading of others, resident ones while reads are on. What a step will need can be named before with `expect`,
what it may need with `guess`.
Slots beyond the residents' are for experts on their way: read, used, then made resident or dropped, never copied.
Experts of one shape (the same formats) have slots of their size, of those for residents their share.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import asdict, astuple, dataclass, fields, replace

import numpy as np

from v4cli.experts.files import ExpertFiles
from v4cli.experts.policy import Divided
from v4cli.experts.reader import Rank, Reader
from v4cli.experts.uses import Uses

FILLER = 2  # residents computed at a time while reads are on


@dataclass
class Counts:
    """What the experts of some steps cost; counted per distinct expert of a layer and step."""

    hits: int = 0  # were in memory
    on_card: int = 0  # of the hits, in slots of a GPU
    misses: int = 0  # had to be read
    expected: int = 0  # of the misses, named before the layer asked
    bytes_read: int = 0
    bytes_wasted: int = 0  # of these, of experts that nothing asked for
    bytes_used: int = 0
    wait_s: float = 0.0  # nothing to compute, waiting for a read
    busy_s: float = 0.0  # at least one read was on

    def since(self, before: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))

    def plus(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def share(self, part: float) -> "Counts":
        """A part of it, that of some of the rows of a step."""
        return self if part == 1 else Counts(*(type(value)(part * value) for value in astuple(self)))

    def to_dict(self) -> dict:
        used = self.hits + self.misses
        rates = {"hit_rate": self.hits, "card_hit_rate": self.on_card}
        return asdict(self) | {name: count / used if used else 0.0 for name, count in rates.items()}


def divided(n_slots: int, counts: Sequence[int]) -> list[int]:
    """So many slots among shapes, of each of which there are so many experts: on average they take what one does."""
    return [n_slots * count // sum(counts) for count in counts]


class ExpertStream:
    """The experts of one model, for one forward pass at a time, called from one thread."""

    def __init__(self, files: ExpertFiles, n_slots: int, spare: int):
        """`spare` of the slots are for experts on their way, as many of each shape, and at least one."""
        self.n_slots, self.spare = n_slots, spare
        ways = max(1, spare // len(files.counts))
        places = divided(n_slots - spare, files.counts)
        self.policy = Divided(places, np.array(files.shape_of))
        self.reader = Reader(files, [n + ways for n in places])
        self._slot: dict[int, int] = {}  # of experts that are in memory or on their way there
        self._expert = [-1] * self.reader.n_slots  # the same by slot
        self._there = np.zeros(len(files), bool)  # its bytes are complete
        self._expected: set[int] = set()  # named, on their way or there, not yet used
        self._free: list[list[int]] = [[] for _ in files.counts]  # slots, by shape
        for slot, shape in reversed(list(enumerate(self.reader.shape_of))):
            self._free[shape].append(slot)
        self._asked: deque[int] = deque()  # to be read as slots become free; these first
        self._sure: deque[int] = deque()
        self._likely: deque[int] = deque()
        self._failed: dict[int, Exception] = {}
        self._counts = Counts()
        self.elsewhere = np.zeros(len(files), bool)  # held by a device too: what is expected of them is not read
        self.moved: Callable[[int], None] = lambda expert: None  # told of experts that are `there` now, or no more

    @property
    def counts(self) -> Counts:
        """So far."""
        wasted = self._counts.bytes_wasted + self.reader.bytes_wasted
        return replace(self._counts, bytes_read=self.reader.bytes_read, busy_s=self.reader.busy_s, bytes_wasted=wasted)

    def slots(self, experts: list[int]) -> list[int]:
        """The slots of experts that `serve` just gave."""
        return [self._slot[expert] for expert in experts]

    # -- a step ---------------------------------------------------------------------------------------------------

    def expect(self, experts: list[int]) -> None:
        """Experts that this step will need, in the order of need."""
        self._name(experts, self._sure)

    def guess(self, layer: int, experts: list[int]) -> None:
        """Experts that a layer will probably ask for, the likeliest first; other guesses about it are given up, unless
        they are there already."""
        first = layer * self.reader.files.per_layer
        about = range(first, first + self.reader.files.per_layer)
        self._forget({e for e in self._expected.difference(experts) if e in about and not self._there[e]})
        self._name(experts, self._likely)

    def _name(self, experts: list[int], queue: deque[int]) -> None:
        self.policy.hold(experts)
        for expert in experts:
            if expert not in self._slot and expert not in self._expected and not self.elsewhere[expert]:
                queue.append(expert)
                self._expected.add(expert)
        self._pump()

    def serve(self, experts: np.ndarray, uses: np.ndarray, n_tokens: int) -> Iterator[list[int]]:
        """Hand out distinct experts, ascending, of one layer; `uses` of each by the step's tokens. Reading starts at
        once. Every expert comes once, in lists, and may be used until the next list is asked for. ModelError if one
        cannot be read."""
        served = self.hand_out(experts)
        self.policy.used(experts, uses, n_tokens)  # reads are on meanwhile
        return served

    def hand_out(self, experts: np.ndarray) -> Iterator[list[int]]:
        """The same without telling the policy of uses, for who did so before."""
        self.policy.hold(experts)
        asked = experts.tolist()
        missing = [expert for expert in asked if not self._there[expert] or not self.policy.resident[expert]]
        self._count(asked, missing)
        for expert in missing:
            if expert in self._slot:
                self.reader.hurry(self._slot[expert])
            else:
                self._asked.append(expert)
                self._failed.pop(expert, None)
        waiting = set(missing)
        self._pump(waiting)
        return self._handed_out(deque(expert for expert in asked if expert not in waiting), waiting)

    def _handed_out(self, residents: deque[int], waiting: set[int]) -> Iterator[list[int]]:
        while waiting or residents:
            self._collect()
            self._pump(waiting)
            ready = sorted(expert for expert in waiting if self._there[expert])
            if ready:
                yield ready
                waiting.difference_update(ready)
                for expert in ready:
                    self._settle(expert)
            elif residents:
                count = min(FILLER, len(residents)) if waiting else len(residents)
                yield [residents.popleft() for _ in range(count)]
            else:
                self._wait(waiting)

    def settle(self, asked: list[int]) -> None:
        """Distinct experts of one layer, all in memory, were used as they lie there instead of being handed out."""
        brought = [expert for expert in asked if not self.policy.resident[expert]]
        self._count(asked, brought)
        for expert in brought:
            if self._there[expert]:  # not dropped since
                self._settle(expert)

    def end_step(self, n_tokens: int, uses: Uses | None = None) -> None:
        """All layers are served: what was expected in vain goes, the policy learns. `uses`: of a step with guesses."""
        self._forget(self._expected)
        if uses is None:
            self.policy.end_step(n_tokens)
        else:
            uses.learn(self.policy)

    def abandon(self) -> None:
        """The step failed or was interrupted: nothing of it is kept but what is resident."""
        self._asked.clear()
        self._collect()
        self._forget(self._expected.union(e for e in self._slot if not self.policy.resident[e]))
        self.policy.forget_step()

    def release(self, experts: Iterable[int]) -> None:
        """Between steps: these are held elsewhere now, and leave the memory if they are there."""
        for expert in experts:
            if self._there[expert]:
                self._expected.discard(expert)
                self._drop(expert)
        self._pump()

    def there(self, expert: int) -> int | None:
        """The slot of an expert whose bytes are complete."""
        return self._slot[expert] if self._there[expert] else None

    def forget(self, experts: Iterable[int]) -> None:
        """Of these, what was expected is not needed."""
        self._forget(self._expected.intersection(experts))

    # -- slots ----------------------------------------------------------------------------------------------------

    def _count(self, asked: list[int], missing: list[int]) -> None:
        c, sizes = self._counts, self.reader.files.sizes
        c.hits += len(asked) - len(missing)
        c.misses += len(missing)
        c.expected += len(self._expected.intersection(missing))
        c.bytes_used += sum(sizes[expert] for expert in asked)
        self._expected.difference_update(missing)

    def _pump(self, waiting: Set[int] = frozenset()) -> None:
        """Start the reads there is room for. A layer that waits without any read of its own gets room by force."""
        ranks = (self._asked, Rank.NOW), (self._sure, Rank.NOW), (self._likely, Rank.SOON)
        for queue, rank in ranks:
            while queue:
                if queue[0] in self._slot or (queue is not self._asked and queue[0] not in self._expected):
                    queue.popleft()
                elif self._free_for(queue[0]) or (queue is self._asked and self._make_room(queue[0], waiting)):
                    self._start(queue.popleft(), rank)
                else:
                    return

    def _free_for(self, expert: int) -> list[int]:
        """The slots that it may be read into."""
        return self._free[self.policy.kind[expert]]

    def _make_room(self, wanted: int, waiting: Set[int]) -> bool:
        """Drop an expected expert for one that is needed now, if nothing this layer waits for is on its way."""
        if not waiting or any(expert in self._slot for expert in waiting):
            return False
        kind = self.policy.kind
        there = next((e for e in self._expected if self._there[e] and kind[e] == kind[wanted]), None)
        if there is not None:
            self._forget({there})
        return bool(self._free_for(wanted))

    def _start(self, expert: int, rank: Rank) -> None:
        slot = self._free_for(expert).pop()
        self._slot[expert], self._expert[slot] = slot, expert
        self._failed.pop(expert, None)
        self.reader.ask(expert, slot, rank)

    def _collect(self, wait: bool = False) -> None:
        """Take note of finished reads."""
        for slot, error in self.reader.take(wait).items():
            expert = self._expert[slot]
            if expert < 0:  # given up on its way
                self._release(slot)
            elif error is None:
                self._there[expert] = True
                self.moved(expert)
            else:
                self._failed[expert] = error
                self._expected.discard(expert)
                self._drop(expert, arrived=True)

    def _wait(self, waiting: set[int]) -> None:
        start = time.perf_counter()
        self._collect(wait=True)
        self._counts.wait_s += time.perf_counter() - start
        failed = waiting.intersection(self._failed)
        if failed:
            raise self._failed[min(failed)]

    def _settle(self, expert: int) -> None:
        """After its use: it becomes or stays resident, or its slot free."""
        victim = None if self.policy.resident[expert] else self.policy.admit(expert)
        if victim is not None:
            self._drop(victim)
        self._pump()

    def _drop(self, expert: int, arrived: bool = False) -> None:
        """Out of memory. The slot of one on its way is free when its reading has stopped."""
        self.policy.drop(expert)
        slot = self._slot.pop(expert)
        self._expert[slot] = -1
        if self._there[expert] or arrived or self.reader.cancel(expert, slot):
            self._release(slot)
        self._there[expert] = False
        self.moved(expert)

    def _release(self, slot: int) -> None:
        """Nobody uses it any more."""
        self._free[self.reader.shape_of[slot]].append(slot)

    def _forget(self, experts: set[int]) -> None:
        """Give up experts that are not resident."""
        for expert in list(experts):
            self._expected.discard(expert)
            if expert in self._slot:
                self._counts.bytes_wasted += self.reader.files.sizes[expert] if self._there[expert] else 0
                self._drop(expert)
        self._pump()

    def shrink(self, n_slots: int) -> None:
        """Between steps: give memory back until only so many slots are left, not fewer than those for experts on their
        way. What is given back does not return."""
        n_slots = max(n_slots, self.spare)
        if n_slots >= self.n_slots:
            return
        self.abandon()  # the step before may have failed
        before, self.n_slots = self.policy.places_of, n_slots
        for victim in self.policy.give_way(divided(n_slots - self.spare, self.reader.files.counts)):
            self._drop(victim)
        for free, old, new in zip(self._free, before, self.policy.places_of):
            while len(free) < old - new:  # some may be on their way still
                self._collect(wait=True)
            for _ in range(old - new):
                self.reader.discard(free.pop())

    # -- learned use ------------------------------------------------------------------------------------------------

    def learn(self, arrays: dict[str, np.ndarray]) -> None:
        """Begin with what `policy.learned()` gave in another run: the likeliest experts are read while there is
        nothing more urgent. ValueError if it does not fit."""
        self.policy.learn(arrays)
        for expert in self.policy.best().tolist():
            self.policy.admit(expert)
            self._start(expert, Rank.IDLE)

    def close(self) -> None:
        """Stop reading."""
        self.reader.close()
