"""Every number format of weights, once. Whatever names, sizes, lays out, converts, checks or decodes one asks this
table; kernels/cpu/formats.h says the same of those that the kernels read.

A matrix (out, in) is stored as `X.weight`, its codes, and, if it is quantized, `X.scale`: one scale per `block_rows`
rows and `group` inputs. Packed nibbles: the low one is the even input. A new format is an entry here, with its two
functions in v4cli/store/formats.py, and one in the C++ table with the code that it asks for.
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

    @property
    def bits(self) -> float:
        """Of one value, its share of the scale included."""
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
            stored["scale"] = self.scale, (-(-rows // self.block_rows), -(-cols // self.group))
        return stored


FORMATS = {
    form.name: form
    for form in (
        Format("fp8", 0, "F8_E4M3", 128, "F8_E8M0", group=128, block_rows=128, official=True),
        Format("fp4", 1, "I8", 16, "F8_E8M0", official=True),
        Format("int8", 2, "I8", 32, "BF16"),
        Format("int4", 3, "U8", 16, "BF16"),
        Format("bf16", 4, "BF16", 64, official=True),
        Format("f32", 5, "F32", 128, official=True),
    )
}
OFFICIAL = {form.codes: form for form in FORMATS.values() if form.official}  # by dtype of the codes
