"""The reference ops as nano's training uses them."""

import random

import torch
from v4kernels.reference import ReferenceOps
from v4kernels.reference.forward import TorchTree

BIAS_RATE = 1e-3  # noaux_tc: how far a router bias moves per step towards balance


class TrainingOps(ReferenceOps):
    """Reference ops made affordable to train through; also counts how often each expert is chosen.

    The memory-bound ops (Sinkhorn above all: 20 iterations on 4x4 matrices) are compiled into single loops, once,
    since every batch has the same number of tokens.
    """

    def __init__(self, tree: TorchTree, batch_tokens: int):
        super().__init__(tree)
        self.batch_tokens = batch_tokens
        self.loads: list[tuple[torch.Tensor, torch.Tensor]] = []
        for op in ("hc_pre", "hc_post", "_batch_norm"):
            setattr(self, op, torch.compile(getattr(self, op), dynamic=False))

    def begin(self, ids: torch.Tensor, filler: torch.Tensor, rng: random.Random) -> None:
        """Called before each timeline: its ids and its mask of filler tokens, (N,) each."""

    def own_loss(self) -> torch.Tensor | float:
        """What the ops add to the loss of the timeline."""
        return 0.0

    def rms_norm(self, x, weight, eps):
        if weight is None or len(x) != self.batch_tokens:
            return super().rms_norm(x, weight, eps)
        return self._batch_norm(x, weight, eps)

    def _batch_norm(self, x, weight, eps):
        return ReferenceOps.rms_norm(self, x, weight, eps)

    def hc_post(self, out, streams, post, comb):
        return (comb[..., None] * streams[:, :, None]).sum(1) + post[..., None] * out[:, None]

    def _weighted_sum(self, streams, weights):
        return (weights[..., None] * streams).sum(1)

    def scored(self, x, gate, top_k, scale, bias=None, chosen=None):
        ids, weights, scores = super().scored(x, gate, top_k, scale, bias, chosen)
        if bias is not None:
            self.loads.append((bias, torch.bincount(ids.flatten(), minlength=len(bias))))
        return ids, weights, scores

    def balance(self) -> None:
        """Nudge every router bias against its load and forget the counts."""
        for bias, load in self.loads:
            bias += BIAS_RATE * torch.sign(load.float().mean() - load.float())
        self.loads.clear()
