"""Figures from results: means, intervals, tails, differences, chance."""

import numpy as np
import pytest

from v4cli.evals import paired, report, statistics


def test_a_mean_counts_every_value_once_and_lies_in_its_interval():
    rng = np.random.default_rng(0)
    windows = [rng.exponential(size=n) for n in (512, 100, 37)]
    found = statistics.mean(windows)
    assert found.value == pytest.approx(np.concatenate(windows).mean()) and found.n == 649
    assert found.low < found.value < found.high
    same = statistics.mean([[2.0] * 40])
    assert (same.value, same.low, same.high) == (2.0, 2.0, 2.0)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    means = [statistics.mean([rng.normal(size=400)]) for _ in range(100)]
    assert sum(found.low < 0 < found.high for found in means) >= 85
    shares = [statistics.share((rng.random(30) < 0.3).tolist()) for _ in range(300)]
    assert sum(found.low < 0.3 < found.high for found in shares) >= 275


def test_a_share_is_wilsons():
    found = statistics.share([True] * 8 + [False] * 2)
    assert (found.value, found.n) == (0.8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # from the literature
    assert statistics.share([True] * 5).high == 1.0


def test_differences_are_paired():
    rng = np.random.default_rng(2)
    before = rng.normal(scale=10, size=640)
    found = statistics.difference([before], [before + 0.1 + rng.normal(scale=0.01, size=640)])
    assert 0.09 < found.low < found.value < found.high < 0.11
    with pytest.raises(ValueError):
        statistics.difference([[1.0]], [[1.0], [2.0]])


def test_mcnemar_is_exact():
    assert statistics.mcnemar([True, False], [True, False]) == 1.0
    assert statistics.mcnemar([True] * 6, [False] * 6) == 2 / 64
    assert statistics.mcnemar([True] * 7 + [False], [False] * 7 + [True]) == pytest.approx(2 * 9 / 256)


def test_tails():
    values = list(range(100))
    assert statistics.worst_mean(values) == 97.0
    assert statistics.worst_mean([1.0, 5.0]) == 5.0
    assert statistics.quantile(values, 0.99) == pytest.approx(98.01)


def results(scale: float, right: list[bool]) -> dict:
    kld = {
        "length": 512,
        "kld": [0.1 * scale] * 64,
        "same": [True] * 64,
        "floor": [0.01] * 64,
        "floor_same": [True] * 64,
    }
    ppl = {"length": 512, "nll": [1.0 + scale] * 64, "reference": [1.0] * 64}
    tools = {
        f"single {i}": {"kind": "single", "exact": hit, "names": hit, "well_formed": hit or None, "loop": not hit}
        for i, hit in enumerate(right)
    }
    return {"kld": {"0.0-512": kld}, "ppl": {"0.0-512": ppl}, "tools": tools}


def test_figures_of_results_and_their_table():
    found = report.figures(results(1.0, [True, True, False]))
    at = found["kld"]["lengths"]["512"]
    assert at["mean"]["value"] == pytest.approx(0.1) and at["above_floor"]["value"] == pytest.approx(0.09)
    assert found["ppl"]["lengths"]["512"]["ratio"]["value"] == pytest.approx(np.e)
    tools = found["tools"]
    assert tools["kinds"] == {"single": [2, 3]} and tools["loops"] == 1 and tools["well_formed"]["n"] == 2
    rows = report.rows(found)
    assert len({len(row) for row in rows}) == 1
    assert ("kld", "512 tokens", "0.1000 nats", "0.1000 to 0.1000", "64") in rows


def test_two_models_are_compared_on_the_items_that_both_have():
    better, worse = results(1.0, [True] * 6 + [False]), results(2.0, [False] * 6)
    lines = paired.compared(worse, better)
    kld, ppl, tools = lines
    assert kld["difference"]["value"] == pytest.approx(-0.1) and ppl["difference"]["value"] == pytest.approx(-1.0)
    assert (tools["other"], tools["this"], tools["difference"]["n"]) == (0.0, 1.0, 6) and tools["p"] == 2 / 64
    assert len(paired.rows(lines)) == 4
    assert paired.compared({}, better) == []
