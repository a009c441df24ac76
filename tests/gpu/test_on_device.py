"""Every kernel by a device's own launches: on a card where there is one, a few of them on the PTX machine's device. The
bits are the CPU library's."""

import numpy as np
import pytest
import torch
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import attend_parts
import index_parts
import test_attend
import test_experts
import test_hyper
import test_kv
from emulated import Emulated
from gpu_kernels import blocks, fixed, same
from on_device import OnDevice
from test_kernels import WEIGHTS, activations, differing
from v4kernels.triton import gemm, linear, quantize
from v4kernels.triton.launch import assembly

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
CARD = pytest.param("card", marks=pytest.mark.device)  # conftest.py


@pytest.fixture(scope="module")
def machine():
    return Emulated("sm_89")


@pytest.fixture
def launch(request):
    """Of the device that a test names."""
    return OnDevice(request.getfixturevalue(request.param))


ON_BOTH = pytest.mark.parametrize("launch", ["machine", CARD], indirect=True)
ON_CARD = pytest.mark.parametrize("launch", [CARD], indirect=True)


def ramp(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float32)


@ON_BOTH
def test_arrays_that_are_placed_come_back_and_fixed_ones_are_only_read(launch):
    held = launch.place(ramp(64))
    assert launch.address(held[4:]) == launch.address(held) + 16
    out, x = np.full(2, np.nan, np.float32), fixed(ramp(64).reshape(2, 32))
    codes = np.zeros((2, 32), np.int8)
    launch(quantize.quantize, (1,), x, codes, out, 2, BLOCK=32)
    wanted = native.quantize(torch.from_numpy(x.copy()))
    assert np.array_equal(codes, wanted[0].numpy()) and same(out[:, None], wanted[1].numpy())
    launch(quantize.quantize, (1,), held, codes, out, 2, BLOCK=32)
    assert np.array_equal(held, ramp(64)) and np.array_equal(codes, wanted[0].numpy())


