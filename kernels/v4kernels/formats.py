"""Every number format of weights, once. Whatever names, sizes, lays out, converts, checks or decodes one asks this
table; kernels/cpu/formats.h says the same of those that the kernels read.

A matrix (out, in) is stored as `X.weight`, its codes, and, if it is quantized, `X.scale`: one scale per `block_rows`
rows and `group` inputs. Packed nibbles: the low one is the even input. A new format is an entry here, with its two
functions in v4cli/store/formats.py, and one in the C++ table with the code that it asks for.

q3 and q2 have levels of 3 and 2 bits. A weight is row scale * multiplier * level, the latter two small integers, so
that products with int8 inputs are integers up to the last step, as those of all formats are. A row of scales is the
row's own, bf16, then a byte per 32 inputs: the multiplier of inputs 0 to 15 in the low nibble, that of 16 to 31 in the
high one. Multipliers have a sign because levels reach further on one side than on the other. Every four inputs, codes
c0 .. c3, are together:

  q2  one byte, c0 | c1 << 2 | c2 << 4 | c3 << 6.
  q3  three nibbles with the bits of c3 in their bits 3, 2 and 1: n0 has c0 in bits 0 1 2, n1 has c1 in bits 0 1 3 and
      n2 c2 in bits 0 2 3. A row is first the bytes n0 | n1 << 4, 8 per group, then, 4 per group, n2 of fours 0 to 3 in
      the low nibbles and of fours 4 to 7 in the high ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

GROUP = 32  # inputs per scale of activations, and of all weights that the kernels multiply with them


@dataclass(frozen=True)
class Dtype:
    """Numbers as safetensors name them: bytes of one, and whether a piece of stored bytes holds finite ones only."""

    n_bytes: int
    finite: Callable[[np.ndarray], bool] | None = None  # takes uint8; None: all are


def _finite_fp32(raw: np.ndarray) -> bool:
    return bool((raw.view("<u4") & 0x7F800000 != 0x7F800000).all())


DTYPES = {
    "F8_E4M3": Dtype(1, lambda raw: bool((raw & 0x7F != 0x7F).all())),
    "F8_E8M0": Dtype(1, lambda raw: bool((raw != 0xFF).all())),
    "I8": Dtype(1),
    "U8": Dtype(1),
    "BF16": Dtype(2, lambda raw: bool((raw.view("<u2") & 0x7F80 != 0x7F80).all())),
    "F32": Dtype(4, _finite_fp32),
    "I64": Dtype(8),
}


def finite(dtype: str, raw: np.ndarray) -> bool:
    """Whether every number of a piece of stored bytes (uint8) is finite; integers are."""
    test = DTYPES[dtype].finite
    return test is None or test(raw)


@dataclass(frozen=True)
class Format:
    """One format of matrices."""

    name: str
    id: int  # in v4k.h; 0: no kernel reads it
    codes: str  # dtype
    code_bytes: int  # of a group
    scale: str = ""  # dtype; empty: not quantized
    group: int = GROUP  # inputs per scale
    block_rows: int = 1  # rows per scale; where there are several, the last block of rows and inputs may be smaller
    official: bool = False  # the official checkpoint has it
    row_scale: int = 0  # bytes of a scale of the whole row, in front of those of its groups

    @property
    def bits(self) -> float:
        """Of one value, its share of the scale included, but not of the row's."""
        scale = DTYPES[self.scale].n_bytes / self.block_rows if self.scale else 0.0
        return 8 * (self.code_bytes + scale) / self.group

    @property
    def packed(self) -> bool:
        """Whether the kernels multiply its codes with quantized inputs: what a matrix may be converted to."""
        return self.id > 0 and bool(self.scale)

    def fits(self, cols: int) -> bool:
        """Whether rows of `cols` inputs can have it."""
        return not self.scale or self.block_rows > 1 or cols % self.group == 0

    def cols(self, width: int) -> int:
        """Inputs of a row of `width` codes as they are stored."""
        return width * DTYPES[self.codes].n_bytes * self.group // self.code_bytes

    def tensors(self, rows: int, cols: int) -> dict[str, tuple[str, tuple[int, int]]]:
        """dtype and shape of what a matrix (rows, cols) is stored as: `weight`, and `scale` if it is quantized."""
        width = cols * self.code_bytes // self.group // DTYPES[self.codes].n_bytes
        stored = {"weight": (self.codes, (rows, width))}
        if self.scale:
            stored["scale"] = self.scale, (-(-rows // self.block_rows), self.row_scale + -(-cols // self.group))
        return stored

    def n_bytes(self, rows: int, cols: int) -> tuple[int, int]:
        """Of the codes of a matrix (rows, cols), and of its scales."""
        sizes = [DTYPES[dtype].n_bytes * shape[0] * shape[1] for dtype, shape in self.tensors(rows, cols).values()]
        return sizes[0], sum(sizes[1:])

    def finite_scales(self, raw: np.ndarray, rows: int) -> bool:
        """Whether the scales of so many rows, or blocks of them, are finite, from their stored bytes (uint8)."""
        if self.row_scale:
            return finite("BF16", raw.reshape(rows, -1)[:, : self.row_scale].ravel())
        return finite(self.scale, raw)


FORMATS = {
    form.name: form
    for form in (
        Format("fp8", 0, "F8_E4M3", 128, "F8_E8M0", group=128, block_rows=128, official=True),
        Format("fp4", 1, "I8", 16, "F8_E8M0", official=True),
        Format("int8", 2, "I8", 32, "BF16"),
        Format("int4", 3, "U8", 16, "BF16"),
        Format("bf16", 4, "BF16", 64, official=True),
        Format("f32", 5, "F32", 128, official=True),
        Format("q3", 6, "U8", 12, "U8", row_scale=2),
        Format("q2", 7, "U8", 8, "U8", row_scale=2),
    )
}
OFFICIAL = {form.codes: form for form in FORMATS.values() if form.official}  # by dtype of the codes


LEVELS = {"q3": (-10, -6, -4, -2, 0, 2, 4, 7), "q2": (-10, -3, 2, 7)}  # by code
MULTIPLIERS = (2, 3, 4, 5, 6, 8, 10, 12, -2, -3, -4, -5, -6, -8, -10, -12)  # by nibble; times a level an int8
