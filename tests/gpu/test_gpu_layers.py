"""Attention of a layer of each kind on a device: x -> out, and what is remembered, are the CPU's to the bit."""

import numpy as np
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import gpu_models

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
LAYERS = {"window": 0, "csa": 1, "hca": 2}  # of nano
TOKENS = 300


@pytest.fixture(scope="module")
def model():
    config, tree = gpu_models.nano()
    return gpu_models.both(config, tree, budget=1)  # more rows than a tile has go through attention in several


def inputs(layer: int, dim: int) -> np.ndarray:
    return np.random.default_rng(layer).standard_normal((TOKENS, dim)).astype(np.float32)


def remembered(state, layer: int, n: int) -> dict[str, np.ndarray]:
    return state.layers[layer].entries(0, n) | state.layers[layer].mark(n)


def check(model, layer: int, cuts: list[tuple[int, bool]]) -> None:
    """Feed rows chunk by chunk; where a chunk is not for the device, it takes up what the CPU remembers behind it."""
    x, start = inputs(layer, model.config.hidden_size), 0
    cpu, gpu = (ops.new_state(TOKENS) for ops in (model.cpu.ops, model.gpu.ops))
    for rows, on_device in cuts:
        some = x[start : start + rows]
        if on_device:
            want, got = gpu_models.fed(model, layer, (cpu, gpu), start, some)
            assert np.array_equal(want.view(np.uint32), got.view(np.uint32)), (start, rows)
        else:
            gpu_models.fed_cpu(model, layer, cpu, start, some)
            gpu.layers[layer].put(0, start + rows, cpu.layers[layer].entries(0, start + rows))
            gpu.layers[layer].restore(cpu.layers[layer].mark(start + rows), start + rows)
        start += rows
    a, b = (remembered(state, layer, start) for state in (cpu, gpu))
    assert start == TOKENS and a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gives_the_cpus_bits_and_goes_on_from_what_it_remembers(model, name):
    cuts = [(3, True), (121, False), (3, True), (1, True), (1, True), (101, False), (70, True)]
    check(model, LAYERS[name], cuts)


def test_entries_may_lie_in_memory_of_the_host():
    config, tree = gpu_models.nano()
    hosted = gpu_models.both(config, tree, kv_host=True)
    x = inputs(1, config.hidden_size)[:9]
    cpu, gpu = (ops.new_state(TOKENS) for ops in (hosted.cpu.ops, hosted.gpu.ops))
    for start in range(0, 9, 3):
        want, got = gpu_models.fed(hosted, 1, (cpu, gpu), start, x[start : start + 3])
        assert np.array_equal(want.view(np.uint32), got.view(np.uint32))
    assert all(block.host is not None for block in gpu.layers[1].parts["main"].rows.values())
    a, b = (remembered(state, 1, 9) for state in (cpu, gpu))
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_a_layer_gives_the_cpus_bits_in_chunks_of(model, name, rows):
    cuts = [(rows, True)] * (TOKENS // rows)
    check(model, LAYERS[name], [*cuts, *([(TOKENS % rows, True)] if TOKENS % rows else [])])
