"""Layers in fp32, hyper-connections, router and embedding as compiled for three GPUs, run in the PTX machine: the bits
are the CPU library's."""

import re
from dataclasses import replace

import numpy as np
import ptx
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import gpu_kernels
import hyper_parts as parts
import small_kernels
from gpu_kernels import TARGETS, fixed, in_interpreter, on
from hyper_parts import F, differing
from test_gate import AMD, NVIDIA, Budget, complaints
from v4kernels.cpu.bound import pointer
from v4kernels.triton import embed, fp32, hyper, route

ROUTE = {"EXPERTS": 256, "TOP_K": 6, "BLOCK": 256}
PRE = {"S": 4, "D": 4096, "ITERS": 20, "NORM_EPS": 1e-6, "EPS": 1e-6, "QUANTIZED": True, "BLOCK": 512}
# Every kernel is small: one GPU of each kind in most runs, all of them in the long ones.
GPUS = pytest.mark.parametrize("gpu", ["sm_120", *(pytest.param(gpu, marks=pytest.mark.slow) for gpu in TARGETS[:-1])])
COMPILED = [pytest.param(gpu, marks=[] if gpu in ("sm_89", "gfx942") else pytest.mark.slow) for gpu in (*NVIDIA, *AMD)]
pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")


def check_elementary(launch, seed, n=4096):
    """Numbers around every border of the functions, and a few that are none."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(n) * np.exp2(rng.integers(-130, 8, n))).astype(F)
    x[: n // 2] = rng.uniform(-100, 100, n // 2).astype(F)
    special = np.array([0, -0.0, 88, -87, -20, np.nextafter(F(-20), F(0)), 3e38, -3e38, 1e-45, np.inf, -np.inf], F)
    x[: len(special)], x[len(special)] = special, np.nan
    for function, kernel in ((1, small_kernels.exponentials), (2, small_kernels.square_roots_of_softplus)):
        got, want = np.full(n, 7, F), np.empty(n, F)
        launch(kernel, (n // 512,), fixed(x), got, BLOCK=512)
        native.checked(native.library().v4k_elementary(function, pointer(x), n, pointer(want)))
        assert differing(got, want) == 0


@GPUS
def test_exp_and_the_square_root_of_softplus_are_the_librarys(gpu):
    check_elementary(on(gpu), 1)


def check_linear(launch, seed, form, rows, cols, n, groups=1, tile=(1, 4)):
    rng = np.random.default_rng(seed)
    x, w = parts.uneven(rng, n, groups * cols), parts.plain_weight(rng, form, rows, cols)
    assert differing(parts.linear(launch, x, w, groups, tile), parts.library_linear(x, w, groups)) == 0


@GPUS
@pytest.mark.parametrize("form", ["f32", "bf16"])
def test_layers_in_fp32_are_the_librarys(gpu, form):
    """A single group, tails of a half step, groups of outputs, tiles that rows and tokens do not fill."""
    for rows, cols, n, groups, tile in ((3, 32, 2, 1, (1, 4)), (30, 1120, 6, 1, (4, 4)), (12, 96, 3, 2, (1, 4))):
        check_linear(on(gpu), rows, form, rows, cols, n, groups, tile)


@GPUS
def test_a_sum_of_products_too_small_below_zero_is_a_zero_below_zero(gpu):
    """Lanes that the last step has nothing for stay as they are."""
    w, x = parts.PackedWeight.of("f32", np.full((5, 96), -1e-30, F)), np.full((2, 96), 1e-30, F)
    want = parts.library_linear(x, w)
    assert np.signbit(want).all() and not want.any()
    assert differing(parts.linear(on(gpu), x, w), want) == 0


def check_hyper(launch, seed, streams, dim, n, spread=1.0, tokens=1):
    rng = np.random.default_rng(seed)
    h, x = parts.hyper_connection(rng, streams, dim, spread), parts.uneven(rng, n, streams * dim)
    got, want = parts.pre(launch, h, x, tokens=tokens), parts.library_pre(h, x)
    assert [differing(*both) for both in zip(got, want)] == [0, 0]
    out, mix = parts.uneven(rng, n, dim), want[1]
    assert differing(parts.post(launch, h, out, mix, x), parts.library_post(h, out, mix, x)) == 0
    h = parts.hyper_connection(rng, streams, dim, spread, final=True)
    got, mix = parts.pre(launch, h, x, final=True)
    assert differing(got, parts.library_head(h, x)) == 0
    assert (mix == 7).all(), "the final collapse writes none"


@pytest.mark.parametrize(
    "gpu, streams, dim, n, spread",
    [
        ("sm_80", 4, 1032, 6, 1.0),
        ("sm_120", 4, 96, 2, 30.0),
        ("sm_89", 2, 80, 1, 1.0),
        ("sm_89", 1, 32, 1, 5.0),
    ],
)
def test_hyper_connections_are_the_librarys(gpu, streams, dim, n, spread):
    check_hyper(on(gpu), dim, streams, dim, n, spread, tokens=1 if n == 1 else 4)


@pytest.mark.slow
def test_a_hyper_connection_of_eight_streams_is_the_librarys():
    check_hyper(on("sm_89"), 8, 8, 64, 2)


def check_route(launch, seed, experts, top_k, n, by_table, form="bf16", ties=True):
    """With equal products, and so scores, and biases that make others equal."""
    rng = np.random.default_rng(seed)
    gate, x = parts.plain_weight(rng, form, experts, 64), parts.uneven(rng, n, 64)
    bias = table = tokens = None
    if by_table:
        table, tokens = rng.integers(0, experts, (9, top_k)), rng.integers(0, 9, n)
    else:
        bias = (rng.integers(-3, 3, experts) * (1 if ties else rng.random(experts))).astype(F)
        if ties:
            gate.owners[0][rng.random(experts) < 0.5] = gate.owners[0][0]
            bias[rng.random(experts) < 0.5] = bias[0]
    want = parts.library_route(gate, bias, table, tokens, top_k, 1.5, x)
    products = parts.linear(launch, x, gate)
    got = parts.routed(launch, products, bias, table, tokens, top_k, 1.5)
    assert [differing(*both) for both in zip(got, want)] == [0, 0, 0]


@GPUS
@pytest.mark.parametrize("by_table", [False, True], ids=["by score", "by table"])
def test_routes_are_the_librarys(gpu, by_table):
    for seed, (experts, top_k) in enumerate([(256, 6), (19, 5), (4, 4), (1, 1)]):
        check_route(on(gpu), seed, experts, top_k, 7, by_table)


def check_scores(launch, products, bias, top_k):
    """Of products as they are, by a gate that is the unit matrix; they are finite."""
    n = products.shape[1]
    unit = parts.PackedWeight.of("f32", np.eye(n, dtype=F))
    want = parts.library_route(unit, bias, None, None, top_k, 1.0, products)
    got = parts.routed(launch, products, bias, None, None, top_k, 1.0)
    assert [differing(*both) for both in zip(got, want)] == [0, 0, 0]


@GPUS
def test_experts_that_no_order_has_a_place_for_are_chosen_as_the_library_does(gpu):
    """NaN first, in between and last, infinite, and zeros of both signs."""
    rng = np.random.default_rng(3)
    bias = rng.choice(np.array([0, -0.0, 1, np.nan, np.inf, -np.inf], F), 32)
    for first in (0, np.nan, -np.inf):
        bias[0] = first
        products = rng.choice(np.array([-200, -30, 0, 1, 1], F), (8, 32))
        check_scores(on(gpu), products, bias, 32)


def test_an_expert_of_a_table_that_there_is_not_weighs_nothing():
    rng = np.random.default_rng(4)
    gate, x = parts.plain_weight(rng, "f32", 6, 64), parts.uneven(rng, 1, 64)
    table, tokens = np.array([[3, 7, -1]]), np.array([0])
    want = parts.library_route(gate, None, table, tokens, 3, 1.5, x)
    got = parts.routed(on("sm_89"), parts.library_linear(x, gate), None, table, tokens, 3, 1.5)
    assert [differing(*both) for both in zip(got, want)] == [0, 0, 0]
    assert got[1][0, 1:].tolist() == [0, 0]


def check_embedding(launch, seed, form, dim, n, streams=4):
    rng = np.random.default_rng(seed)
    table, ids = parts.embedding(rng, form, 50, dim), rng.integers(0, 50, n)
    assert differing(parts.embedded(launch, table, ids, streams), parts.library_embed(table, ids, streams)) == 0


@GPUS
@pytest.mark.parametrize("form", ["fp4", "int8", "int4", "bf16", "f32"])
def test_embedding_rows_are_the_librarys(gpu, form):
    check_embedding(on(gpu), 1, form, 352, 5)


@pytest.mark.slow
@pytest.mark.parametrize("gpu", TARGETS)
def test_random_sizes_are_the_librarys(gpu):
    rng, launch = np.random.default_rng(6), on(gpu)
    for seed in range(8):
        rows, cols, n = int(rng.integers(1, 60)), 32 * int(rng.integers(1, 60)), int(rng.integers(1, 7))
        check_linear(launch, seed, "f32" if seed % 2 else "bf16", rows, cols, n, 1, (4 if seed % 3 else 1, 4))
        check_hyper(launch, seed, 4, 8 * int(rng.integers(1, 200)), n, float(rng.choice([1, 10, 100])))
        experts = int(rng.integers(1, 300))
        check_route(launch, seed, experts, int(rng.integers(1, min(experts, 9) + 1)), n, bool(seed & 1), ties=n > 3)
        check_elementary(launch, seed)


def test_the_size_of_v4_is_the_librarys():
    launch = on("sm_80")
    check_hyper(launch, 1, 4, 4096, 1)
    check_embedding(launch, 1, "int8", 4096, 1)


@GPUS
def test_without_any_one_barrier_a_norm_has_a_race(gpu):
    """But for the one in front of the very first exchange, which guards nothing."""
    made = gpu_kernels.compiled(hyper.hyper_pre, gpu, **PRE)
    text, n, rows = made.asm["ptx"], 1, 24
    given = (np.ones(size, F) for size in (n * 4 * 4096, n * (rows + 1), rows, 3, 4096))
    arguments = [fixed(a) for a in given] + [
        np.zeros(4096, F),
        np.zeros(20, F),
        np.zeros(4096, np.int8),
        np.zeros(128, F),
        rows,
    ]
    barriers = list(re.finditer(r"bar\.sync\s+0;", text))
    missed = []
    for i, found in enumerate(barriers):
        program = ptx.load(text[: found.start()] + text[found.end() :], made.metadata.shared)
        try:
            gpu_kernels.run(program, (1, 1), *arguments)
            missed.append(i)
        except ptx.Race:
            pass
    assert len(barriers) > 1
    assert missed in ([], [0])


SCRIPT = """
import gpu_kernels
import test_hyper as given

