"""Who guesses, and who decides whether it is worth it: without a model."""

import time
from statistics import median

import numpy as np
import pytest

from v4cli.bench.drafts import best_speed, timed
from v4cli.engine.control import ANEW, FIRST, FORGET, MOST, SHARE, Control, Costs
from v4cli.engine.draft import LEAST_MATCH, Draft, NGram
from v4cli.engine.drafting import Drafting
from v4cli.engine.sampler import Sampler, Sampling


def drafted(text: str, most: int = 8, drafter: NGram | None = None) -> str:
    tokens = [ord(c) for c in text]
    return "".join(map(chr, (drafter or NGram()).draft(tokens[:-1], tokens[-1], most).tokens))


def test_what_followed_the_longest_match_is_guessed_the_latest_of_equals():
    assert drafted("one two three. one two") == " three. "
    assert drafted("abcdX bcdY abcdZ abcd", 1) == "Z"
    assert drafted("xabcdX abcdY xabcd", 1) == "X", "longer is better than later"
    assert drafted("abcX abc") == "", f"fewer than {LEAST_MATCH} do not count"
    assert drafted("a") == drafted("abcd") == drafted("aaaa") == ""


def test_what_repeats_goes_on():
    assert drafted("ababababab") == "abababab"
    assert drafted("aaaaaa", 3) == "aaa"


def test_a_timeline_that_went_back_is_looked_at_anew():
    drafter = NGram()
    assert drafted("abcdefgh abcd", 4, drafter) == "efgh"
    drafter.back(4)
    assert drafted("abcdXXXX abcd", 4, drafter) == "XXXX"
    drafter.back(0)
    whole = "x" * 3000 + "abcdefgh abcd"
    assert drafted(whole, 4, drafter) == drafted(whole, 4) == "efgh"


def test_chances_follow_what_was_seen_by_length():
    drafter = NGram()
    assert chances(drafter, 4) < chances(drafter, 8) < chances(drafter, 16) < chances(drafter, 32)
    before = chances(drafter, 16)
    for _ in range(20):
        drafter.seen(Draft([1, 2, 3], [0.5] * 3, 7), 0, True)
        drafter.seen(Draft([1, 2, 3], [0.5] * 3, 7), 1, False)
    assert chances(drafter, 4) > 0.8 > 0.3 > chances(drafter, 8) and chances(drafter, 16) == before


def chances(drafter: NGram, length: int) -> float:
    """Of the first guess after a match of so many tokens."""
    drafter.back(0)
    tokens = [*range(length), 100, *range(length)]
    draft = drafter.draft(tokens[:-1], tokens[-1], 1)
    assert (draft.tokens, draft.key) == ([100], length)
    return draft.chances[0]


def costs_of(times: dict[int, float]) -> Costs:
    costs = Costs(256, 6, 0.3)
    for rows, seconds in times.items():
        for _ in range(15):
            costs.told(rows, seconds)
    return costs


def test_what_was_not_seen_is_assumed_between_what_was():
    costs = costs_of({1: 2.0})
    assert costs.single == 2.0 and costs.of(1) == 1.0 and 1.2 < costs.of(2) < 1.4 and 2.0 < costs.of(6) < 3.0
    costs = costs_of({1: 1.0, 8: 2.0})
    assert 1.0 < costs.of(2) < costs.of(4) < 2.0 == costs.of(8) < costs.of(9) and costs.most_rows == 16
    assert Costs(256, 6, 0.3).single == 0
    everything = Costs(4, 4, 0.5)
    everything.told(1, 1.0)
    assert everything.of(1) == 1.0 < everything.of(2) < 1.1


def test_what_a_step_took_is_told_from_what_interrupted_it_and_forgotten():
    costs = costs_of({1: 1.0})
    before = costs.of(4)
    costs.told(4, 100.0)
    assert costs.of(4) < 4.0
    for _ in range(5):
        costs.told(4, 1.5)
    assert costs.of(4) == 1.5 and not costs.stale
    for _ in range(ANEW):
        costs.told(4, 1.5)
    assert costs.stale
    for _ in range(30 * FORGET):
        costs.told(1, 1.0)
    assert costs.of(4) == before and costs.most_rows == 2 and not costs.stale


def control_of(times: dict[int, float], purse: float = MOST) -> Control:
    control = Control(costs_of(times), 0.02)
    control.purse = purse
    return control


def test_as_many_are_verified_as_pay():
    sure = Draft(list(range(8)), [0.95] * 8)
    assert control_of({1: 1.0, 9: 1.6}).worth(sure, 0) == 8 and control_of({1: 1.0, 9: 9.0}).worth(sure, 0) == 0
    assert control_of({1: 1.0, 9: 1.6}).worth(Draft([1], [0.02]), 0) == 0
    fading = Draft(list(range(8)), [0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9])
    assert control_of({1: 1.0, 9: 3.0}).worth(fading, 0) == 3
    assert not Control(Costs(256, 6, 0.3), 0.02).may_ask(0), "nothing is known yet"


