"""Experts of a decode step as compiled for GPUs: the bits are those of v4k_experts, whichever experts have a slot."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
from expert_parts import (
    LIMIT,
    PARTS,
    Experts,
    Kind,
    PtxMachine,
    Step,
    added,
    all_of_it,
    by_the_library,
    missed_rows,
    of_slots,
    rows_of_pairs,
    shared_rows,
)
from gpu_kernels import TARGETS, blocks, in_interpreter, over_gpus
from test_gate import AMD, NVIDIA, Budget, complaints
from test_kernels import differing, generator
from v4kernels.triton import experts, gemm

LIBRARY = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
KINDS = {
    "fp4": Kind(352, 96, ("fp4",) * 3),
    "mixed": Kind(288, 64, ("int8", "fp4", "int4")),
    "q3": Kind(352, 96, ("q2", "q2", "q3")),
    "q2": Kind(288, 64, ("fp4", "q3", "q2")),
}


@LIBRARY
@over_gpus("name", [("mixed",), ("q3",), ("q2",)])
def test_experts_in_slots_and_others_are_the_librarys(gpu, name):
    """With several rows, formats that differ, and a K that fills no step."""
    kind = KINDS[name]
    made, shared = Experts(kind, 9, 1), Experts(Kind(kind.dim, 128, ("int8",) * 3), 1, 2)
    step = Step.random(5, kind.dim, 9, 4, 1)
    held = np.random.default_rng(1).random(9) < 0.6
    got = all_of_it(PtxMachine(gpu), step, made, shared, held)
    assert differing(got, by_the_library(step, made, shared)) == 0


def differing_by_split(gpu: str, rows: int, splits: int) -> list[int]:
    """For no expert, all, and random ones with a slot: elements whose bits are not the library's."""
    kind = Kind(96, 64, ("fp4", "fp4", "fp4"))
    made, shared = Experts(kind, 12, 3), Experts(Kind(96, 32, ("int8",) * 3), 1, 4)
    run, rng, step = PtxMachine(gpu), np.random.default_rng(rows), Step.random(rows, 96, 12, 5, rows)
    quantized = native.quantize(step.x)
    want, of_shared = by_the_library(step, made, shared), shared_rows(run, step, shared, quantized)
    every_missed = missed_rows(step, made, np.zeros(12, bool))
    found = []
    for i in range(splits):
        held = rng.random(12) < (0.0, 1.0, rng.random())[min(i, 2)]
        memory, slots = of_slots(made, held, i)
        hits = rows_of_pairs(run, kind, memory, slots, step.ids, step.weights, quantized, LIMIT)
        hit = held[step.ids]
        skipped = ~hit | step.x.isnan().any(1)[:, None].numpy()
        assert np.array_equal(np.isnan(hits).all(1), skipped.ravel()), "rows are made of pairs that have a slot only"
        misses = np.where(hit[..., None], np.float32("nan"), every_missed)
        found.append(differing(added(run, step, slots, of_shared, hits, misses), want))
    return found


@LIBRARY
def test_which_experts_have_a_slot_does_not_change_a_bit():
    assert differing_by_split("sm_89", 1, 10) == [0] * 10


@LIBRARY
@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("gpu", TARGETS)
def test_no_split_of_experts_changes_a_bit(gpu, rows):
    assert differing_by_split(gpu, rows, 100) == [0] * 100


@LIBRARY
def test_the_order_of_choices_does_not_matter_but_that_of_ids_does():
    """Sums of fp32 in another order differ, so the test above can tell."""
    dim, top_k = 512, 6
    g = generator(8)
    step = Step(torch.zeros(1, dim), torch.tensor([[7, 300, 2, 40, 255, 9]]), torch.ones(1, top_k), torch.zeros(1, dim))
    hits = torch.randn(top_k, dim, generator=g).numpy()
    slots = torch.zeros(301, dtype=torch.int16)
    none, nan = np.zeros((1, dim), np.float32), np.full((top_k, dim), np.nan, np.float32)
    got = added(PtxMachine("sm_80"), step, slots, none, hits, nan)
    want, other = np.zeros(dim, np.float32), np.zeros(dim, np.float32)
    for j in (2, 0, 5, 3, 4, 1):
        want += hits[j]
    for j in range(top_k):
        other += hits[j]
    assert np.array_equal(got[0], want) and not np.array_equal(want, other)


@LIBRARY
@pytest.mark.slow
def test_experts_of_random_sizes_and_formats_are_the_librarys():
    rng = np.random.default_rng(11)
    for i in range(24):
        dim, inner = 32 * rng.integers(1, 24, 2)
        kind = Kind(int(dim), int(inner), tuple(rng.choice(["fp4", "int8", "int4", "q3", "q2"], 3).tolist()))
        made, shared = Experts(kind, 7, i), Experts(Kind(kind.dim, 64, ("int8", "int4", "int8")), 1, i)
        step = Step.random(int(rng.integers(1, 9)), kind.dim, 7, int(rng.integers(1, 7)), i)
        run = PtxMachine(TARGETS[i % 3], "plain" if i % 4 == 3 else "ptx")
        got = all_of_it(run, step, made, shared, rng.random(7) < 0.7)
        assert differing(got, by_the_library(step, made, shared)) == 0, kind


