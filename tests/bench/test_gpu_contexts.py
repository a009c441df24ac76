"""A model measured as on a card: rows for all that is asked, hits as they are forced; on the CPU, by a made clock."""

import numpy as np
import pytest
from v4kernels import native

from v4cli.bench.gpu_model import Wanted, forced_table, measure
from v4cli.bench.gpu_part import Part
from v4cli.engine.engine import Engine
from v4cli.store import library

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")


class Ticking:
    """A clock and a bank at once: whoever asks for the time finds it later by what the hits cost."""

    def __init__(self):
        self.share, self.now, self.forced = 1.0, 0.0, []

    def force(self, share: float) -> None:
        self.share = share
        self.forced.append(share)

    def hits(self) -> float:
        return self.share

    def clock(self) -> float:
        self.now += 2 - self.share
        return self.now


def test_every_context_share_and_prompt_has_a_row():
    bank, part = Ticking(), Part(None, 1e9)
    engine = Engine.open(library.model_folder("nano"), "cpu")
    wanted = Wanted(contexts=(300, 900), hits=(100, 50), prompts=(64, 200), tokens=3)
    measure(engine, bank, part, wanted, bank.clock)
    assert part.found["missing"] == {}
    rows = part.found["decode"]
    assert [(row["ctx"], row["hits_wanted"]) for row in rows] == [(c, h) for c in (300, 900) for h in (100, 50)]
    for row in rows:
        assert row["hits"] == row["hits_wanted"] / 100 and row["steps"] == 3
        assert row["tokens_per_s"] == pytest.approx(1 / (2 - row["hits"])) == pytest.approx(1e3 / row["ms"])
    assert [(row["tokens"], row["tokens_per_s"]) for row in part.found["prefill"]] == [(64, 64.0), (200, 200.0)]
    assert bank.forced == [1.0, 0.5, 1.0, 0.5, 1.0, 1.0]


def test_what_there_is_no_time_for_is_named():
    part = Part(None, -1)
    measure(Engine.open(library.model_folder("nano"), "cpu"), Ticking(), part, Wanted())
    assert set(part.found["missing"].values()) == {"no time was left"} and len(part.found["missing"]) == 6


@pytest.mark.parametrize("share, n_slots", [(0.0, 5), (0.4, 40), (0.95, 1000), (1.0, 256), (1.0, 3)])
def test_a_forced_table_has_the_share_asked_for(share, n_slots):
    table = forced_table((7, 20), share, n_slots, np.random.default_rng(1))
    assert ((table >= 0).sum(1) == round(20 * share)).all() and table.max() < n_slots
    for row in table:
        held = row[row >= 0]
        assert len(set(held.tolist())) == min(len(held), n_slots)
