"""Compilation of a kernel, for any GPU that Triton knows, present or not."""

import functools
from collections.abc import Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ALIGNMENT = 16  # bytes; every buffer begins at a multiple of that, so loads of 128 bits are allowed


def target(name: str) -> GPUTarget:
    """By name: sm_80, sm_120, ...; gfx942, gfx1100, ..."""
    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    return GPUTarget("hip", name, 64 if name.startswith("gfx9") else 32)


def assembly(name: str) -> str:
    """What kernels call ASM (dots.py), of a GPU by name."""
    return "ptx" if name.startswith("sm_") else "gfx9" if name.startswith("gfx9") else "gfx11"


def compiled(kernel: Any, constants: Mapping[str, Any], gpu: str, warps: int = 4, stages: int = 1) -> Any:
    """A Triton function, whose arguments say their types, made for the GPU of that name (see `target`); once in a
    process. All its forms are in `asm` of the result.

    Products and sums are never contracted to fused ones that the source does not have: that would change bits.
    """
    typed = tuple((name, type(value), value) for name, value in constants.items())  # 1 and 1.0 are two constants
    return _compiled(kernel, typed, gpu, warps, stages)


@functools.cache
def _compiled(kernel: Any, constants: tuple[tuple[str, type, Any], ...], gpu: str, warps: int, stages: int) -> Any:
    signature = {p.name: "constexpr" if p.is_constexpr else p.annotation for p in kernel.params}
    aligned = {
        (i,): [["tt.divisibility", ALIGNMENT]] for i, kind in enumerate(signature.values()) if kind.startswith("*")
    }
    source = ASTSource(kernel, signature, {name: value for name, _, value in constants}, attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
    return triton.compile(source, target=target(gpu), options=options)
