"""Where a model's weights come from: a store or an official checkpoint, for either kind of op table.

DenseSource gives the reference fp32 torch matrices, dequantized at load or at every use. PackedSource gives the
kernels the addresses of codes in the mapped files; what an official checkpoint does not hold in a format they read is
quantized on the way in as recipe `native` would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from v4kernels import native
from v4kernels.cpu import PackedWeight

from v4cli.errors import ModelError
from v4cli.weights.checkpoint import Checkpoint
from v4cli.weights.recipe import GROUP, format_of
from v4cli.weights.store import Store

if TYPE_CHECKING:
    from torch import Tensor
    from v4kernels.reference.equations import Weight

Model = Store | Checkpoint
KINDS = {"F8_E4M3": "fp8", "I8": "fp4", "BF16": "bf16", "F32": "f32"}
PLAIN = {"BF16": "bf16", "F32": "f32"}


class DenseSource:
    """fp32 torch tensors."""

    def __init__(self, checkpoint: Model, lazy: bool):
        """`lazy`: dequantize at every use, which is slow but needs no memory."""
        self.checkpoint = checkpoint
        self.lazy = lazy

    def weight(self, name: str) -> Weight:
        from v4kernels.reference import LazyWeight, Weight

        kind = KINDS[self.checkpoint.official_dtype(name)]
        if self.lazy:
            return LazyWeight(kind, lambda: self.checkpoint.dense(name))
        return Weight(kind, self.checkpoint.dense(name))

    def vector(self, name: str) -> Tensor:
        tensor = self.checkpoint.tensor(name)
        return tensor.clone() if self.checkpoint.spec(name).dtype == "I64" else tensor.float()


class PackedSource:
    """Matrices as they lie in the mapped files, vectors as numpy arrays."""

    def __init__(self, checkpoint: Model, check: bool):
        """`check`: read all scales and refuse those that are not finite; codes cannot be but finite."""
        self.checkpoint = checkpoint
        self.check = check

    def weight(self, name: str) -> PackedWeight:
        form = self._form(name)
        if form is None:
            return self._quantized(name)
        codes = self.checkpoint.raw(name)
        rows, width = self.checkpoint.spec(name).shape
        if form in PLAIN.values():
            if self.check:
                self._finite(name, codes)
            return PackedWeight(codes.ctypes.data, None, rows, width, form, (codes,))
        scale_name = name.removesuffix("weight") + "scale"
        scale = self.checkpoint.raw(scale_name)
        if self.check:
            self._finite(scale_name, scale)
        cols = width * (1 if form == "int8" else 2)
        return PackedWeight(codes.ctypes.data, scale.ctypes.data, rows, cols, form, (codes, scale))

    def _form(self, name: str) -> str | None:
        """Format of native.FORMATS the matrix is stored in; None if the kernels do not read it, or not as the recipe
        means it."""
        stored = getattr(self.checkpoint, "formats", {}).get(name)
        if stored in native.FORMATS:
            return stored
        dtype = self.checkpoint.official_dtype(name)
        if dtype == "I8":
            return "fp4"
        wanted = format_of("native", name, dtype, self.checkpoint.spec(name).shape[1])
        if wanted == "keep" and dtype not in PLAIN:
            raise ModelError(
                f"{name}: rows of {self.checkpoint.spec(name).shape[1]} values suit no kernel",
                "--backend reference computes it",
            )
        return PLAIN[dtype] if wanted == "keep" else None

    def _quantized(self, name: str) -> PackedWeight:
        """An official FP8 or BF16 matrix in INT8."""
        spec, block_scale = self.checkpoint.spec(name), None
        values, (rows, cols) = self.checkpoint.raw(name), spec.shape
        if spec.dtype == "F8_E4M3":
            block_scale = self.checkpoint.raw(name.removesuffix("weight") + "scale")
        codes, scale = np.empty((rows, cols), np.int8), np.empty((rows, cols // GROUP), np.uint16)
        scale_at = None if block_scale is None else block_scale.ctypes.data
        call = native.library().v4k_encode_int8
        try:
            native.checked(call(values.ctypes.data, scale_at, rows, cols, codes.ctypes.data, scale.ctypes.data))
        except FloatingPointError:
            raise self._not_finite(name) from None
        return PackedWeight.of("int8", codes, scale)

    def vector(self, name: str) -> np.ndarray:
        dtype, shape = self.checkpoint.spec(name).dtype, self.checkpoint.spec(name).shape
        raw = self.checkpoint.raw(name)
        if self.check and dtype != "I64":
            self._finite(name, raw)
        if dtype == "I64":
            return raw.view(np.int64).reshape(shape).copy()
        if dtype == "BF16":
            return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        return raw.view(np.float32).reshape(shape).copy()

    def _finite(self, name: str, raw: np.ndarray) -> None:
        dtype = self.checkpoint.spec(name).dtype
        if dtype == "F8_E8M0":
            bad = (raw == 0xFF).any()
        elif dtype == "BF16":
            bad = ((raw.view(np.uint16) & 0x7F80) == 0x7F80).any()
        else:
            bad = not np.isfinite(raw.view(np.float32)).all()
        if bad:
            raise self._not_finite(name)

    def _not_finite(self, name: str) -> ModelError:
        return ModelError(f"{self.checkpoint.places[name].path}: tensor {name} holds values that are not finite")
