"""Launches of linear layers: GEMV for few rows, matrix units for more, to the same bits.

Inputs of a quantized weight are quantized by `quantize` first, once for all layers that read them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from v4kernels.formats import GROUP
from v4kernels.triton import experts, fp32, gemm, linear, quantize
from v4kernels.triton.device import Device
from v4kernels.triton.launch import assembly
from v4kernels.triton.memory import Block, Buffer, Memory, Work
from v4kernels.triton.weights import DeviceWeight, GroupedWeight

if TYPE_CHECKING:
    from v4kernels.triton.nf4 import Nf4

FEW = 8  # rows up to which a step is few: its results have memory for good, so that it can be recorded
TILE = 64  # rows and outputs of a program with matrix units
ROWS = 32  # outputs of a program without
Constants = dict[str, Any]

GEMV = {"int8": linear.linear_int8, "fp4": linear.linear_fp4, "int4": linear.linear_int4}
PLAIN = {"bf16": fp32.linear_bf16, "f32": fp32.linear_f32}


def blocks(n: int, size: int) -> int:
    return -(-n // size)


def dividing(n: int) -> int:
    """The largest power of two up to ROWS that divides n."""
    return min(ROWS, n & -n)


@dataclass(frozen=True, slots=True)
class Quantized:
    """Rows of codes int8 and of scales fp32, one for each 32."""

    codes: Buffer
    scale: Buffer

    def part(self, first: int, rows: int) -> "Quantized":
        """Some of the rows."""
        return Quantized(self.codes.part(first, rows), self.scale.part(first, rows))


class Dense:
    """Of one device; results are buffers by name, valid until the same name is asked for again."""

    def __init__(self, memory: Memory):
        self.device: Device = memory.device
        self.few, self.many = Work(memory, FEW), Work(memory, TILE)
        self.assembly = assembly(self.device.gpu)
        self._memory = memory
        self._ones: Block | None = None
        self._tilings: dict[int, tuple[int, Block, Block]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of results."""
        return self.few.nbytes + self.many.nbytes

    def work(self, rows: int) -> Work:
        """Where results of so many rows are."""
        return self.few if rows <= FEW else self.many

    def take(self, name: str, rows: int, width: int, dtype: type = np.float32) -> Buffer:
        """Memory for a result."""
        return self.work(rows).take(name, rows, width, dtype)

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: float, warps: int = 4, stages: int = 1, **c: Any):
        """A kernel with its constants."""
        self.device.launch(kernel, grid, arguments, c, warps, stages)

    def values(self, array: Buffer) -> np.ndarray:
        """A copy (rows, width) on the host, after all that was launched."""
        with self._memory.lock:
            raw = self.device.read(array.at, array.rows * array.row_bytes)
        return raw.view(array.dtype).reshape(array.rows, array.width)

    def said(self, name: str, array: np.ndarray) -> int:
        """Address of a copy that the host made for the launches that come."""
        buffer = self.many.take(name, len(array), array[0].size, array.dtype.type)
        self.device.write(buffer.at, array)
        return buffer.at

    def ones(self, n: int) -> int:
        """Address of n ones, fp32."""
        if self._ones is None or self._ones.n_bytes < 4 * n:
            self._ones = self._memory.put(np.ones(n, np.float32))
        return self._ones.at

    def quantize(self, name: str, x: Buffer) -> Quantized:
        groups = x.rows * x.width // GROUP
        codes = self.take(name + " codes", x.rows, x.width, np.int8)
        scale = self.take(name + " scale", x.rows, x.width // GROUP)
        self.launch(quantize.quantize, (blocks(groups, 32),), x.at, codes.at, scale.at, groups, BLOCK=32)
        return Quantized(codes, scale)

    def linear(self, name: str, w: "DeviceWeight | Nf4", x: Buffer, q: Quantized | None = None) -> Buffer:
        """x (n, in) -> (n, out). `q`: x quantized, if that is done."""
        return self.linear_to(self.take(name, x.rows, w.rows), w, x, q)

    def linear_to(self, y: Buffer, w: "DeviceWeight | Nf4", x: Buffer, q: Quantized | None = None) -> Buffer:
        """The same, to y (n, out)."""
        if not isinstance(w, DeviceWeight):
            return w.multiply(self.device, x, y)
        if not w.quantized:
            self._plain(y, w, x, 1)
            return y
        q = q or self.quantize("inputs", x)
        n, inputs = x.rows, (q.codes.at, q.scale.at)
        if n > FEW:
            sizes = {"K": w.cols, "TOKENS": TILE, "ROWS": TILE, "FORMAT": w.form, "ASM": self.assembly}
            grid = blocks(n, TILE), blocks(w.rows, TILE)
            self.launch(gemm.gemm, grid, w.codes, w.scale, *inputs, y.at, w.rows, n, warps=8, stages=2, **sizes)
            return y
        grid, kernel = (blocks(w.rows, ROWS), n), GEMV[w.form]
        self.launch(kernel, grid, w.codes, w.scale, *inputs, y.at, w.rows, K=w.cols, ROWS=ROWS, ASM=self.assembly)
        return y

    def _plain(self, y: Buffer, w: DeviceWeight, x: Buffer, groups: int) -> None:
        width, tokens = w.rows // groups, 1 if x.rows <= FEW else 4
        grid = blocks(width, 4), groups, blocks(x.rows, tokens)
        self.launch(PLAIN[w.form], grid, w.codes, x.at, y.at, width, x.rows, K=w.cols, N=tokens, ROWS=4)

    def grouped(self, name: str, w: "DeviceWeight | GroupedWeight | Nf4", groups: int, x: Buffer) -> Buffer:
        """x (n, groups * in) -> (n, out): outputs fall into groups, each sees its part of x."""
        if isinstance(w, DeviceWeight):
            y = self.take(name, x.rows, w.rows)
            self._plain(y, w, x, groups)
            return y
        if not isinstance(w, GroupedWeight):
            return w.multiply(self.device, x, self.take(name, x.rows, w.rows))
        q, n = self.quantize("inputs", x), x.rows
        y = self.take(name, n, groups * w.rows)
        inputs = q.codes.at, q.scale.at
        slots: Constants = {"SLOT": w.slot_bytes}
        if n <= FEW:  # pairs of rows and groups, as if they were experts
            rows = dividing(w.rows)
            sizes: Constants = {
                "K": w.cols,
                "N": w.rows,
                "W2": 0,
                "W2_SCALE": w.scale_place,
                "W2_FORMAT": w.form,
                "ROWS": rows,
            }
            grid = n * groups, w.rows // rows
            self.launch(experts.down, grid, w.at, w.slots, w.pairs, *inputs, y.at, ASM=self.assembly, **sizes, **slots)
            return y
        tiles, order = self._tiling(blocks(n, TILE), groups)
        sizes = {"K": w.cols, "N": w.rows, "SHARE": 1, "W": 0, "W_SCALE": w.scale_place, "FORMAT": w.form}
        grid, tile = (
            (blocks(n, TILE) * groups, blocks(w.rows, TILE)),
            {"TOKENS": TILE, "ROWS": TILE, "ASM": self.assembly},
        )
        arguments = w.at, tiles, order, *inputs, y.at
        self.launch(gemm.gemm_experts, grid, *arguments, warps=8, stages=2, **sizes, **slots, **tile)
        return y

    def _tiling(self, n: int, groups: int) -> tuple[int, int]:
        """Addresses of n * groups whole tiles of pairs (row * groups + group), as gemm_experts wants them. Rows behind
        the last one are multiplied too: results have room for whole tiles (Work)."""
        have, tiles, order = self._tilings.get(groups, (0, None, None))
        if have < n:
            tile = np.arange(n * groups)
            told = np.stack((tile % groups, tile * TILE, np.full_like(tile, TILE)), 1).astype(np.int32)
            pairs = (tile[:, None] // groups * TILE + np.arange(TILE)) * groups + tile[:, None] % groups
            tiles, order = self._memory.put(told), self._memory.put(pairs.astype(np.int32))
            self._tilings[groups] = n, tiles, order
        assert tiles is not None and order is not None
        return tiles.at, order.at