def by_matrix_units(run, step: Step, made: Experts, held: np.ndarray, tokens: int) -> np.ndarray:
    """The rows [pairs, D] of those pairs whose expert has a slot, in tiles of `tokens` pairs; others are NaN."""
    kind, at = made.kind, made.kind.layout()
    memory, slots = of_slots(made, held, 1)
    ids, top_k = step.ids.flatten().numpy(), step.ids.shape[1]
    order, tiles = np.argsort(ids, kind="stable").astype(np.int32), []
    for e in np.flatnonzero(held):
        places = np.flatnonzero(ids[order] == e)
        for first in range(0, len(places), tokens):
            tiles.append((slots[e].item(), places[0] + first, min(tokens, len(places) - first)))
    listed = torch.tensor(np.array(tiles, np.int32)), torch.from_numpy(order)

    def product(part, x, share):
        rows, cols = kind.shapes()[PARTS.index(part)]
        y = np.full((len(ids), rows), np.nan, np.float32)
        where = {"SLOT": at["SLOT"], "W": at[part.upper()], "W_SCALE": at[f"{part.upper()}_SCALE"]}
        sizes = {"K": cols, "N": rows, "SHARE": share, "TOKENS": tokens, "ROWS": 64}
        grid = len(tiles), blocks(rows, 64)
        form = kind.formats()[f"{part.upper()}_FORMAT"]
        run(gemm.gemm_experts, grid, (memory, *listed, *x, y), **where, **sizes, FORMAT=form)
        return y

    x = native.quantize(step.x)
    gate, up = (torch.from_numpy(product(part, x, top_k)) for part in ("w1", "w3"))
    z, scale = np.zeros((len(ids), kind.inner), np.int8), np.zeros((len(ids), kind.inner // 32), np.float32)
    arguments = (gate, up, step.weights, z, scale, LIMIT, scale.size)
    run(experts.swiglu_pairs, (blocks(scale.size, 32),), arguments, N=kind.inner, BLOCK=32)
    return product("w2", (torch.from_numpy(z), torch.from_numpy(scale)), 1)


@LIBRARY
@pytest.mark.parametrize(
    "gpu, name",
    [
        ("sm_120", "mixed"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("sm_80", "fp4"), ("sm_89", "q3"), ("sm_80", "q2"))),
    ],
)
def test_experts_of_many_rows_are_the_librarys(gpu, name):
    """One has rows for several tiles, the last of them ragged; one has none."""
    kind = KINDS[name]
    made, shared = Experts(kind, 6, 1), Experts(Kind(kind.dim, 64, ("int8",) * 3), 1, 2)
    step = Step.random(40, kind.dim, 5, 3, 5)
    held = np.arange(6) != 3
    run = PtxMachine(gpu)
    hits = by_matrix_units(run, step, made, held, 16)
    of_shared = shared_rows(run, step, shared, native.quantize(step.x))
    _, slots = of_slots(made, held, 1)
    got = added(run, step, slots, of_shared, hits, missed_rows(step, made, held))
    assert differing(got, by_the_library(step, made, shared)) == 0


SCRIPT = """
import gpu_kernels
import numpy as np
import test_experts as given

def run(kernel, grid, arguments, **constants):
    if "ASM" in kernel.arg_names:
        constants["ASM"] = "plain"
    gpu_kernels.interpreted(kernel, grid, *arguments, **constants)

kind = given.Kind(288, 32, ("q3", "fp4", "q2"))
made, shared = given.Experts(kind, 4, 1), given.Experts(given.Kind(288, 32, ("int8",) * 3), 1, 2)
step = given.Step.random(1, 288, 4, 2, 3)
held = np.arange(4) != step.ids[0, 0].item()
got = given.all_of_it(run, step, made, shared, held)
print(given.differing(got, given.by_the_library(step, made, shared)))
"""


@LIBRARY
def test_the_interpreter_gives_the_librarys_bits():
    assert in_interpreter(SCRIPT) == ["0"]


FLASH = Kind(4096, 2048, ("fp4",) * 3)
LOW = {form: Kind(4096, 2048, (form,) * 3) for form in ("q3", "q2")}
GROUPED = {"K": 4096, "N": 2048, "SHARE": 6, "SLOT": FLASH.layout()["SLOT"], "W": 0, "W_SCALE": 4096 * 1024}
GROUPED |= {"TOKENS": 64, "ROWS": 64, "FORMAT": "fp4"}
ADDING = {"N": 4096, "TOP_K": 6, "S": 4, "BLOCK": 512}
ON_NVIDIA = {
    "gate_up fp4": Budget(  # a weight is two products, one of its sign mask; inputs are loaded once for both matrices
        experts.gate_up,
        FLASH.gate_up(6),
        registers=64,
        shared=1024,
        wide_loads=6,
        unit=2,
        instructions=dict.fromkeys(NVIDIA, 2.9),
    ),
    "down fp4": Budget(
        experts.down,
        FLASH.down(),
        registers=56,
        shared=1024,
        wide_loads=4,
        unit=2,
        instructions=dict.fromkeys(NVIDIA, 3.1),
    ),
    "gemm_experts fp4": Budget(  # a unit is a group of one output
        gemm.gemm_experts,
        GROUPED,
        registers=210,
        shared=16384,
        warps=8,
        stages=2,
        unit=32,
        instructions=dict.fromkeys(NVIDIA, 11.5) | {"sm_90": 12.5, "sm_120": 10},
    ),
    "swiglu_pairs": Budget(experts.swiglu_pairs, {"N": 2048, "BLOCK": 32}, registers=64, shared=1024),
    "add_experts": Budget(experts.add_experts, ADDING, registers=48, shared=0),
}


def low_bits(form: str, wide_loads: tuple[int, int], stages: int, **limits: tuple[int, dict]) -> dict[str, Budget]:
    """Of experts in q3 or q2, a weight of which is one product: registers and instructions of each kernel."""
    kind, (gate_up, down) = LOW[form], wide_loads
    found = {
        "gate_up": Budget(experts.gate_up, kind.gate_up(6), 0, 512, wide_loads=gate_up),
        "down": Budget(experts.down, kind.down(), 0, 512, wide_loads=down),
        "gemm_experts": Budget(gemm.gemm_experts, GROUPED | {"FORMAT": form}, 0, 16384, 8, stages, unit=32),
    }
    return {
        f"{name} {form}": replace(found[name], registers=registers, instructions=instructions)
        for name, (registers, instructions) in limits.items()
    }


def on_all(each: float, **others: float) -> dict[str, float]:
    return dict.fromkeys(NVIDIA, each) | others


# Of the loads of 128 bits four are inputs.
ON_NVIDIA |= low_bits(
    "q3",
    (6, 5),
    2,
    gate_up=(64, on_all(2.4)),
    down=(48, on_all(2.7, sm_120=2.5)),
    gemm_experts=(210, on_all(10.8, sm_120=9.3)),
)
ON_NVIDIA |= low_bits(
    "q2",
    (6, 5),
    2,
    gate_up=(56, on_all(1.7)),
    down=(48, on_all(2.0, sm_120=1.8)),
    gemm_experts=(210, on_all(9.6, sm_120=8.2)),
)
ON_AMD = {
    "gate_up fp4": Budget(
        experts.gate_up, FLASH.gate_up(6), 96, 1024, wide_loads=4, instructions={"gfx942": 3.5, "gfx1100": 3.1}
    ),
    "down fp4": Budget(
        experts.down, FLASH.down(), 80, 1024, wide_loads=3, instructions={"gfx942": 3.7, "gfx1100": 3.5}
    ),
    "gemm_experts fp4": Budget(
        gemm.gemm_experts, GROUPED, 256, 16384, 8, unit=32, instructions={"gfx942": 14.5, "gfx1100": 13.5}
    ),
    "add_experts": Budget(experts.add_experts, ADDING, registers=64, shared=0),
}
ON_AMD |= low_bits(
    "q3",
    (2, 2),
    1,
    gate_up=(98, {"gfx942": 3.2, "gfx1100": 3.0}),
    down=(80, {"gfx942": 3.8, "gfx1100": 3.7}),
    gemm_experts=(256, {"gfx942": 12.5, "gfx1100": 21}),
)
ON_AMD |= low_bits(
    "q2",
    (2, 2),
    1,
    gate_up=(98, {"gfx942": 2.6, "gfx1100": 2.5}),
    down=(80, {"gfx942": 3.2, "gfx1100": 3.0}),
    gemm_experts=(256, {"gfx942": 11.7, "gfx1100": 19}),
)
SLOW = ("gate_up q2", "down q3", "gemm_experts q2")  # their kin are compiled at every run of the tests


def within(names: Iterable[str], gpus: tuple[str, ...]) -> pytest.MarkDecorator:
    """`name` and `gpu`: the first of these in most runs, all of them in the long ones."""
    return pytest.mark.parametrize(
        "name, gpu",
        [
            pytest.param(name, gpu, marks=pytest.mark.slow if name in SLOW or gpu != gpus[0] else ())
            for name in names
            for gpu in gpus
        ],
    )


@within(ON_NVIDIA, ("sm_90", *NVIDIA[:3], NVIDIA[4]))
def test_kernels_stay_within_their_budgets(name, gpu):
    assert complaints(ON_NVIDIA[name], gpu) == []


@within(ON_AMD, AMD)
def test_kernels_compile_for_amd_within_their_budgets(name, gpu):
    assert complaints(ON_AMD[name], gpu) == []
