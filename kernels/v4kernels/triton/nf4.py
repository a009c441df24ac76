"""Dense matrices by bitsandbytes: numerics `nf4` of this backend.

What a store holds as codes with a scale per 32 inputs becomes, when it is loaded, 4-bit codes of normally distributed
values with a scale per 64 inputs, which are quantized themselves: 4.13 bits a weight. Inputs are bf16, and so is what
bitsandbytes gives. It multiplies few rows by another kernel than many, so a row's result depends on the other rows, up
to rounding: unlike all else in this backend it has not the bits of the CPU.
"""

import ctypes
from typing import Any

import numpy as np
import torch

from v4kernels import native
from v4kernels.cpu import PackedWeight
from v4kernels.triton.device import Device
from v4kernels.triton.memory import Buffer, Memory

NUMERICS = "nf4"
BLOCK = 64  # inputs of a scale
SCALES = 256  # scales of a scale of scales


def library() -> Any:
    """bitsandbytes. ValueError where it is not installed."""
    try:
        import bitsandbytes.functional
    except ImportError:
        raise ValueError("nf4 needs bitsandbytes, which is not installed: pip install 'v4cli[gpu]'") from None
    return bitsandbytes


def about(name: str, form: str) -> bool:
    """Whether a matrix, named as in the checkpoint and stored in this format, is one of those: the projections of
    attention and of the indexer, and the head. Experts, shared ones too, have kernels of their own."""
    return form in ("int8", "int4") and (".attn." in name or name == "head.weight")


def n_bytes(n_values: int) -> int:
    """Of so many values: codes, a scale of 8 bits per BLOCK, and one of 32 per SCALES of those."""
    n_scales = -(-n_values // BLOCK)
    return -(-n_values // 2) + n_scales + 4 * -(-n_scales // SCALES)


def values(weight: PackedWeight) -> torch.Tensor:
    """A matrix as stored -> what its codes mean, fp32 (rows, cols)."""
    m = weight.matrix
    ids, out = np.arange(m.rows), np.empty((m.rows, m.cols), np.float32)
    native.checked(native.library().v4k_embed(ctypes.addressof(m), ids.ctypes.data, m.rows, 1, out.ctypes.data))
    return torch.from_numpy(out)


class Nf4:
    """A matrix whose rows are `groups` equal parts with inputs of their own, as in v4k_linear; usually one."""

    quantized = False  # it takes inputs as they are

    def __init__(self, matrix: torch.Tensor, groups: int = 1):
        """`matrix`: fp32 (rows, cols), on the device that is to hold it; it is not kept. ValueError without
        bitsandbytes."""
        quantize = library().functional.quantize_4bit
        self.rows, self.cols = matrix.shape
        self.parts = [
            quantize(part, blocksize=BLOCK, quant_type="nf4", compress_statistics=True) for part in matrix.chunk(groups)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes held of codes and scales."""
        tensors = [t for codes, state in self.parts for t in (codes, state.absmax, state.state2.absmax)]
        return sum(t.nbytes for t in tensors)

    def values(self) -> torch.Tensor:
        """What the codes mean, fp32 (rows, cols)."""
        dequantize = library().functional.dequantize_4bit
        return torch.cat([dequantize(codes, state) for codes, state in self.parts])

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """x (n, groups * cols), of any type -> (n, rows) fp32."""
        multiply = library().matmul_4bit
        inputs = x.bfloat16().chunk(len(self.parts), 1)
        found = [multiply(part, codes, quant_state=state) for part, (codes, state) in zip(inputs, self.parts)]
        return torch.cat(found, 1).float()

    def multiply(self, device: Device, x: Buffer, y: Buffer) -> Buffer:
        """x (n, groups * cols) -> y (n, rows) in memory of a device, in the order of its launches."""
        inputs, outputs = viewed(device, x), viewed(device, y)

        def work() -> None:
            outputs.copy_(self.times(inputs))

        device.call(work)
        return y


def viewed(device: Device, array: Buffer) -> torch.Tensor:
    """An array fp32 in memory of a device, (rows, width)."""
    raw = device.tensor(array.at, array.rows * array.row_bytes)
    return raw.view(torch.float32).reshape(array.rows, array.width)


def upload(memory: Memory, weight: PackedWeight, groups: int) -> Nf4:
    """A matrix of the host, quantized on the device: its values are there meanwhile. MemoryError."""
    exact = memory.put(values(weight).numpy())
    matrix = viewed(memory.device, Buffer(exact.at, weight.matrix.rows, weight.matrix.cols))
    made: list[Nf4] = []
    try:
        memory.device.call(lambda: made.append(Nf4(matrix, groups)))
    except torch.OutOfMemoryError:
        raise MemoryError("no memory on the device for a matrix and its quantized form") from None
    return made[0]
