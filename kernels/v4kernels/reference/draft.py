"""Draft blocks in torch: what of spec 3.11 is no op of a layer."""

import numpy as np
import torch
from torch import Tensor

from v4kernels.reference.equations import Weight
from v4kernels.reference.forward import ReferenceOps, TorchBatch
from v4kernels.tree import Dspark, Mtp


class ReferenceDrafts(ReferenceOps):
    """The op table over a draft model's blocks."""

    def __init__(self, draft: Dspark[Weight, Tensor] | Mtp[Weight, Tensor], numerics: str = "exact"):
        super().__init__(draft.tree, numerics)
        self.draft = draft

    def main_input(self, features: np.ndarray) -> Tensor:
        assert isinstance(self.draft, Dspark)
        x = self.linear(torch.from_numpy(features).to(self.dtype), self.draft.main_proj)
        return self.rms_norm(x, self.draft.main_norm, self.draft.eps)

    def mtp_streams(self, features: np.ndarray, batch: TorchBatch) -> Tensor:
        assert isinstance(self.draft, Mtp)
        streams = torch.from_numpy(features).to(self.dtype).unflatten(1, (self.tree.hc_head.streams, -1))
        embedded = self.rms_norm(self.lookup(batch.ids, self.tree.embed), self.draft.enorm, self.draft.eps)
        before = self.linear(self.rms_norm(streams, self.draft.hnorm, self.draft.eps), self.draft.h_proj)
        return self.linear(embedded, self.draft.e_proj)[:, None] + before

    def joined(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat((first, second))

    def last(self, x: Tensor, n: int) -> Tensor:
        return x[len(x) - n :]

    def _before(self, token: int) -> Tensor:
        """What of a token the heads look at, (rank,)."""
        assert isinstance(self.draft, Dspark)
        return self.lookup(torch.tensor([token]), self.draft.markov_in)[0]

    def markov(self, token: int) -> np.ndarray:
        assert isinstance(self.draft, Dspark)
        return self.linear_fp32(self._before(token), self.draft.markov_out).numpy()

    def collapsed(self, streams: Tensor) -> np.ndarray:
        head = self.tree.hc_head
        return self.hc_head(streams, head.fn, head.base, head.scale, head.norm_eps, head.eps).float().numpy()

    def confidence(self, collapsed: np.ndarray, token: int) -> float:
        assert isinstance(self.draft, Dspark)
        seen = torch.cat((torch.from_numpy(collapsed), self._before(token).float()))
        return float(seen @ self.draft.confidence.flatten())