def test_no_more_is_spent_than_is_there():
    sure = Draft(list(range(8)), [0.95] * 8)
    times = {n: 1 + 0.25 * (n - 1) for n in (1, 2, 4, 8)}
    assert control_of(times, 2.2).worth(sure, 0) == 4 and control_of(times, 0.2).worth(sure, 0) == 0
    assert control_of(times, 0.3).may_ask(0) and not control_of(times, 0.2).may_ask(0)
    control = control_of(times, 0.3)
    control.made(0.1)
    assert control.purse == pytest.approx(0.2) and not control.may_ask(0)
    control.stepped(1.0, 0, 0)
    assert control.purse == pytest.approx(0.22)
    control.stepped(1.3, 1, 0)
    control.gained(0)
    assert control.purse == pytest.approx(0.22 + 0.02 * 1.3 - 0.3 + 1.0)
    control.stepped(100.0, 1, 0)
    assert control.purse > 0, "it was interrupted"


def test_a_drafter_that_could_not_be_asked_need_not_know_what_happens():
    times = {n: 1 + 0.25 * (n - 1) for n in (1, 2, 4, 8)}
    half, whole = (Control(costs_of(times), 0.02, (layers, 4)) for layers in (0.4, 0.5))
    assert half.can_pay() and half.may_ask(0), "0.4 of a step of four rows, and another row"
    assert not whole.can_pay() and not whole.may_ask(0)
    half.noted(0.1)
    assert half.purse == pytest.approx(FIRST - 0.1) and not half.can_pay()


class Machine:
    """A session that is only a clock: rows cost what they cost, guesses are right as often as they are."""

    def __init__(self, times: dict[int, float], right: float, told: float, making: float, seed: int = 0):
        """`told`: the chance that the drafter says its guesses have, `making`: seconds that a draft takes."""
        self.times, self.right, self.told, self.making = times, right, told, making
        self.rng, self.costs = np.random.default_rng(seed), Costs(64, 6, 0.3)
        self.clock, self.n_tokens = 0.0, 0
        self.drafting = Drafting(self.costs, [self])
        self.drafting.begin("auto", Sampler(Sampling(0.0)))
        self.verified: list[int] = []  # at which tokens

    name, effort = "machine", (0.0, 1)

    def draft(self, tokens, last, most):
        self.clock += self.making
        return Draft([1] * most, [self.told] * most)

    def seen(self, draft, i, right): ...

    def back(self, n_tokens): ...

    def decode(self, n_tokens: int) -> float:
        """As a session does: speed, in that of plain decoding."""
        while self.n_tokens < n_tokens:
            drafts = self.drafting.propose([], 0, 15, 0)
            self.verified += [self.n_tokens] * bool(drafts)
            rows = 1 + len(drafts)
            seconds = float(np.interp(rows, list(self.times), list(self.times.values()))) * self.rng.uniform(0.9, 1.1)
            self.clock += seconds
            self.costs.told(rows, seconds)
            self.drafting.stepped(seconds)
            for _ in range(rows):
                self.n_tokens += 1
                hit = self.rng.random() < self.right
                self.drafting.decide(1 if hit else 0)
                if not hit:
                    break
        return self.n_tokens / self.clock


FLASH = {1: 1.0, 2: 1.37, 4: 1.73, 8: 2.5, 16: 3.68}  # steps of random weights, 4 layers of 64 experts
SLOPES = [{1: 1.0, 16: 1 + 15 * row} for row in (0.05, 0.25, 0.6, 1.0)]


@pytest.mark.parametrize("times", [FLASH, *SLOPES])
@pytest.mark.parametrize("right", [0.0, 0.4, 0.6, 0.8, 0.95])
def test_speed_is_what_the_times_of_steps_let_expect(monkeypatch, times, right):
    speeds = []
    for seed in range(5):
        machine = Machine(times, right, right, 0.0, seed)
        monkeypatch.setattr(time, "perf_counter", lambda machine=machine: machine.clock)
        speeds.append(machine.decode(256))
        assert machine.verified == [] or right
    predicted = best_speed(right, lambda n: timed(times, n), 15)
    assert 0.85 * predicted < median(speeds) < 1.15 * predicted and min(speeds) > 0.97


@pytest.mark.parametrize("making", [0.01, 0.3])
@pytest.mark.parametrize("times", [FLASH, *SLOPES])
def test_who_boasts_has_spent_all_it_may_within_few_tokens(monkeypatch, times, making):
    """Drafts that take time, of guesses that are never right and said to be."""
    for told in (0.6, 0.99):
        machine = Machine(times, 0.0, told, making)
        monkeypatch.setattr(time, "perf_counter", lambda machine=machine: machine.clock)
        machine.decode(32)
        lost = machine.clock - 32
        assert lost < FIRST + SHARE * 32 + 1.0
        machine.decode(1032)
        assert machine.clock - 1032 - lost < 0.03 * 1000
