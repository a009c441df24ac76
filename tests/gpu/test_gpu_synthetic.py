"""A model of random weights on the PTX machine's device: steps with hits as they are forced, whatever lies in slots."""

import json

import numpy as np
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
from dataclasses import replace

from emulated import Emulated
from sized import Noting

from v4cli import hardware
from v4cli.bench import gpu, gpu_model, synthetic
from v4cli.bench.gpu_model import Wanted, measure
from v4cli.bench.gpu_part import Part
from v4cli.bench.gpu_synthetic import SharedExperts, on_card
from v4cli.bench.synthetic import shape
from v4cli.engine import gpu as gpu_engine
from v4cli.model.weights import build
from v4cli.plan import memory

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


def test_the_part_model_of_gpu_check_has_a_row_for_all_that_is_asked(monkeypatch, tmp_path):
    """As it runs on a card, on a device that computes nothing."""
    found = hardware.Gpu(0, "NVIDIA H200", "GPU-1", "580.1", "9.0", 140 << 30, 139 << 30)
    wanted = Wanted(contexts=(60, 200), hits=(100, 40), prompts=(70,), tokens=2)
    monkeypatch.setattr(hardware, "gpus", lambda: [found])
    monkeypatch.setattr(gpu_engine, "device", lambda number=0: Noting())
    monkeypatch.setattr(synthetic, "shape", lambda like: SMALL)
    monkeypatch.setattr(gpu_model, "Wanted", lambda: wanted)
    monkeypatch.setattr(gpu, "MOST_SLOTS", 20)
    monkeypatch.setattr(memory, "MOST_CHUNK", 64)
    file = tmp_path / "model.json"
    gpu.model(0, 1e9, file)
    told = json.loads(file.read_text())
    assert told["missing"] == {} and told["slots"] == 20
    rows = [(row["ctx"], row["hits_wanted"]) for row in told["decode"]]
    assert rows == [(60, 100), (60, 40), (200, 100), (200, 40)] and [row["tokens"] for row in told["prefill"]] == [70]
