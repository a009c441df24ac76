"""Draft blocks over the kernel library: what of spec 3.11 is no op of a layer. What is of a few rows is done by numpy:
bits are promised of no draft."""

import ctypes

import numpy as np

from v4kernels import native
from v4kernels.cpu.bound import PackedWeight, pointer
from v4kernels.cpu.ops import Buffer, CpuBatch, CpuOps
from v4kernels.tree import Dspark, Mtp


class CpuDrafts(CpuOps):
    """The op table over a draft model's blocks."""

    def __init__(self, draft: Dspark[PackedWeight, np.ndarray] | Mtp[PackedWeight, np.ndarray]):
        """ValueError for sizes that the kernels do not take."""
        super().__init__(draft.tree)
        self.draft = draft
        self._joined, self._mtp = Buffer(), Buffer()

    def main_input(self, features: np.ndarray) -> Buffer:
        assert isinstance(self.draft, Dspark)
        x = self._linear(features, self.draft.main_proj)
        return Buffer.of(_rms_norm(x, self.draft.main_norm, self.draft.eps))

    def mtp_streams(self, features: np.ndarray, batch: CpuBatch) -> Buffer:
        assert isinstance(self.draft, Mtp)
        n, streams, dim = len(features), self.hc_head.streams, self.hc_head.dim
        embedded = self._looked_up(self.tree.embed, batch.ids.array()[:, 0])
        embedded = self._linear(_rms_norm(embedded, self.draft.enorm, self.draft.eps), self.draft.e_proj)
        before = _rms_norm(features.reshape(n * streams, dim), self.draft.hnorm, self.draft.eps)
        out = self._mtp.take(n, streams * dim)
        out.array().reshape(n, streams, dim)[:] = self._linear(before, self.draft.h_proj).reshape(n, streams, dim)
        out.array().reshape(n, streams, dim)[:] += embedded[:, None]
        return out

    def joined(self, first: Buffer, second: Buffer) -> Buffer:
        out = self._joined.take(first.rows + second.rows, second.width)
        out.array()[: first.rows], out.array()[first.rows :] = first.array(), second.array()
        return out

    def last(self, x: Buffer, n: int) -> Buffer:
        return Buffer.of(x.array()[x.rows - n :])

    def markov(self, token: int) -> np.ndarray:
        assert isinstance(self.draft, Dspark)
        return self._linear(self._looked_up(self.draft.markov_in, np.array([token])), self.draft.markov_out)[0]

    def collapsed(self, streams: Buffer) -> np.ndarray:
        head, x = self.tree.hc_head, streams.array()
        rho = 1 / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + head.norm_eps)
        weights = 1 / (1 + np.exp(-(x @ head.fn.T * rho * head.scale + head.base))) + head.eps  # (N, S)
        return np.einsum("ns,nsd->nd", weights, x.reshape(len(x), head.streams, -1)).astype(np.float32)

    def confidence(self, collapsed: np.ndarray, token: int) -> float:
        assert isinstance(self.draft, Dspark)
        before = self._looked_up(self.draft.markov_in, np.array([token]))[0]
        return float(np.concatenate([collapsed, before]) @ self.draft.confidence.ravel())

    def _linear(self, x: np.ndarray, w: PackedWeight) -> np.ndarray:
        """x (n, in) fp32 -> (n, out)."""
        x, out = np.ascontiguousarray(x, np.float32), np.empty((len(x), w.matrix.rows), np.float32)
        native.checked(self.library.v4k_linear(ctypes.addressof(w.matrix), 1, pointer(x), len(x), pointer(out)))
        return out

    def _looked_up(self, table: PackedWeight, ids: np.ndarray) -> np.ndarray:
        """Rows of a table (V, n): (len(ids), n) fp32."""
        ids, out = np.ascontiguousarray(ids, np.int64), np.empty((len(ids), table.matrix.cols), np.float32)
        call = self.library.v4k_embed
        native.checked(call(ctypes.addressof(table.matrix), pointer(ids), len(ids), 1, pointer(out)))
        return out


def _rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x (n, D) fp32."""
    return (x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + eps) * weight).astype(np.float32)
