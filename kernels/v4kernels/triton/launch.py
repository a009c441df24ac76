"""Compilation of a kernel, for any GPU that Triton knows, present or not."""

from collections.abc import Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTER_BYTES = 16  # every buffer begins at a multiple of that, so 128-bit loads are allowed


def target(name: str) -> GPUTarget:
    """By name: sm_80, sm_120, ...; gfx942, gfx1100, ..."""
    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    return GPUTarget("hip", name, 64 if name.startswith("gfx9") else 32)


def compiled(
    kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], gpu: str, warps: int = 4, stages: int = 2
) -> Any:
    """A Triton function made for the GPU of that name (see `target`), all forms in its `asm`.

    types: of each argument that is no constant, as Triton writes them: *fp32, i32. Products and sums are never
    contracted to fused ones that the source does not have: that would change bits.
    """
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", POINTER_BYTES]] for i, kind in enumerate(signature.values()) if kind.startswith("*")
    }
    source = ASTSource(kernel, signature, dict(constants), attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
    return triton.compile(source, target=target(gpu), options=options)
