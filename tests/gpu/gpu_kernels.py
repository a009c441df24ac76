"""Triton kernels in the PTX machine, and in Triton's interpreter. Import behind `pytest.importorskip("triton")`.

A `Launch` runs a kernel: launch(kernel, grid, *arguments, warps=4, **constants). Arrays that are `fixed` are only read.
Those that kernels find by their addresses are its own (`place`), and views of them say what lies around.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ptx
import pytest
import torch
from emulated import program
from v4kernels import native
from v4kernels.triton import gemm, launch, linear, quantize

TARGETS = ("sm_80", "sm_89", "sm_120")


def over_gpus(names: str, cases: Iterable[tuple]) -> pytest.MarkDecorator:
    """`gpu` and these for a test: each case on one GPU in most runs, in turns, and on all of them in the long ones.
    Compilation is most of what such a test takes."""
    found, count = [], len(TARGETS)
    for i, case in enumerate(cases):
        for j, gpu in enumerate(TARGETS):
            marks = () if (i + i // count) % count == j else pytest.mark.slow
            found.append(pytest.param(gpu, *case, marks=marks))
    return pytest.mark.parametrize(", ".join(("gpu", *names.split())), found)


FMA = """# Before 3.9 the interpreter rounds it twice.
from ptx import floats
from triton.runtime import interpreter

interpreter.InterpreterBuilder.create_fma = lambda self, x, y, z: interpreter.TensorHandle(
    floats.fma(x.data, y.data, z.data), z.dtype.scalar
)
"""


def compiled(kernel: Any, gpu: str, warps: int = 4, stages: int = 1, **constants: Any) -> Any:
    return launch.compiled(kernel, constants, gpu, warps, stages)


def run(
    program: ptx.Program,
    grid: tuple[int, ...],
    *arguments: int | torch.Tensor | np.ndarray,
    memory: ptx.DeviceMemory | None = None,
) -> ptx.Counters:
    """Tensors are read only, arrays are outputs. Pointers that Triton adds for scratch memory, which no kernel has, are
    null."""
    given = [constant(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    return ptx.launch(program, grid, given + [0] * (len(program.parameters) - len(given)), memory)


def constant(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.contiguous().view(torch.uint8).numpy().view()
    array.flags.writeable = False
    return array


class Launch(Protocol):
    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, **constants: Any
    ) -> None: ...

    def place(self, array: np.ndarray) -> np.ndarray:
        """A copy where it has an address, as long as this launch is there."""

    def address(self, array: np.ndarray) -> int:
        """Of such a copy, or a view of one that begins within it."""


class Machine:
    """In the PTX machine, as compiled for a GPU."""

    def __init__(self, gpu: str):
        self.gpu, self.memory = gpu, ptx.DeviceMemory()
        self.counted = ptx.Counters()  # of the last launch

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, **constants: Any) -> None:
        self.run(program(kernel, self.gpu, warps, **constants), grid, *arguments)

    def run(self, program: ptx.Program, grid: tuple[int, ...], *arguments: Any) -> None:
        given = [self._found(a) or a if isinstance(a, np.ndarray) else a for a in arguments]
        self.counted = run(program, grid, *given, memory=self.memory)

    def place(self, array: np.ndarray) -> np.ndarray:
        held = self.memory.place("a placed array", array.nbytes).bytes.view(array.dtype).reshape(array.shape)
        held[...] = array
        return held

    def address(self, array: np.ndarray) -> int:
        found = self._found(array)
        assert found
        return found

    def _found(self, array: np.ndarray) -> int:
        """0: it is not placed."""
        for buffer in self.memory.buffers:
            offset = array.ctypes.data - buffer.data.ctypes.data
            if 0 <= offset < buffer.size:
                return buffer.address + offset
        return 0


class Interpreter:
    """By Triton's interpreter, in a process that has it switched on (`in_interpreter`)."""

    def __init__(self) -> None:
        self.placed: list[np.ndarray] = []

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, **constants: Any) -> None:
        kernel[grid](*map(_tensor, arguments), **constants)

    def place(self, array: np.ndarray) -> np.ndarray:
        self.placed.append(array.copy())
        return self.placed[-1]

    def address(self, array: np.ndarray) -> int:
        return array.ctypes.data


on = Machine
interpreted = Interpreter()


def _tensor(argument: Any) -> Any:
    if not isinstance(argument, np.ndarray):
        return argument
    return torch.from_numpy(argument if argument.flags.writeable else argument.copy())


def in_interpreter(script: str) -> list[str]:
    """The words that a script prints in a process of its own, where kernels are interpreted."""
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-W", "ignore", "-c", FMA + script]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def fixed(array: np.ndarray) -> np.ndarray:
    """As an input, which kernels may not write to."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Shape, type and bits, but one NaN is as good as another."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype != np.float32:
        return np.array_equal(a, b)
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By the library: codes, and scales of 32 each."""
    codes, scale = native.quantize(torch.from_numpy(np.ascontiguousarray(x)))
    return codes.numpy(), scale.numpy()


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
    asm: str,
    tile: int = 32,
) -> tuple[np.ndarray, ptx.Counters]:
    """One linear layer of a quantized format, `tile` rows a program: y fp32 [tokens, rows]."""
    kernel = getattr(linear, f"linear_{form}")
    rows, (tokens, k) = len(codes), q.shape
    y = np.full((tokens, rows), np.nan, np.float32)
    made = program(kernel, gpu, K=k, ROWS=tile, ASM=asm)
    return y, run(made, (blocks(rows, tile), tokens), codes, scale, q, q_scale, y, rows)


def run_gemm(
    gpu: str,
    form: str,
    codes: torch.Tensor,
    scale: torch.Tensor,
    q: torch.Tensor,
    q_scale: torch.Tensor,
    stages: int = 2,
) -> tuple[np.ndarray, ptx.Counters]:
    """The same by matrix units, in tiles of 64 x 64: y fp32 [tokens, rows]."""
    rows, (tokens, k) = len(codes), q.shape
    y = np.full((tokens, rows), np.nan, np.float32)
    made = program(gemm.gemm, gpu, 8, stages, K=k, TOKENS=64, ROWS=64, FORMAT=form, ASM="ptx")
    return y, run(made, (blocks(tokens, 64), blocks(rows, 64)), codes, scale, q, q_scale, y, rows, tokens)
