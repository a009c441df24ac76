"""Dense matrices by bitsandbytes: numerics `nf4` of this backend.

What a store holds as codes with a scale per 32 inputs becomes, when it is loaded, 4-bit codes of normally distributed
values with a scale per 64 inputs, which are quantized themselves: 4.13 bits a weight. Inputs are bf16, and so is what
bitsandbytes gives. It multiplies few rows by another kernel than many, so a row's result depends on the other rows, up
to rounding: unlike all else in this backend it has not the bits of the CPU.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from v4kernels import native
from v4kernels.cpu import PackedWeight
from v4kernels.triton.device import Device
from v4kernels.triton.memory import Buffer, Memory

NUMERICS = "nf4"
BLOCK = 64  # inputs of a scale
SCALES = 256  # that share a scale of their own, fp32
PIECE = 1 << 22  # values of a matrix that are on a device at a time while it is quantized


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


def held_bytes(n_values: int) -> int:
    """Of a matrix of so many values."""
    scales = -(-n_values // BLOCK)
    return -(-n_values // 2) + scales + 4 * -(-scales // SCALES)


def values(weight: PackedWeight, first: int = 0, last: int | None = None) -> torch.Tensor:
    """Rows [first, last) of a matrix as stored -> what its codes mean, fp32 (rows, cols)."""
    m = weight.matrix
    ids = np.arange(first, m.rows if last is None else last)
    out = np.empty((len(ids), m.cols), np.float32)
    native.checked(native.library().v4k_embed(ctypes.addressof(m), ids.ctypes.data, len(ids), 1, out.ctypes.data))
    return torch.from_numpy(out)


Rows = Callable[[int, int], torch.Tensor]  # rows [first, last) of a matrix, fp32, valid until the next are asked for


def quantized(rows_of: Rows, first: int, last: int, cols: int) -> tuple[torch.Tensor, Any]:
    """Rows [first, last) as codes and their QuantState, to the bit what quantize_4bit makes of them at once with
    compressed statistics."""
    bnb, n_values = library().functional, (last - first) * cols
    step = max(2, PIECE // cols // 2 * 2)  # rows, a whole number of scales
    for start in range(first, last, step):
        rows = rows_of(start, min(start + step, last))
        made, state = bnb.quantize_4bit(rows, blocksize=BLOCK, quant_type="nf4")
        if start == first:
            codes = made.new_empty((-(-n_values // 2), 1))
            peaks = state.absmax.new_empty(-(-n_values // BLOCK))
        at = (start - first) * cols
        codes[at // 2 : at // 2 + len(made)] = made
        peaks[at // BLOCK : at // BLOCK + len(state.absmax)] = state.absmax
    offset = peaks.mean()
    scales, of_scales = bnb.quantize_blockwise(peaks - offset, blocksize=SCALES)
    about = {"blocksize": BLOCK, "quant_type": "nf4", "code": state.code, "dtype": state.dtype}
    shape = torch.Size((last - first, cols))
    return codes, bnb.QuantState(absmax=scales, shape=shape, offset=offset, state2=of_scales, **about)


class Nf4:
    """A matrix whose rows are `groups` equal parts with inputs of their own, as in v4k_linear; usually one."""

    quantized = False  # it takes inputs as they are

    def __init__(self, shape: tuple[int, int], rows_of: Rows, groups: int = 1):
        """`shape`: rows and cols. It is made piece by piece. ValueError without bitsandbytes."""
        self.rows, self.cols = shape
        each = self.rows // groups
        self.parts = [quantized(rows_of, i * each, (i + 1) * each, self.cols) for i in range(groups)]

    @classmethod
    def of(cls, matrix: torch.Tensor, groups: int = 1) -> "Nf4":
        """Of fp32 (rows, cols) on the device that is to hold it; it is not kept."""
        rows, cols = matrix.shape
        return cls((rows, cols), lambda first, last: matrix[first:last], groups)

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
    """A matrix of the host, quantized on the device: pieces of its values are there meanwhile. MemoryError."""
    m, made = weight.matrix, list[Nf4]()
    piece = memory.take(4 * max(PIECE, 2 * m.cols))

    def rows_of(first: int, last: int) -> torch.Tensor:
        memory.write(piece, 0, values(weight, first, last).numpy())
        return viewed(memory.device, Buffer(piece.at, last - first, m.cols))

    try:
        memory.device.call(lambda: made.append(Nf4((m.rows, m.cols), rows_of, groups)))
    except torch.OutOfMemoryError:
        raise MemoryError("no memory on the device for a matrix in nf4") from None
    return made[0]
