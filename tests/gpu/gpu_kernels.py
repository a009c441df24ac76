"""Triton kernels in the PTX machine. Import behind `pytest.importorskip("triton")`."""

import functools
from typing import Any

import numpy as np
import ptx
import torch
from v4kernels.triton import gemm, launch, linear, quantize

TARGETS = ("sm_80", "sm_89", "sm_120")


@functools.cache
def compiled(kernel: Any, gpu: str, warps: int = 4, stages: int = 1, **constants: Any) -> Any:
    return launch.compiled(kernel, constants, gpu, warps, stages)


@functools.cache
def program(kernel: Any, gpu: str, warps: int = 4, stages: int = 1, **constants: Any) -> ptx.Program:
    made = compiled(kernel, gpu, warps, stages, **constants)
    return ptx.load(made.asm["ptx"], made.metadata.shared)


def run(program: ptx.Program, grid: tuple[int, ...], *arguments: int | torch.Tensor | np.ndarray) -> ptx.Counters:
    """Tensors are read only, arrays are outputs. Pointers that Triton adds for scratch memory, which no kernel has, are
    null."""
    given = [constant(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    return ptx.launch(program, grid, given + [0] * (len(program.parameters) - len(given)))


def constant(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.contiguous().view(torch.uint8).numpy().view()
    array.flags.writeable = False
    return array


def blocks(n: int, size: int) -> int:
    return -(-n // size)


def run_quantize(gpu: str, x: torch.Tensor, block: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """x [n, K] fp32 -> codes int8 [n, K], scales fp32 [n, K/32]."""
    n, k = x.shape
    q, scale = np.zeros((n, k), np.int8), np.zeros((n, k // 32), np.float32)
    groups = n * k // 32
    run(program(quantize.quantize, gpu, BLOCK=block), (blocks(groups, block),), x, q, scale, groups)
    return q, scale


def run_linear(
    gpu: str,
    form: str,
    codes: torch.Tensor,
    scale: torch.Tensor,
    q: torch.Tensor,
    q_scale: torch.Tensor,
    ptx_form: bool,
) -> tuple[np.ndarray, ptx.Counters]:
    """One linear layer of format int8, fp4 or int4 (v4k.h): y fp32 [tokens, rows]."""
    kernel = {"int8": linear.linear_int8, "fp4": linear.linear_fp4, "int4": linear.linear_int4}[form]
    rows, (tokens, k) = len(codes), q.shape
    y = np.full((tokens, rows), np.nan, np.float32)
    made = program(kernel, gpu, K=k, ROWS=32, PTX=ptx_form)
    return y, run(made, (blocks(rows, 32), tokens), codes, scale, q, q_scale, y, rows)


def run_gemm(
    gpu: str,
    form: str,
    codes: torch.Tensor,
    scale: torch.Tensor,
    q: torch.Tensor,
    q_scale: torch.Tensor,
    stages: int = 2,
) -> tuple[np.ndarray, ptx.Counters]:
    """A linear layer of format int8, fp4 or int4 by matrix units, in tiles of 64 x 64: y fp32 [tokens, rows]."""
    rows, (tokens, k) = len(codes), q.shape
    y = np.full((tokens, rows), np.nan, np.float32)
    made = program(gemm.gemm, gpu, 8, stages, K=k, TOKENS=64, ROWS=64, FORMAT=form, PTX=True)
    return y, run(made, (blocks(tokens, 64), blocks(rows, 64)), codes, scale, q, q_scale, y, rows, tokens)