def by_rows(launch, form: str, x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
    """A linear layer for few tokens."""
    (tokens, k), rows = x.shape, len(codes)
    y = np.full((tokens, rows), np.nan, np.float32)
    kernel = getattr(linear, f"linear_{form}")
    grid = blocks(rows, 32), tokens
    asm = assembly(launch.device.gpu)
    launch(kernel, grid, codes, scale, *native.quantize(x), y, rows, K=k, ROWS=32, ASM=asm)
    return y


def by_matrix_units(launch, form: str, x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
    (tokens, k), rows = x.shape, len(codes)
    y = np.full((tokens, rows), np.nan, np.float32)
    sizes = {"K": k, "TOKENS": 64, "ROWS": 64, "FORMAT": form, "ASM": assembly(launch.device.gpu)}
    grid = blocks(tokens, 64), blocks(rows, 64)
    given = codes, scale, *native.quantize(x), y, rows, tokens
    launch(gemm.gemm, grid, *given, warps=8, stages=2, **sizes)
    return y


@ON_BOTH
@pytest.mark.parametrize("form", WEIGHTS)
def test_linear_layers(launch, form):
    x, weight = activations(3, 352), WEIGHTS[form](50, 352)
    wanted = native.linear(x, native.matrix(*weight, form))
    assert differing(by_rows(launch, form, x, *weight), wanted) == 0


@ON_CARD
@pytest.mark.parametrize("form", WEIGHTS)
@pytest.mark.parametrize("tokens, rows, k", [(1, 4096, 2048), (70, 80, 512), (300, 1030, 1120), (65, 64, 992)])
def test_linear_layers_of_any_size(launch, form, tokens, rows, k):
    x, weight = activations(tokens, k), WEIGHTS[form](rows, k)
    wanted = native.linear(x, native.matrix(*weight, form))
    assert differing(by_matrix_units(launch, form, x, *weight), wanted) == 0
    assert differing(by_rows(launch, form, x[:3], *weight), wanted[:3]) == 0


def runner(launch):
    """As test_experts calls what runs a kernel."""

    def run(kernel, grid, arguments, warps=4, stages=1, **constants):
        if "ASM" in {p.name for p in kernel.params}:
            constants["ASM"] = assembly(launch.device.gpu)
        launch(kernel, grid, *arguments, warps=warps, stages=stages, **constants)

    return run


def check_experts(launch, kind: test_experts.Kind, rows: int) -> None:
    made, shared = (
        test_experts.Experts(kind, 9, 1),
        test_experts.Experts(test_experts.Kind(kind.dim, 128, ("int8",) * 3), 1, 2),
    )
    step = test_experts.Step.random(rows, kind.dim, 9, 4, rows)
    held = np.random.default_rng(rows).random(9) < 0.6
    got = test_experts.all_of_it(runner(launch), step, made, shared, held)
    assert differing(got, test_experts.by_the_library(step, made, shared)) == 0


@ON_BOTH
def test_experts_in_slots(launch):
    check_experts(launch, test_experts.KINDS["mixed"], 2)


@ON_CARD
@pytest.mark.parametrize("name", test_experts.KINDS)
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_experts_of_any_split(launch, name, rows):
    check_experts(launch, test_experts.KINDS[name], rows)


@ON_BOTH
@pytest.mark.parametrize("name", ["a window around a ring"])
def test_attention(launch, name):
    assert attend_parts.equal(launch, test_attend.CASES[name])


@ON_CARD
@pytest.mark.parametrize("name", test_attend.CASES)
def test_attention_of_any_kind(launch, name):
    assert attend_parts.equal(launch, test_attend.CASES[name])


@ON_CARD
@pytest.mark.parametrize("part", [0, 16])
@pytest.mark.parametrize("name", test_attend.TIMELINES)
def test_attention_of_several_timelines(launch, name, part):
    assert attend_parts.equal(launch, *test_attend.TIMELINES[name], part=part)


@ON_CARD
def test_queries_entries_and_compressors(launch):
    for heads, dims, rope, rank in ((2, 512, 64, 1024), (3, 192, 64, 224), (2, 80, 16, 32)):
        test_kv.check_queries(launch, dims, heads, dims, rope, rank, n=8)
        test_kv.check_entries(launch, dims, dims, rope, n=9)
    for is_index in (False, True):
        dims = 128 if is_index else 192
        test_kv.check_compressor(launch, dims, 4, dims, 64, is_index, [1, 4, 5, 11, 36, 38])
        test_kv.check_timelines(launch, 4, 4, 64 if is_index else 80, 16, is_index, test_kv.AT, test_kv.COUNTS)
    test_kv.check_compressor(launch, 128, 128, 80, 16, False, [127, 128, 129, 400])


@ON_CARD
def test_functions_and_layers_in_fp32(launch):
    test_hyper.check_elementary(launch, 1)
    for form in ("f32", "bf16"):
        for rows, cols, n, groups, tile in ((3, 32, 2, 1, (1, 4)), (30, 1120, 6, 1, (4, 4)), (12, 96, 3, 2, (1, 4))):
            test_hyper.check_linear(launch, rows, form, rows, cols, n, groups, tile)


@ON_CARD
@pytest.mark.parametrize(
    "streams, dim, n, spread", [(4, 1032, 6, 1.0), (4, 96, 2, 30.0), (2, 80, 1, 1.0), (4, 4096, 1, 1.0)]
)
def test_hyper_connections(launch, streams, dim, n, spread):
    test_hyper.check_hyper(launch, dim, streams, dim, n, spread, tokens=1 if n == 1 else 4)


@ON_CARD
@pytest.mark.parametrize("by_table", [False, True], ids=["by score", "by table"])
def test_routes(launch, by_table):
    for seed, (experts, top_k) in enumerate([(256, 6), (19, 5), (4, 4), (1, 1)]):
        test_hyper.check_route(launch, seed, experts, top_k, 7, by_table)


@ON_CARD
@pytest.mark.parametrize("form", ["fp4", "int8", "int4", "bf16", "f32"])
def test_embedding_rows(launch, form):
    test_hyper.check_embedding(launch, 1, form, 352, 5)


@ON_CARD
@pytest.mark.parametrize("n_keys, distinct", [(143, 0), (5000, 300), (70_000, 1000)])
def test_index_queries_scores_and_choices(launch, n_keys, distinct):
    rng = np.random.default_rng(n_keys)
    keys = index_parts.random_keys(rng, n_keys, 128, distinct)
    made = index_parts.layer(rng, 4 * n_keys - 4, 3, 64, 128, 512, keys)
    scores = index_parts.run_scores(launch, (made.tokens, keys), asm=assembly(launch.device.gpu))
    assert same(index_parts.run_choice(launch, scores, [made.tokens.start], 512), made.chosen)
