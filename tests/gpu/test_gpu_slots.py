"""Experts in slots, as the host asks for them: with what it computes itself, v4k_experts to the bit."""

import numpy as np
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import gpu_models
from v4kernels.api import Routing
from v4kernels.cpu import Buffer
from v4kernels.triton import memory
from v4kernels.triton.slots import Room
from v4kernels.triton.weights import SlotKind

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
LAYER = 3
F = np.float32


@pytest.fixture(scope="module")
def model():
    config, tree = gpu_models.nano()
    return gpu_models.both(config, tree)


def alone(model, x: np.ndarray, row: int, expert: int, weight: float) -> np.ndarray:
    """The row of one pair."""
    ops, out = model.cpu.ops, np.zeros((1, x.shape[1]), F)
    some = Buffer.of(x[row : row + 1].copy())
    chosen, weights = np.array([[expert]], np.int64), np.array([[weight]], F)
    ops.add_experts(LAYER, ops.layers[LAYER].ffn.experts, some, chosen, weights, out.ctypes.data)
    return out[0]


@pytest.mark.parametrize("n, hit", [(1, 2), (5, 0), (5, 8), (9, 5)])
def test_hits_and_misses_are_added_as_the_cpu_adds(model, n, hit):
    rng, experts = np.random.default_rng(n + hit), model.gpu.ops.tree.layers[LAYER].ffn.experts
    x, out = (rng.standard_normal((n, model.config.hidden_size)).astype(F) for _ in range(2))
    ids = np.stack([rng.permutation(8)[:2] for _ in range(n)]).astype(np.int64)
    weights = rng.random((n, 2)).astype(F)
    kind, held = SlotKind.of(experts[0]), model.gpu.ops.memory
    slots = held.take(8 * kind.n_bytes)
    slot_of = np.full(8, -1)
    slot_of[rng.permutation(8)[:hit]] = np.arange(hit)
    for expert in np.flatnonzero(slot_of >= 0):
        for place, part in kind.parts(experts[expert]):
            model.device.write(slots.at + int(slot_of[expert]) * kind.n_bytes + place, part)
    there = slot_of[ids].ravel()
    (misses,) = np.nonzero(there < 0)
    place = np.full(2 * n, -1)
    place[misses] = np.arange(len(misses))

    at = [held.put(a) for a in (x, out, ids, weights)]
    there_too = [memory.Buffer(block.at, n, a.shape[1], a.dtype.type) for block, a in zip(at, (x, out, ids, weights))]
    device = model.gpu.ops.slot_experts([Room(kind, slots.at)])
    results = device.begin(LAYER, there_too[0], Routing(*there_too[2:], there_too[3]))
    device.compute(results, there, 0, False)
    rows = [alone(model, x, i // 2, ids.ravel()[i], weights.ravel()[i]) for i in misses]
    got = device.values(device.add(there_too[1], results, np.array(rows, F).reshape(-1, x.shape[1]), place))

    routing = Routing(Buffer.of(ids), Buffer.of(weights), Buffer())
    want = model.cpu.ops.resident().begin(LAYER, Buffer.of(x), routing, Buffer()).add_to(Buffer.of(out.copy()))
    assert np.array_equal(got.view(np.uint32), want.array().view(np.uint32))
