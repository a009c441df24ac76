"""A model of random weights on the PTX machine's device: steps with hits as they are forced, whatever lies in slots."""

import numpy as np
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
from dataclasses import replace

from emulated import Emulated

from v4cli.bench.gpu_model import Wanted, measure
from v4cli.bench.gpu_part import Part
from v4cli.bench.gpu_synthetic import SharedExperts, on_card
from v4cli.bench.synthetic import shape
from v4cli.model.weights import build

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
SMALL = replace(shape("tiny", 2), max_position_embeddings=512, sliding_window=16)


def test_experts_in_ram_are_as_many_as_asked_for():
    tree = build(SMALL, SharedExperts(SMALL, "native", 5))
    at = [expert.w1.matrix.codes for layer in tree.layers for expert in layer.ffn.experts]
    assert len(at) == 2 * 16 and len(set(at)) == 5


@pytest.mark.slow
def test_hits_are_as_forced():
    engine, slots = on_card(SMALL, Emulated(), 7, 64, distinct=5)
    part, wanted = Part(None, 1e9), Wanted(contexts=(60,), hits=(100, 0), prompts=(), tokens=3)
    try:
        measure(engine, slots, part, wanted)
    finally:
        engine.model.bank.close()
    assert part.found["missing"] == {}
    assert [(row["hits_wanted"], row["hits"]) for row in part.found["decode"]] == [(100, 1.0), (0, 0.0)]
    slots.force(0.5)
    assert ((slots.table >= 0).sum(1) == 8).all() and not np.isnan(slots.hits())
