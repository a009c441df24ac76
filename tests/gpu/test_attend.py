"""Attention over packed entries as compiled for three GPUs, run in the PTX machine, and in Triton's interpreter: the
bits are the CPU library's."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import attend_parts as parts
import gpu_kernels
import sass
from emulated import Emulated
from gpu_kernels import TARGETS, in_interpreter, on, same
from test_gate import EACH_AMD, EACH_NVIDIA, MORE_INSTRUCTIONS, Budget, complaints
from v4kernels.cpu import PackedWeight
from v4kernels.triton import attend
from v4kernels.triton.dense import Dense
from v4kernels.triton.memory import Memory
from v4kernels.triton.weights import Uploads

GPUS = pytest.mark.parametrize("gpu", TARGETS)
pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")

SMALL = {"heads": 3, "dim": 96, "rope": 32}
CASES = {
    "one key": parts.random_case(1, 1, 0, 0, **SMALL),
    "a window that begins": parts.random_case(2, 3, 14, 4, **SMALL),
    "a window around a ring": parts.random_case(3, 2, 1000, 0, rows=3, **SMALL),
    "more tokens than a ring has rows": parts.random_case(4, 24, 29, 0, **SMALL),
    "every entry": parts.random_case(5, 1, 2300, 4, **SMALL),
    "entries of 128": parts.random_case(6, 3, 1406, 128, **SMALL),
    "chosen entries": parts.random_case(7, 2, 1700, 4, top=260, rows=16, **SMALL),
    "fewer entries than may be chosen": parts.random_case(8, 2, 38, 4, top=30, **SMALL),
    "many rotated columns": parts.random_case(9, 1, 300, 4, heads=2, dim=192, rope=64),
}
GPU_OF = {0: "sm_80", 4: "sm_89", 128: "sm_80"}  # by ratio: what is compiled once serves many cases


@pytest.mark.parametrize("name", CASES)
def test_attention_is_the_librarys(name):
    case = CASES[name]
    assert parts.equal(on("sm_120" if case.top else GPU_OF[case.ratio]), case)


# At different places, with tokens of their own beside a prompt.
TIMELINES = {
    "windows": parts.timelines_of(20, 0, (0, 2), (11, 33), (77, 1), rows=3, **SMALL),
    "every entry": parts.timelines_of(30, 4, (14, 18), (1800, 1), (2, 1), rows=3, **SMALL),
    "chosen entries": parts.timelines_of(40, 4, (500, 1), (30, 21), (0, 1), top=30, rows=16, **SMALL),
}


@pytest.mark.parametrize("part", [0, 16])
@pytest.mark.parametrize("name, gpu", list(zip(TIMELINES, TARGETS)))
def test_tokens_of_several_timelines_are_as_of_each_alone(name, gpu, part):
    """In one launch, and in parts that begin within a timeline."""
    assert parts.equal(on(gpu), *TIMELINES[name], part=part)


@pytest.mark.slow
@GPUS
@pytest.mark.parametrize("name", CASES)
def test_attention_on_every_gpu_is_the_librarys(gpu, name):
    assert parts.equal(on(gpu), CASES[name])


def test_ties_and_numbers_that_are_not_finite_are_the_librarys():
    case = parts.with_extremes(parts.random_case(10, 3, 1200, 4, heads=6, dim=80, rope=16), 11)
    heads, _ = parts.library(case)
    assert 0 < np.isnan(heads).sum() < heads.size
    assert parts.equal(on("sm_80"), case)


def test_programs_and_tiles_do_not_change_a_bit():
    case = CASES["fewer entries than may be chosen"]
    assert parts.equal(on("sm_120"), case, programs=1)
    assert parts.equal(on("sm_120"), case, programs=7, heads=8, columns=128, warps=2)


@pytest.mark.slow
@GPUS
def test_attention_of_flash_is_the_librarys(gpu):
    flash = {"heads": 64, "dim": 512, "rope": 64, "window": 128}
    for case in (parts.random_case(12, 1, 5000, 4, top=512, **flash), parts.random_case(13, 1, 100_000, 128, **flash)):
        assert parts.equal(on(gpu), case, programs=4, heads=16, columns=128, warps=1)


@pytest.mark.slow
@GPUS
def test_attention_at_a_million_tokens_is_the_librarys(gpu):
    case = parts.random_case(14, 1, 999_999, 128, heads=2, dim=80, rope=16, window=128)
    assert case.keys(0) == 128 + 7812
    assert parts.equal(on(gpu), case, programs=132)


@pytest.mark.slow
def test_attention_of_random_sizes_is_the_librarys():
    rng = np.random.default_rng(15)
    for i in range(40):
        rope = 16 * int(rng.integers(1, 5))
        ratio, window = int(rng.choice([0, 4, 128])), int(rng.integers(1, 200))
        start, tokens = int(rng.integers(0, 3000)), int(rng.integers(1, 5))
        case = parts.random_case(
            i, tokens, start, ratio, 2 * int(rng.integers(1, 6)), 64 * int(rng.integers(1, 4)) + rope, rope, window,
            top=int(rng.integers(1, 400)) if ratio == 4 and i % 2 else 0, rows=int(rng.integers(0, 20)),
        )  # fmt: skip
        if i % 3 == 0:
            case = parts.with_extremes(case, i)
        assert parts.equal(on(TARGETS[i % 3]), case, programs=int(rng.integers(1, 5))), i


def test_one_bit_of_the_last_key_matters():
    case = CASES["fewer entries than may be chosen"]
    other = replace(case, entries=case.entries.copy())
    other.entries[-1, 0] ^= 0x80
    [(got, _)] = parts.run(on("sm_120"), other)
    want, _ = parts.library(case)
    assert same(got[0], want[0]) and not same(got[1], want[1])


# -- the output projection --------------------------------------------------------------------------------------------


def random_weight(rng: np.random.Generator, form: str, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of int8, or pairs of int4, and bf16 scales."""
    scale = (rng.random((rows, cols // 32), np.float32) * np.float32(0.01)).view(np.uint32) >> 16
    if form == "int8":
        return rng.integers(-128, 128, (rows, cols), np.int8), scale.astype(np.uint16)
    return rng.integers(0, 256, (rows, cols // 2), np.uint8), scale.astype(np.uint16)


@pytest.mark.parametrize("form, tokens", [("int8", 3), ("int4", 3), ("int4", 9)])
def test_the_output_projection_by_groups_of_heads_is_the_librarys(form, tokens):
    """As the op table launches it, for few rows and for more."""
    rng, (heads, dim, groups, low, width) = np.random.default_rng(16), (6, 80, 3, 64, 96)
    a = random_weight(rng, form, groups * low, heads // groups * dim)
    b = random_weight(rng, form, width, groups * low)
    wo_a, wo_b = (PackedWeight.of(form, *w) for w in (a, b))
    x, sink = rng.standard_normal((tokens, heads * dim)).astype(np.float32), np.zeros(heads, np.float32)
    described, _kept = parts.attention(heads, dim, 16, sink, groups=groups, wo_a=wo_a, wo_b=wo_b)
    want = np.empty((tokens, width), np.float32)
    code = native.library().v4k_attention_output(ctypes.addressof(described), x.ctypes.data, tokens, want.ctypes.data)
    native.checked(code)
    memory = Memory(Emulated())
    dense, uploads = Dense(memory), Uploads(memory)
    inputs = dense.take("heads", tokens, heads * dim)
    memory.device.write(inputs.at, x)
    joined = dense.grouped("joined", uploads.grouped(wo_a, groups), groups, inputs)
    assert same(dense.values(dense.linear("out", uploads.weight(wo_b), joined)), want)


# -- what kernels take of a GPU ---------------------------------------------------------------------------------------

TOKEN = {"ALL": 64, "WINDOW": 128, "RATIO": 4, "TOP": 512}
ENTRY = TOKEN | {"DIM": 512, "ROPE": 64}
SCORES = ENTRY | {"BYTES": 584, "HEADS": 16}
VALUES = SCORES | {"COLUMNS": 128, "UNROLL": 2}
ON_NVIDIA = {
    "attend_scores": Budget(attend.attend_scores, SCORES, registers=168, shared=2048),  # three blocks
    "attend_weights": Budget(attend.attend_weights, TOKEN | {"HEADS": 4}, registers=88, shared=0, warps=1),
    "attend_values": Budget(attend.attend_values, VALUES, registers=168, shared=2048, warps=1),
    "attend_values of few heads": Budget(
        attend.attend_values, VALUES | {"HEADS": 8}, registers=112, shared=2048, warps=1
    ),
    "attend_merge": Budget(attend.attend_merge, ENTRY | {"QUANTIZED": True}, registers=40, shared=2048),
    "keep_window": Budget(attend.keep_window, {"BYTES": 584}, registers=24, shared=0, warps=1),
}
EACH = {"attend_scores": 1.65, "attend_values": 2.75, "attend_values of few heads": 3.65}  # instructions of a fma
ON_AMD = {
    "attend_scores": Budget(attend.attend_scores, SCORES, registers=192, shared=4096),
    "attend_weights": Budget(attend.attend_weights, TOKEN | {"HEADS": 4}, registers=64, shared=0, warps=1),
    "attend_values": Budget(attend.attend_values, VALUES, registers=208, shared=4096, warps=1),
    "attend_merge": Budget(attend.attend_merge, ENTRY | {"QUANTIZED": True}, registers=32, shared=2048),
    "keep_window": Budget(attend.keep_window, {"BYTES": 584}, registers=16, shared=0, warps=1),
}


@EACH_NVIDIA
@pytest.mark.parametrize("name", ON_NVIDIA)
def test_attention_stays_within_its_budgets(name, gpu):
    budget = ON_NVIDIA[name]
    assert complaints(budget, gpu) == []
    if name in EACH:
        _, loop = sass.nvidia(gpu_kernels.compiled(budget.kernel, gpu, budget.warps, **budget.constants))
        assert loop.instructions / loop.opcodes["FFMA"] <= EACH[name] * MORE_INSTRUCTIONS


@EACH_AMD
@pytest.mark.parametrize("name", ON_AMD)
def test_attention_compiles_for_amd_within_its_budgets(name, gpu):
    assert complaints(ON_AMD[name], gpu) == []


# -- the interpreter --------------------------------------------------------------------------------------------------

SCRIPT = """
import attend_parts as parts
import gpu_kernels

small = {"heads": 2, "dim": 80, "rope": 16}
for case in (
    parts.with_extremes(parts.random_case(1, 2, 40, 0, **small), 2),
    parts.random_case(4, 1, 100, 4, top=20, **small),
):
    print(parts.equal(gpu_kernels.interpreted, case, programs=1, columns=128))
cases = parts.timelines_of(5, 4, (9, 1), (30, 17), rows=3, **small)
print(parts.equal(gpu_kernels.interpreted, *cases, programs=1, columns=128, part=16))
"""


def test_the_interpreter_gives_the_librarys_bits_of_attention():
    assert in_interpreter(SCRIPT) == ["True"] * 3