run = gpu_kernels.interpreted
given.check_elementary(run, 1, 512)
given.check_linear(run, 1, "f32", 6, 96, 3, 2)
given.check_linear(run, 2, "bf16", 5, 1120, 2, 1, (4, 4))
given.check_hyper(run, 3, 4, 40, 2)
given.check_route(run, 4, 19, 5, 2, False)
given.check_route(run, 5, 19, 5, 2, True)
for form in ("fp4", "int8", "int4", "bf16", "f32"):
    given.check_embedding(run, 6, form, 64, 2)
print("the same")
"""


def test_the_interpreter_gives_the_librarys_bits():
    assert in_interpreter(SCRIPT) == ["the", "same"]


BUDGETS = {
    "linear_bf16": Budget(fp32.linear_bf16, {"K": 4096, "N": 1, "ROWS": 4}, registers=40, shared=16),
    "linear_f32": Budget(fp32.linear_f32, {"K": 4096, "N": 1, "ROWS": 4}, registers=40, shared=16),
    "linear_f32, many tokens": Budget(fp32.linear_f32, {"K": 4096, "N": 4, "ROWS": 4}, registers=64, shared=64),
    "hyper_products": Budget(hyper.hyper_products, {"K": 16384, "N": 1}, registers=128, shared=0, warps=1),
    "hyper_pre": Budget(hyper.hyper_pre, PRE, registers=48, shared=256),
    "hyper_post": Budget(hyper.hyper_post, {"S": 4, "D": 4096, "BLOCK": 256}, registers=32, shared=0),
    "route by score": Budget(route.route, ROUTE | {"BY_TABLE": False}, registers=72, shared=0, warps=1),
    "route by table": Budget(route.route, ROUTE | {"BY_TABLE": True}, registers=72, shared=0, warps=1),
    "embed": Budget(embed.embed, {"D": 4096, "FORMAT": "fp4", "BLOCK": 512}, registers=24, shared=0),
}


@pytest.mark.parametrize("gpu", COMPILED)
def test_kernels_stay_within_their_budgets(gpu):
    for name, budget in BUDGETS.items():
        assert complaints(replace(budget, registers=104) if gpu in AMD else budget, gpu) == [], name
