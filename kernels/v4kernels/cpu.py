"""CPU backend: linear layers and experts computed from stored codes by the kernel library, the rest by the reference.

One numerics, `int8`: activations are quantized to int8 with one scale per 32 consecutive inputs, codes are multiplied
exactly as stored, sums are fp32 in a fixed order (include/v4k.h). Results do not depend on ISA tier, threads or how
many tokens are computed together. Weights that are not stored codes go through the reference in fp32.
"""

import torch
from torch import Tensor

from v4kernels import native
from v4kernels.reference import ReferenceOps, Weight


class PackedWeight(Weight):
    """A matrix (out, in) as stored: codes and scales of a format of native.FORMATS, described for the kernels."""

    __slots__ = ("_load", "codes", "form", "matrix", "scale")

    def __init__(self, kind: str, codes: Tensor, scale: Tensor, form: str, load):
        """`load` gives the matrix in fp32. The tensors' bytes must stay where they are, as long as this lives."""
        super().__init__(kind)
        self.codes, self.scale, self.form = codes.contiguous(), scale.contiguous(), form
        self.matrix = native.matrix(self.codes, self.scale, form)
        self._load = load

    def dense(self) -> Tensor:
        return self._load()


class CpuOps(ReferenceOps):
    """Op table over the kernel library. Its threads are torch's: whoever calls sets torch.set_num_threads."""

    name = "cpu"
    packed = True

    def __init__(self):
        """ValueError, with the reason, where the library is not available."""
        super().__init__("exact")
        self.numerics = "int8"
        if not native.available():
            raise ValueError(f"the cpu backend is not available: {native.reason()}")
        native.set_threads(torch.get_num_threads())
        self._tables = {}

    def embed(self, ids: Tensor, table: Weight) -> Tensor:
        if not (isinstance(table, PackedWeight) and table.form == "int8"):
            return super().embed(ids, table)
        codes, scale = table.codes[ids].float(), table.scale[ids].float()  # (N, D), (N, D/32)
        return (codes.unflatten(-1, (-1, native.GROUP)) * scale[..., None]).flatten(-2)

    def linear(self, x: Tensor, w: Weight) -> Tensor:
        if not isinstance(w, PackedWeight):
            return super().linear(x, w)
        return native.linear(x.reshape(-1, x.shape[-1]), w.matrix).unflatten(0, x.shape[:-1])

    def linear_fp32(self, x: Tensor, w: Weight) -> Tensor:
        return self.linear(x, w) if isinstance(w, PackedWeight) else super().linear_fp32(x, w)

    def grouped_linear(self, x: Tensor, w: Weight) -> Tensor:
        if not isinstance(w, PackedWeight):
            return super().grouped_linear(x, w)
        return native.linear(x.flatten(1), w.matrix, groups=x.shape[1])

    def experts(self, x: Tensor, ids: Tensor, weights: Tensor, experts, shared, limit: float) -> Tensor:
        table, native_shared = self._described(experts, shared)
        if table is None:
            return super().experts(x, ids, weights, experts, shared, limit)
        if native_shared is None:
            out = self._expert(x, shared, limit, None).float().contiguous()
        else:
            out = torch.zeros(x.shape)
        native.experts(x, ids, weights, table, native_shared, limit, out)
        return out

    def _described(self, experts, shared):
        """Argument structs of one layer, built once: an array or None if not all are packed; one or None."""
        known = self._tables.get(id(experts))
        if known is None:
            described = [_describe(expert) for expert in experts]
            table = None if None in described else (native.Expert * len(described))(*described)
            known = self._tables[id(experts)] = (table, _describe(shared), experts)  # keeps the id taken
        return known[:2]


def _describe(expert) -> native.Expert | None:
    parts = (expert.w1, expert.w3, expert.w2)
    if not all(isinstance(w, PackedWeight) for w in parts) or len({w.form for w in parts}) > 1:
        return None
    return native.Expert(*(w.matrix for w in parts))
