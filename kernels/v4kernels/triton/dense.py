"""Launches of linear layers: GEMV for few rows, matrix units for more, to the same bits.

Inputs of a quantized weight are quantized first, once for all layers that read them: by `quantize`, unless what made
them did it too. Layers of few rows that read the same are one launch.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from v4kernels.formats import GROUP
from v4kernels.triton import fan, fp32, gemm, linear, quantize
from v4kernels.triton.device import Device
from v4kernels.triton.launch import assembly
from v4kernels.triton.memory import Back, Block, Buffer, Later, Memory, Quantized, Work, made
from v4kernels.triton.weights import DeviceWeight, GroupedWeight

if TYPE_CHECKING:
    from v4kernels.triton.nf4 import Nf4

FEW = 8  # rows up to which a step is few: its results have memory for good, so that it can be recorded
TILE = 64  # rows and outputs of a program with matrix units
ROWS = 32  # outputs of a program without
Constants = dict[str, Any]

GEMV = {"int8": linear.linear_int8, "fp4": linear.linear_fp4, "int4": linear.linear_int4}
GEMV |= {"q3": linear.linear_q3, "q2": linear.linear_q2}
PLAIN = {"bf16": fp32.linear_bf16, "f32": fp32.linear_f32}


def blocks(n: int, size: int) -> int:
    return -(-n // size)


def dividing(n: int) -> int:
    """The largest power of two up to ROWS that divides n."""
    return min(ROWS, n & -n)


def power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()


class Dense:
    """Of one device; results are buffers by name, valid until the same name is asked for again."""

    def __init__(self, memory: Memory):
        self.device: Device = memory.device
        self.few, self.many = Work(memory, FEW), Work(memory, TILE)
        self.assembly = assembly(self.device.gpu)
        self._memory = memory
        self._ones: Block | None = None
        self._tilings: dict[int, tuple[int, Block, Block]] = {}
        self._fans: dict[tuple[tuple[int, int], ...], tuple[Block, int]] = {}

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
            array = made(array)
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

    def room_for(self, name: str, rows: int, width: int) -> Quantized:
        """Memory for a result quantized."""
        codes = self.take(name + " codes", rows, width, np.int8)
        return Quantized(codes, self.take(name + " scale", rows, width // GROUP))

    def quantize(self, name: str, x: Buffer) -> Quantized:
        """x quantized, now if it is not yet."""
        if x.quantized is not None:
            return x.quantized
        q, groups = self.room_for(name, x.rows, x.width), x.rows * x.width // GROUP
        self.launch(quantize.quantize, (blocks(groups, 32),), x.at, q.codes.at, q.scale.at, groups, BLOCK=32)
        return q

    def linear(self, name: str, w: "DeviceWeight | Nf4", x: Buffer) -> Buffer:
        """x (n, in) -> (n, out)."""
        return self.linear_to(self.take(name, x.rows, w.rows), w, x)

    def linears(self, named: "Sequence[tuple[str, DeviceWeight | Nf4]]", x: Buffer) -> list[Buffer]:
        """The same of several layers."""
        results = [self.take(name, x.rows, w.rows) for name, w in named]
        together = []
        for (_, w), y in zip(named, results):
            if x.rows <= FEW and isinstance(w, DeviceWeight):
                together.append((w, y))
            else:
                self.linear_to(y, w, x)
        if together:
            self._fan(together, x)
        return results

    def _fan(self, layers: list[tuple[DeviceWeight, Buffer]], x: Buffer) -> None:
        """Results of few rows lie where they always do: so does the table of them."""
        name = tuple((w.codes, y.at) for w, y in layers)
        if name not in self._fans:
            self._fans[name] = self._fan_table(layers)
        (table, programs), forms = self._fans[name], {w.form for w, _ in layers}
        q = self.quantize("inputs", x) if any(w.quantized for w, _ in layers) else None
        inputs = (x.at, q.codes.at, q.scale.at) if q else (x.at, x.at, x.at)
        sizes: Constants = {form.upper(): form in forms for form in fan.FORMS}
        sizes |= {"PARTS": len(layers), "K": x.width, "ASM": self.assembly}
        self.launch(fan.fan, (programs, x.rows), table.at, *inputs, **sizes)

    def _fan_table(self, layers: list[tuple[DeviceWeight, Buffer]]) -> tuple[Block, int]:
        """See fan.py; and how many programs there are."""
        table, programs = np.zeros((len(layers), fan.LINE), np.int64), 0
        for line, (w, y) in zip(table, layers):
            line[: fan.FORM.value + 1] = programs, w.codes, w.scale, y.at, w.rows, 1 << fan.FORMS.index(w.form)
            programs += blocks(w.rows, fan.TILE.value if w.quantized else fan.PLAIN_TILE.value)
        return self._memory.put(table), programs

    def product(self, name: str, w: "DeviceWeight | Nf4", x: Buffer) -> Buffer:
        """x (n, in) -> (n, out) that is a sublayer's result."""
        y = self.take(name, x.rows, w.rows)
        if x.rows > FEW or not isinstance(w, DeviceWeight) or not w.quantized:
            return self.linear_to(y, w, x)

        def compute(back: Back | None) -> None:
            if back is None:
                self.linear_to(y, w, x)
                return
            q, grid = self.quantize("inputs", x), (blocks(w.rows, ROWS), x.rows)
            sizes: Constants = {
                "K": w.cols,
                "N": w.rows,
                "S": back.count,
                "ROWS": ROWS,
                "FORMAT": w.form,
                "ASM": self.assembly,
            }
            arguments = w.codes, w.scale, q.codes.at, q.scale.at, back.mix, back.streams
            self.launch(linear.linear_put_back, grid, *arguments, **sizes)

        return Later(y.at, y.rows, y.width, compute=compute)

    def linear_to(self, y: Buffer, w: "DeviceWeight | Nf4", x: Buffer) -> Buffer:
        """The same, to y (n, out)."""
        if not isinstance(w, DeviceWeight):
            return w.multiply(self.device, x, y)
        if not w.quantized:
            self._plain(y, w, x, 1)
            return y
        q, n = self.quantize("inputs", x), x.rows
        inputs = q.codes.at, q.scale.at
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
        sizes: Constants = {"K": w.cols, "N": w.rows, "SLOT": w.slot_bytes, "FORMAT": w.form, "ASM": self.assembly}
        if n <= FEW:
            rows = dividing(w.rows)
            of_y = self.room_for(name, n, y.width) if rows % GROUP == 0 else None
            to = (y.at, of_y.codes.at, of_y.scale.at) if of_y else (y.at, y.at, y.at)
            sizes |= {"SCALE": w.scale_place, "ROWS": rows, "QUANTIZED": of_y is not None}
            self.launch(linear.linear_grouped, (n * groups, w.rows // rows), w.at, *inputs, *to, groups, **sizes)
            return replace(y, quantized=of_y)
        tiles, order = self._tiling(blocks(n, TILE), groups)
        sizes |= {"SHARE": 1, "W": 0, "W_SCALE": w.scale_place, "TOKENS": TILE, "ROWS": TILE}
        grid, arguments = (blocks(n, TILE) * groups, blocks(w.rows, TILE)), (w.at, tiles, order, *inputs, y.at)
        self.launch(gemm.gemm_experts, grid, *arguments, warps=8, stages=2, **sizes)
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
