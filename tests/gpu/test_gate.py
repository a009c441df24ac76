"""Every kernel compiles for every GPU within its budget: registers, no stack, shared memory, and how many instructions
its main loop has for what it does. A count of instructions bounds speed from above, so a kernel that got slower by what
the compiler made of it is seen here, without a GPU. Most runs take one GPU of each maker, the long ones all."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import gpu_kernels
import sass
import triton
from v4kernels.triton import gemm, index, launch, linear, quantize

NVIDIA = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
AMD = ("gfx942", "gfx1100")


def first_or_slow(first: str, gpus: tuple[str, ...]) -> list:
    """One at every run of the tests, all of them at the long one."""
    return [gpu if gpu == first else pytest.param(gpu, marks=pytest.mark.slow) for gpu in gpus]


EACH_NVIDIA = pytest.mark.parametrize("gpu", first_or_slow("sm_90", NVIDIA))
EACH_AMD = pytest.mark.parametrize("gpu", first_or_slow("gfx942", AMD))

# Budgets are those of the Triton that constraints.txt names; what others make of a kernel may take a little more.
NAMED = f"triton=={triton.__version__}" in (Path(__file__).parents[2] / "constraints.txt").read_text().split()
MORE_REGISTERS, MORE_INSTRUCTIONS, STACK = (1.0, 1.0, 0) if NAMED else (1.35, 1.1, 16)


@dataclass(frozen=True)
class Budget:
    """At most, but for wide_loads, which is the least. `unit`: products that one unit of work takes."""

    kernel: Any
    constants: dict[str, Any]
    registers: int
    shared: int
    warps: int = 4
    stages: int = 1
    wide_loads: int = 0  # of 128 bits, in the main loop
    unit: int = 1
    instructions: dict[str, float] = field(default_factory=dict)  # of the main loop, a unit, by GPU
    permutes: bool = True  # whether the main loop may permute bytes


LINEAR = {"K": 4096, "ROWS": 32}
GEMM = {"K": 4096, "TOKENS": 64, "ROWS": 64}
QUERIES = {"ALL": 64, "DIM": 512, "EPS": 1e-6, "HEADS": 64, "ROWS": 64, "DIMS": 128, "ROPE": 64, "EACH": 4}
SCORES = {"ROWS": 64, "DIMS": 128, "BLOCK": 64}
CHOICE = {"TOP": 512, "BLOCK": 4096}
ON_NVIDIA = {
    "quantize": Budget(quantize.quantize, {"BLOCK": 32}, registers=32, shared=128),
    "linear_int8": Budget(  # a weight is one product
        linear.linear_int8,
        LINEAR,
        registers=56,
        shared=1024,
        wide_loads=5,
        instructions=dict.fromkeys(NVIDIA, 1.4) | {"sm_120": 1.1},
    ),
    "linear_fp4": Budget(  # a weight is two products, one of its sign mask
        linear.linear_fp4,
        LINEAR,
        registers=56,
        shared=1024,
        wide_loads=4,
        unit=2,
        instructions=dict.fromkeys(NVIDIA, 3.1) | {"sm_120": 2.8},
    ),
    "linear_int4": Budget(  # a weight is one product
        linear.linear_int4,
        LINEAR,
        registers=56,
        shared=1024,
        wide_loads=4,
        instructions=dict.fromkeys(NVIDIA, 1.9) | {"sm_120": 1.6},
    ),
    "gemm_int8": Budget(  # a unit is a group of one output
        gemm.gemm,
        GEMM | {"FORMAT": "int8"},
        registers=210,
        shared=16384,
        warps=8,
        stages=2,
        unit=32,
        instructions=dict.fromkeys(NVIDIA, 8.5) | {"sm_90": 11.5, "sm_120": 6.5},
        permutes=False,
    ),
    "gemm_fp4": Budget(  # the same, and codes are looked up
        gemm.gemm,
        GEMM | {"FORMAT": "fp4"},
        registers=210,
        shared=16384,
        warps=8,
        stages=2,
        unit=32,
        instructions=dict.fromkeys(NVIDIA, 11.5) | {"sm_90": 12.5, "sm_120": 10},
    ),
    "queries": Budget(index.queries, QUERIES, registers=72, shared=2048),
    "index_scores": Budget(  # a unit is a group of one head and one key
        index.index_scores,
        SCORES,
        registers=176,
        shared=2048,
        unit=32,
        instructions=dict.fromkeys(NVIDIA, 8.5),
    ),
    "index_choice": Budget(index.index_choice, CHOICE, registers=168, shared=16384, warps=8),
}
ON_AMD = {  # units as above; no such GPU has run them yet
    "quantize": Budget(quantize.quantize, {"BLOCK": 32}, registers=48, shared=128),
    "linear_int8": Budget(
        linear.linear_int8,
        LINEAR,
        registers=48,
        shared=1024,
        wide_loads=5,
        instructions={"gfx942": 1.7, "gfx1100": 1.5},
    ),
    "linear_fp4": Budget(
        linear.linear_fp4, LINEAR, 80, 1024, wide_loads=3, instructions={"gfx942": 3.7, "gfx1100": 3.3}
    ),
    "linear_int4": Budget(linear.linear_int4, LINEAR, 64, 1024, wide_loads=4, instructions=dict.fromkeys(AMD, 2.0)),
    "gemm_int8": Budget(
        gemm.gemm, GEMM | {"FORMAT": "int8"}, 256, 16384, 8, unit=32, instructions={"gfx942": 10.5, "gfx1100": 8.5}
    ),
    "gemm_fp4": Budget(
        gemm.gemm, GEMM | {"FORMAT": "fp4"}, 256, 16384, 8, unit=32, instructions={"gfx942": 14.5, "gfx1100": 13.5}
    ),
    "queries": Budget(index.queries, QUERIES, registers=96, shared=2048),
    "index_scores": Budget(index.index_scores, SCORES, registers=240, shared=16384, warps=8),
    "index_choice": Budget(index.index_choice, CHOICE, registers=128, shared=32768, warps=8),
}


def complaints(budget: Budget, gpu: str) -> list[str]:
    """What goes beyond the budget."""
    given = {"ASM": launch.assembly(gpu)} if "ASM" in budget.kernel.arg_names else {}
    made = gpu_kernels.compiled(budget.kernel, gpu, budget.warps, budget.stages, **budget.constants, **given)
    used, loop = sass.amd(made) if gpu in AMD else sass.nvidia(made)
    found = [
        f"{name} {getattr(used, name)}, allowed {allowed}"
        for name, allowed in (
            ("registers", int(budget.registers * MORE_REGISTERS)),
            ("stack", STACK),
            ("shared", budget.shared),
        )
        if getattr(used, name) > allowed
    ]
    if ".ftz" in made.asm.get("ptx", ""):
        found.append("denormals flushed to zero")
    if gpu in budget.instructions:
        each = loop.instructions * budget.unit / loop.products
        if each > budget.instructions[gpu] * MORE_INSTRUCTIONS:
            found.append(f"{each:.2f} instructions a unit, allowed {budget.instructions[gpu]}")
    if loop.wide_loads < budget.wide_loads:
        found.append(f"{loop.wide_loads} loads of 128 bits, expected {budget.wide_loads}")
    if not budget.permutes and loop.opcodes["PRMT"]:
        found.append(f"{loop.opcodes['PRMT']} byte permutes in the main loop")
    return found


@EACH_NVIDIA
@pytest.mark.parametrize("name", ON_NVIDIA)
def test_kernels_stay_within_their_budgets(name, gpu):
    assert complaints(ON_NVIDIA[name], gpu) == []


@EACH_AMD
@pytest.mark.parametrize("name", ON_AMD)
def test_kernels_compile_for_amd_within_their_budgets(name, gpu):
    assert complaints(ON_AMD[name], gpu) == []


def test_registers_that_are_spilled_are_seen():
    crowded = Budget(gemm.gemm, GEMM | {"FORMAT": "int8"}, registers=255, shared=16384, warps=4)
    assert any(complaint.startswith("stack") for complaint in complaints(crowded, "sm_80"))


def test_a_loop_of_too_many_instructions_or_narrow_loads_is_seen():
    strict = Budget(
        linear.linear_int8,
        LINEAR,
        registers=56,
        shared=1024,
        wide_loads=99,
        instructions={"sm_89": 1.0},
        permutes=False,
    )
    seen = complaints(strict, "sm_89")
    assert [c.split()[1] for c in seen] == ["instructions", "loads", "byte"]
