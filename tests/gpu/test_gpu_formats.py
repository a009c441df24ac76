"""Stores of every format on a device: dense matrices, output projections by groups, experts of several kinds."""

import numpy as np
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import gpu_models
from tiny import MIXED, make_store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not native.available(), reason=native.reason() or "built")]
RECIPES = {"native": None, "q4": None, "mixed": MIXED}


@pytest.mark.parametrize("name", RECIPES)
def test_logits_of_a_store_are_the_cpus(source, tmp_path, name):
    folder = make_store(source, tmp_path / name, "native" if RECIPES[name] else name, RECIPES[name])
    model = gpu_models.both(*gpu_models.opened(folder), budget=1)
    ids, states = np.random.default_rng(3).integers(0, 512, 100).tolist(), model.states()
    for first, last in ((0, 80), (80, 83), (83, 86), (86, 89), (89, 90)):
        model.same([(ids[first:last], states)])
