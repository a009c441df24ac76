"""What `v4 bench --drafts` measures; not how fast it is."""

import numpy as np
import pytest
from tiny import STORE_LIKE, config
from v4kernels import native

from v4cli import paths
from v4cli.bench import drafts
from v4cli.bench.speed import random_engine
from v4cli.chat.turn import Chat
from v4cli.cli.bench_drafts import bench_drafts
from v4cli.errors import UsageError

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the kernel library")


def test_forced_guesses_are_measured_beside_plain_decoding(monkeypatch):
    monkeypatch.setattr(drafts, "ROUNDS", 1)
    engine = random_engine(config(STORE_LIKE), "native", "random")
    report = drafts.forced(engine, 8, 16, (0.0, 0.95))
    assert [rate.right for rate in report.rates] == [0.0, 0.95]
    assert list(report.row_times) == [1, 2, 4, 8, 16] and report.row_times[1] == 1.0
    assert all(rate.speed > 0 and rate.predicted >= 1 for rate in report.rates)
    assert report.to_dict()["rates"][0]["accepted_per_step"] == 0.0


def test_the_formula_is_that_of_the_table():
    """Resident, s = 0.31 and no cost of drafting: it pays from about these chances on."""
    used = drafts.uses(256, 6)
    assert np.round([used(n) for n in (1, 2, 4, 6, 8)], 2).tolist() == [1.0, 1.98, 3.86, 5.66, 7.37]

    def speed(right: float) -> float:
        return drafts.best_speed(right, lambda n: 1 + 0.31 * (used(n) - 1), 15)

    assert speed(0.25) == 1.0 < speed(0.4) and speed(0.95) == pytest.approx(2.3, abs=0.15)
    assert drafts.timed({1: 1.0, 2: 1.5, 4: 2.0}, 3) == 1.75


def test_kinds_of_answers_are_told_apart():
    kinds = drafts.by_kind(Chat.open(paths.NANO), "ngram", 1)
    names = [kind.kind for kind in kinds]
    assert {"copy: repeat", "copy: quote", "copy: edit"} < set(names) and len(set(names)) == len(names)
    assert all(kind.answers and kind.tokens and kind.speed > 0 for kind in kinds)


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="--drafts must be one of auto"):
        bench_drafts("nano", None, None, "some", 1, 1, "text")
