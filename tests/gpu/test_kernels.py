"""Kernels as compiled for three GPUs, run in the PTX machine: the bits are those of plain statements and of the CPU
library."""

import re
from functools import partial

import numpy as np
import ptx
import pytest
import torch
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import gpu_kernels
import small_kernels
from gpu_kernels import TARGETS, over_gpus
from v4kernels.formats import FORMATS, LEVELS
from v4kernels.triton import gemm, linear, quantize

GPUS = pytest.mark.parametrize("gpu", TARGETS)
LIBRARY = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def activations(tokens: int, k: int) -> torch.Tensor:
    """fp32 of very different sizes, with groups that are zero, tiny, huge and not finite."""
    g = generator(tokens * k)
    x = torch.randn(tokens, k, generator=g) * torch.exp(3 * torch.randn(tokens, k, generator=g))
    for i, value in enumerate((0.0, 1e-41, 3e38, float("inf"), float("nan"))):
        if i < k // 32 and tokens > 1:
            x[-1, 32 * i : 32 * i + 32] *= 0
            x[-1, 32 * i + 5] = value
    return x


def int8_weight(rows: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(rows + k)
    codes = torch.randint(-128, 128, (rows, k), generator=g, dtype=torch.int8)
    return codes, (torch.rand(rows, k // 32, generator=g) * 0.01).bfloat16()


def fp4_weight(rows: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every scale byte but those of infinity and NaN."""
    g = generator(rows + k + 1)
    codes = torch.randint(0, 256, (rows, k // 2), generator=g, dtype=torch.uint8)
    scale = torch.randint(0, 190, (rows, k // 32), generator=g, dtype=torch.uint8)
    return codes, scale.view(torch.float8_e8m0fnu)


def int4_weight(rows: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(rows + k + 2)
    codes = torch.randint(0, 256, (rows, k // 2), generator=g, dtype=torch.uint8)
    return codes, (torch.rand(rows, k // 32, generator=g) * 0.01).bfloat16()


def lowbit_weight(form: str, rows: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every code, and every multiplier."""
    g = generator(rows + k + 3)
    codes = torch.randint(0, 256, (rows, k // 32 * FORMATS[form].code_bytes), generator=g, dtype=torch.uint8)
    scale = torch.randint(0, 256, (rows, 2 + k // 32), generator=g, dtype=torch.uint8)
    scale[:, :2] = (torch.rand(rows, 1, generator=g) * 0.01).bfloat16().view(torch.uint8)
    return codes, scale


def differing(got: np.ndarray, want: torch.Tensor) -> int:
    """Elements whose bits differ; one NaN is as good as another."""
    got, want = torch.from_numpy(got), want
    return int(((got.view(torch.int32) != want.view(torch.int32)) & ~(got.isnan() & want.isnan())).sum())


@GPUS
def test_a_ragged_addition(gpu):
    a, b = torch.randn(2, 1000, generator=generator(1))
    out = np.full(1000, np.nan, np.float32)
    counted = gpu_kernels.run(gpu_kernels.program(small_kernels.add, gpu, BLOCK=128), (8,), a, b, out, 1000)
    assert differing(out, a + b) == 0
    assert counted.global_stores.transfers == 125  # 4,000 bytes, each sector once


@GPUS
def test_a_ragged_addition_that_forgets_its_last_element_is_told_of(gpu):
    a, b = torch.randn(2, 999)
    with pytest.raises(ptx.OutOfBounds, match=r"small_kernels\.py"):
        gpu_kernels.run(
            gpu_kernels.program(small_kernels.add, gpu, BLOCK=128), (8,), a, b, np.zeros(999, np.float32), 1000
        )


@GPUS
@pytest.mark.parametrize("warps", [1, 2, 4, 8])
def test_reductions_within_and_across_warps(gpu, warps):
    x = torch.randint(-(2**31), 2**31 - 1, (3, 2048), generator=generator(2), dtype=torch.int32)
    out = np.zeros(3, np.int32)
    counted = gpu_kernels.run(gpu_kernels.program(small_kernels.largest, gpu, warps, N=2048), (3,), x, out)
    assert out.tolist() == x.amax(1).tolist()
    assert bool(counted.shared_stores.count) == (warps > 1)
    x = torch.randn(3, 1024, generator=generator(3))
    out = np.zeros((3, 64), np.float32)
    gpu_kernels.run(gpu_kernels.program(small_kernels.folded, gpu, warps, N=1024), (3,), x, out)
    while x.shape[1] > 64:
        x = x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :]
    assert differing(out, x) == 0


@GPUS
def test_loops_whose_length_the_data_says(gpu):
    lengths = torch.tensor([3, 0, 7, 3, 1], dtype=torch.int32)
    x = torch.randn(5, 7, 128, generator=generator(4))
    out = np.zeros((5, 128), np.float32)
    gpu_kernels.run(gpu_kernels.program(small_kernels.weighted, gpu, STRIDE=7, BLOCK=128), (5,), x, lengths, out)
    want = torch.zeros(5, 128)
    for row, length in enumerate(lengths.tolist()):
        for i in range(length):
            want[row] = (x[row, i].double() * (i + 1) + want[row].double()).float()  # nothing near the middle of two
    assert differing(out, want) == 0


@GPUS
def test_a_division_that_was_not_told_to_round_is_refused(gpu):
    a, b = torch.randn(2, 128)
    with pytest.raises(ptx.NotRepeatable, match=r"div\.full"):
        gpu_kernels.run(
            gpu_kernels.program(small_kernels.quotient, gpu, BLOCK=128), (1,), a, b, np.zeros(128, np.float32)
        )


@GPUS
@LIBRARY
@pytest.mark.parametrize("shape", [(1, 4096), (3, 32), (5, 7 * 32)], ids=str)
def test_quantization_is_the_librarys(gpu, shape):
    x = activations(*shape)
    want_q, want_scale = native.quantize(x)
    q, scale = gpu_kernels.run_quantize(gpu, x)
    assert np.array_equal(q, want_q.numpy())
    assert differing(scale, want_scale) == 0


# Rows that fill no block, K that fills no step of 256, a single group.
SHAPES = (96, 1024, 1), (50, 352, 3), (7, 32, 2), (33, 256 * 3 + 224, 2)  # rows, K, tokens
WEIGHTS = {"int8": int8_weight, "fp4": fp4_weight, "int4": int4_weight}
WEIGHTS |= {form: partial(lowbit_weight, form) for form in ("q3", "q2")}
FORMS = pytest.mark.parametrize("form", WEIGHTS)


@over_gpus(
    "rows k tokens form",
    ((*shape, form) for shape in SHAPES for form in WEIGHTS if form not in LEVELS or shape in SHAPES[1:3]),
)
@LIBRARY
def test_a_linear_layer_is_the_librarys(gpu, rows, k, tokens, form):
    x = activations(tokens, k)
    codes, scale = WEIGHTS[form](rows, k)
    y, _ = gpu_kernels.run_linear(gpu, form, codes, scale, *native.quantize(x), "ptx")
    assert differing(y, native.linear(x, native.matrix(codes, scale, form))) == 0


@LIBRARY
@pytest.mark.slow
@FORMS
def test_linear_layers_of_random_sizes_are_the_librarys(form):
    rng = np.random.default_rng(5)
    for i in range(40):
        rows, k, tokens = int(rng.integers(1, 100)), 32 * int(rng.integers(1, 40)), int(rng.integers(1, 4))
        x = activations(tokens, k)
        codes, scale = WEIGHTS[form](rows, k)
        y, _ = gpu_kernels.run_linear(TARGETS[i % 3], form, codes, scale, *native.quantize(x), "ptx")
        assert differing(y, native.linear(x, native.matrix(codes, scale, form))) == 0, (rows, k, tokens)


@over_gpus("form tile", [("q3", 8), ("q2", 16)])
@LIBRARY
def test_a_program_of_few_rows_gives_the_librarys_bits(gpu, form, tile):
    """Of formats whose groups a thread needs to have as a whole."""
    x = activations(1, 288)
    codes, scale = WEIGHTS[form](20, 288)
    y, _ = gpu_kernels.run_linear(gpu, form, codes, scale, *native.quantize(x), "ptx", tile)
    assert differing(y, native.linear(x, native.matrix(codes, scale, form))) == 0


@over_gpus("form", ((form,) for form in WEIGHTS if form not in LEVELS))
@LIBRARY
def test_the_plain_form_of_a_linear_layer_is_the_librarys_too(gpu, form):
    x = activations(2, 352)
    codes, scale = WEIGHTS[form](50, 352)
    y, counted = gpu_kernels.run_linear(gpu, form, codes, scale, *native.quantize(x), "plain")
    assert differing(y, native.linear(x, native.matrix(codes, scale, form))) == 0
    assert not any(opcode.startswith("dp4a") for opcode in counted.instructions)


@LIBRARY
@over_gpus("form bytes_each", ((form, FORMATS[form].bits / 8) for form in WEIGHTS))
def test_a_large_linear_layer_is_the_librarys_and_reads_its_weights_once(gpu, form, bytes_each):
    rows, k = 2048, 4096
    x = activations(1, k)
    codes, scale = WEIGHTS[form](rows, k)
    q, q_scale = native.quantize(x)
    y, counted = gpu_kernels.run_linear(gpu, form, codes, scale, q, q_scale, "ptx")
    assert differing(y, native.linear(x, native.matrix(codes, scale, form))) == 0
    steps, programs = k // 256, rows // 32
    weights = rows * k * bytes_each / 32
    inputs = counted.global_loads.transfers - weights
    assert 0 < inputs <= programs * steps * 32 * 2 * 4 * 2 + programs * 4 * steps, "sectors beside those of the weights"
    assert counted.shared_loads.transfers <= 2 * counted.shared_loads.count, "bank conflicts"


@LIBRARY
@over_gpus(
    "form tokens rows k stages",
    [
        ("int8", 70, 80, 512, 2),
        ("int8", 3, 130, 352, 1),
        ("int8", 65, 64, 992, 3),
        ("fp4", 70, 80, 352, 2),
        ("int4", 65, 70, 352, 1),
        ("q3", 70, 80, 352, 2),
        ("q2", 33, 70, 288, 1),
    ],
)
def test_matrix_units_give_the_librarys_bits(gpu, form, tokens, rows, k, stages):
    """With copies under way while they multiply, where there is more than one stage."""
    x = activations(tokens, k)
    codes, scale = WEIGHTS[form](rows, k)
    y, counted = gpu_kernels.run_gemm(gpu, form, codes, scale, *native.quantize(x), stages)
    assert differing(y, native.linear(x, native.matrix(codes, scale, form))) == 0
    assert any(opcode.startswith("mma.sync") for opcode in counted.instructions)
    assert bool(counted.instructions["cp.async.wait_group"]) == (stages > 1)


@LIBRARY
@pytest.mark.parametrize("gpu", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_120"])
@pytest.mark.parametrize(
    "name, harmless", [("quantize", 0), ("linear_int8", 1), ("linear_fp4", 1), ("linear_int4", 1), ("gemm_int8", 1)]
)
def test_without_any_one_barrier_or_wait_a_kernel_has_a_race(gpu, name, harmless):
    """But for those in front of the very first exchange, which guard nothing."""
    k, rows, tokens = 512, 64, 70
    x = activations(tokens if name.startswith("gemm") else 1, k)
    q, q_scale = native.quantize(x)
    form = name.split("_")[1] if "_" in name else "int8"
    codes, scale = WEIGHTS[form](rows, k)
    y = np.zeros((len(x), rows), np.float32)
    layer = (codes, scale, q, q_scale, y, rows)
    if name == "quantize":
        made = gpu_kernels.compiled(quantize.quantize, gpu, BLOCK=32)
        arguments = (x, np.zeros((1, k), np.int8), np.zeros((1, k // 32), np.float32), k // 32)
    elif name.startswith("gemm"):
        made = gpu_kernels.compiled(gemm.gemm, gpu, 8, 2, K=k, TOKENS=64, ROWS=64, FORMAT=form, ASM="ptx")
        arguments = (*layer, tokens)
    else:
        made, arguments = gpu_kernels.compiled(getattr(linear, name), gpu, K=k, ROWS=32, ASM="ptx"), layer
    text = made.asm["ptx"]
    guards = list(re.finditer(r"bar\.sync\s+0;|cp\.async\.wait_group[^;]*;", text))
    missed = []
    for i, found in enumerate(guards):
        program = ptx.load(text[: found.start()] + text[found.end() :], made.metadata.shared)
        try:
            gpu_kernels.run(program, (2, 1), *arguments)
            missed.append(i)
        except ptx.Race:
            pass
    assert len(guards) > harmless
    assert missed in ([], list(range(harmless)))
