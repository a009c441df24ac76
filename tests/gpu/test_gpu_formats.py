"""Stores of every format on a device: dense matrices, output projections by groups, experts of several kinds."""

import numpy as np
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import gpu_models
from tiny import MIXED, make_store

from v4cli.store.recipe import Rule

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
LOW = (Rule("experts", "q3", matrices=("w2",)), Rule("experts", "q2"), Rule("linear", "int8"))
RECIPES = {"native": None, "q4": None, "mixed": MIXED, "mix": None, "q2": None}


def test_nano_with_experts_of_few_bits_gives_the_cpus_logits(tmp_path):
    folder = make_store(gpu_models.NANO, tmp_path / "low", "native", LOW)
    model = gpu_models.both(*gpu_models.opened(folder))
    ids, states = np.random.default_rng(3).integers(0, 1024, 11).tolist(), model.states()
    for first, last in ((0, 8), (8, 11)):
        model.same([(ids[first:last], states)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ("mix", "q2"))
def test_greedy_tokens_of_nano_are_the_cpus(tmp_path, name):
    folder = make_store(gpu_models.NANO, tmp_path / name, name)
    model = gpu_models.both(*gpu_models.opened(folder))
    ids, states = np.random.default_rng(3).integers(0, 1024, 20).tolist(), model.states()
    for _ in range(8):
        ids = [int(model.same([(ids, states)])[-1].argmax())]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_logits_of_a_store_are_the_cpus(source, tmp_path, name):
    folder = make_store(source, tmp_path / name, "native" if RECIPES[name] else name, RECIPES[name])
    model = gpu_models.both(*gpu_models.opened(folder), budget=1)
    ids, states = np.random.default_rng(3).integers(0, 512, 100).tolist(), model.states()
    for first, last in ((0, 80), (80, 83), (83, 86), (86, 89), (89, 90)):
        model.same([(ids[first:last], states)])
