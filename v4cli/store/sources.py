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
from v4kernels.formats import GROUP, OFFICIAL

from v4cli.errors import ModelError
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.recipe import EXPERTS, RECIPES, format_of
from v4cli.store.store import Store

if TYPE_CHECKING:
    from torch import Tensor
    from v4kernels.formats import Format
    from v4kernels.reference.equations import Weight

Model = Store | Checkpoint


class DenseSource:
    """fp32 torch tensors."""

    def __init__(self, checkpoint: Model, lazy: bool):
        """`lazy`: dequantize at every use, which is slow but needs no memory."""
        self.checkpoint = checkpoint
        self.lazy = lazy

    def weight(self, name: str) -> Weight:
        from v4kernels.reference import LazyWeight, Weight

        kind = OFFICIAL[self.checkpoint.official_dtype(name)].name
        if self.lazy:
            return LazyWeight(kind, lambda: self.checkpoint.dense(name))
        return Weight(kind, self.checkpoint.dense(name))

    def vector(self, name: str) -> Tensor:
        if self.checkpoint.spec(name).dtype == "I64":
            import torch

            return torch.from_numpy(self.checkpoint.ids(name).copy())
        return self.checkpoint.finite(name, self.checkpoint.tensor(name).float())


class PackedSource:
    """Matrices as they lie in the mapped files, vectors as numpy arrays."""

    def __init__(self, checkpoint: Model, check: bool):
        """`check`: read the scales of routed experts and the embedding too, and refuse what is not finite."""
        self.checkpoint = checkpoint
        self.check = check

    def weight(self, name: str) -> PackedWeight:
        stored = self.checkpoint.form(name)
        if self._wanted(name) is not stored:
            return self._quantized(name)
        codes = self.checkpoint.raw(name)
        rows, width = self.checkpoint.spec(name).shape
        if not stored.scale:
            self._check(name)
            return PackedWeight(codes.ctypes.data, None, rows, width, stored.name, (codes,))
        scale_name = name.removesuffix("weight") + "scale"
        scale = self.checkpoint.raw(scale_name)
        self._check(scale_name)
        owners = codes, scale
        return PackedWeight(codes.ctypes.data, scale.ctypes.data, rows, stored.cols(width), stored.name, owners)

    def _wanted(self, name: str) -> Format:
        """Format the kernels get: that of a store as it is if they read it, else what recipe `native` would make."""
        stored, spec = self.checkpoint.form(name), self.checkpoint.spec(name)
        if stored.packed or (stored.id and isinstance(self.checkpoint, Store)):
            return stored
        wanted = format_of(RECIPES["native"].rules, name, spec)
        if not wanted.id:
            raise ModelError(
                f"{name}: rows of {spec.shape[1]} values suit no kernel", "--backend reference computes it"
            )
        return wanted

    def _quantized(self, name: str) -> PackedWeight:
        """An official FP8 or BF16 matrix in INT8."""
        spec, block_scale = self.checkpoint.spec(name), None
        values, (rows, cols) = self.checkpoint.raw(name), spec.shape
        if self.checkpoint.form(name).scale:
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
        if dtype == "I64":
            return self.checkpoint.ids(name).copy()
        self._check(name)
        raw = self.checkpoint.raw(name)
        if dtype == "BF16":
            return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        return raw.view(np.float32).reshape(shape).copy()

    def _check(self, name: str) -> None:
        """ModelError for values that are not finite. What a token reads little of is read only if there is room."""
        if not self.check and (EXPERTS in name or name.startswith("embed.")):
            return
        if not self.checkpoint.all_finite(name):
            raise self._not_finite(name)

    def _not_finite(self, name: str) -> ModelError:
        return ModelError(f"{self.checkpoint.places[name].path}: tensor {name} holds values that are not finite")
