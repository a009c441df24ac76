"""Which experts are worth a copy to the device: what is done the soonest."""

from itertools import product

import numpy as np
import pytest

from v4cli.experts.passing import Rates

PCIE_4 = Rates(link=22e9, ram=60e9, pair_s=40e-6)
FLASH = 13.4e6  # bytes of an expert


def taken(rates: Rates, uses: np.ndarray, n_bytes: np.ndarray, copied: np.ndarray) -> float:
    """Seconds until copies and CPU are done."""
    on_cpu = np.maximum(n_bytes / rates.ram, uses * rates.pair_s)
    return max(n_bytes[copied].sum() / rates.link, on_cpu[~copied].sum())


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_is_done_sooner(seed):
    rng = np.random.default_rng(seed)
    rates = Rates(*(10 ** rng.uniform((9, 9, -6), (11, 11, -3))))
    uses, n_bytes = rng.geometric(0.05, 9), np.full(9, FLASH)
    every = [np.array(choice, bool) for choice in product((0, 1), repeat=9)]
    best = min(taken(rates, uses, n_bytes, choice) for choice in every)
    assert taken(rates, uses, n_bytes, rates.worth_a_copy(uses, n_bytes)) == pytest.approx(best)


def test_those_with_many_rows_are_copied_and_the_cpu_keeps_the_others():
    uses = np.array([400, 3, 1, 90, 250, 2])
    assert PCIE_4.worth_a_copy(uses, np.full(6, FLASH)).tolist() == [True, False, False, True, True, False]


def test_without_a_link_nothing_is_copied_and_without_a_cpu_everything():
    uses, n_bytes = np.array([5, 500, 1]), np.full(3, FLASH)
    assert not Rates(1e-3, 60e9, 4e-5).worth_a_copy(uses, n_bytes).any()
    assert Rates(22e9, 1e-3, 4e-5).worth_a_copy(uses, n_bytes).all()
