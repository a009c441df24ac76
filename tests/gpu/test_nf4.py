"""Dense matrices by bitsandbytes, on its CPU ops: what is quantized, and that products are those of what is held."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from v4kernels import native
from v4kernels.cpu import CpuOps, PackedWeight
from v4kernels.formats import FORMATS
from v4kernels.triton import nf4

from v4cli.bench.synthetic import shape
from v4cli.model.schema import expected_tensors
from v4cli.model.v4 import V4
from v4cli.store import formats
from v4cli.store.recipe import RECIPES, formats_by

LIBRARY = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
LEVELS = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0]  # of the normal distribution (QLoRA)
LEVELS += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0]


def bitsandbytes():
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is made for few systems only")


def normal(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def packed(form: str, w: torch.Tensor) -> tuple[PackedWeight, torch.Tensor]:
    """A matrix in a store's format, and what it means."""
    codes, scale = getattr(formats, f"encode_{form}")(w)
    arrays = codes.view(torch.uint8).numpy(), scale.view(torch.int16).numpy()
    return PackedWeight.of(form, *arrays), getattr(formats, f"decode_{form}")(codes, scale)


@LIBRARY
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_values_are_those_of_the_stores_codes(form):
    weight, exact = packed(form, normal(48, 96))
    assert torch.equal(nf4.values(weight), exact)


def test_it_is_about_attention_and_the_head():
    formed = formats_by(RECIPES["q4"].rules, expected_tensors(shape("flash", 5), False))
    chosen = {name for name, form in formed.items() if nf4.about(name, form.name)}
    ends = {"wq_a", "wq_b", "wkv", "wo_a", "wo_b"}
    assert {name.split(".")[-2] for name in chosen if name.startswith("layers.4.attn.")} == ends
    assert "head.weight" in chosen and "embed.weight" not in chosen
    assert "layers.4.attn.indexer.wq_b.weight" in chosen
    assert not any(".ffn." in name or ".compressor." in name for name in chosen)


def test_codes_are_levels_of_normal_floats_in_4_13_bits():
    bitsandbytes()
    matrix = normal(256, 512)
    held = nf4.Nf4.of(matrix)
    values, exact = held.values().reshape(-1, 64), matrix.reshape(-1, 64)
    peaks = values.abs().amax(1, keepdim=True)
    assert (values / peaks - torch.tensor(LEVELS)[:, None, None]).abs().amin(0).max() < 1e-4
    assert ((peaks - exact.abs().amax(1, keepdim=True)).abs() / peaks).max() < 0.06, "scales of one byte"
    assert 0.08 < ((values - exact).norm() / exact.norm()).item() < 0.10
    assert held.nbytes * 8 / matrix.numel() == pytest.approx(4 + 8 / 64 + 32 / 64 / 256)
    assert held.nbytes == nf4.held_bytes(matrix.numel())


@pytest.mark.parametrize("shape, groups", [((256, 96), 1), ((96, 64), 4), ((7, 32), 1)])
def test_made_in_pieces_it_is_the_whole_to_the_bit(monkeypatch, shape, groups):
    bitsandbytes()
    monkeypatch.setattr(nf4, "PIECE", 300)
    matrix, asked = normal(*shape), []

    def rows_of(first, last):
        asked.append(last - first)
        return matrix[first:last]

    for (codes, state), part in zip(nf4.Nf4(shape, rows_of, groups).parts, matrix.chunk(groups)):
        want = nf4.library().functional.quantize_4bit(part, blocksize=64, quant_type="nf4", compress_statistics=True)
        assert torch.equal(codes, want[0]) and torch.equal(state.absmax, want[1].absmax)
        assert torch.equal(state.state2.absmax, want[1].state2.absmax) and state.offset == want[1].offset
        assert state.shape == want[1].shape
    assert sum(asked) == shape[0] and max(asked) * shape[1] <= max(300, 2 * shape[1])


@LIBRARY
def test_no_more_of_a_matrix_than_a_piece_is_in_fp32_while_it_is_loaded(monkeypatch):
    bitsandbytes()
    pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
    from emulated import Emulated
    from v4kernels.triton.memory import Memory

    monkeypatch.setattr(nf4, "PIECE", 1024)
    weight, exact = packed("int8", normal(256, 96))
    device = Emulated(room=4 * 1024)
    held = nf4.upload(Memory(device), weight, 2)
    assert torch.equal(held.values(), nf4.Nf4.of(exact, 2).values())


@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("groups", [1, 4])
def test_products_are_those_of_the_values(rows, groups):
    bitsandbytes()
    matrix, x = normal(64, 128), normal(rows, groups * 128, seed=1)
    held = nf4.Nf4.of(matrix, groups)
    parts = zip(x.bfloat16().double().chunk(groups, 1), held.values().double().chunk(groups))
    want = torch.cat([part @ values.T for part, values in parts], 1)
    got = held.times(x)
    assert got.shape == (rows, 64) and got.dtype == torch.float32
    assert ((got - want).norm() / want.norm()).item() < 2**-7, "bf16 has 8 bits"


@pytest.mark.slow
@LIBRARY
def test_nano_runs_with_it_and_a_recorded_step_repeats_its_products():
    """Recorded or walked, alone or in a prompt: up to rounding the logits of the CPU over the same rounded weights."""
    bitsandbytes()
    pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
    import gpu_models
    from emulated import Emulated
    from v4kernels.triton.ops import TritonOps

    config, tree = gpu_models.nano()
    device = Emulated()
    gpu = V4(config, TritonOps(tree, device, 256, nf4=True))
    cpu = V4(config, CpuOps(rounded(tree)))
    assert gpu.ops.numerics == "nf4" and cpu.ops.numerics == "int8"
    states = gpu.new_state(), cpu.new_state()
    for ids in ([1, 2, 3], [4], [5], [6]):  # few rows: the first step of a number is walked, the third replayed
        got, want = (model.logits(model.forward([(ids, state)])) for model, state in zip((gpu, cpu), states))
        assert np.abs(got - want).max() < 0.15 * want.std(), "bf16 inputs against int8 ones"
    assert 1 in gpu.ops._graphs


def rounded(tree):
    """A tree whose weights are in fp32 what nf4 makes of them."""

    def change(w):
        if not FORMATS[w.form].packed:
            return w
        return PackedWeight.of("f32", nf4.Nf4.of(nf4.values(w)).values().numpy())

    layers = []
    for layer in tree.layers:
        a = layer.attn
        indexer = a.indexer and replace(a.indexer, wq_b=change(a.indexer.wq_b))
        matrices = {name: change(getattr(a, name)) for name in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b")}
        layers.append(replace(layer, attn=replace(a, indexer=indexer, **matrices)))
    return replace(tree, layers=layers, head=change(tree.head))


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"v4cli\[gpu\]"):
        nf4.Nf4.of(torch.zeros(32, 64))
