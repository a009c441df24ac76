"""The reference ops as nano's training uses them."""

import random

import torch
from v4kernels.reference import ReferenceOps
from v4kernels.reference.forward import TorchTree

BIAS_RATE = 1e-3  # noaux_tc: how far a router bias moves per step towards balance


class TrainingOps(ReferenceOps):
    """Reference ops made affordable to train through; also counts how often each expert is chosen.

    The memory-bound ops (Sinkhorn above all: 20 iterations on 4x4 matrices; rotations) are compiled into single loops,
    once, since every batch has the same number of tokens.
    """

    def __init__(self, tree: TorchTree, batch_tokens: int):
        super().__init__(tree)
        self.batch_tokens = batch_tokens
        self.loads: list[tuple[torch.Tensor, torch.Tensor]] = []
        for op in ("hc_pre", "hc_post", "hc_head", "_batch_norm", "_turned", "_normed_and_turned"):
            setattr(self, op, torch.compile(getattr(self, op), dynamic=False))

    def begin(self, ids: torch.Tensor, filler: torch.Tensor, rng: random.Random) -> None:
        """Called before each timeline: its ids and its mask of filler tokens, (N,) each."""

    def own_loss(self) -> torch.Tensor | float:
        """What the ops add to the loss of the timeline."""
        return 0.0

    def embed(self, batch):
        return super().embed(batch).contiguous()  # else the first sublayer would be compiled for strides of zero

    def queries(self, attn, x, turns):
        if len(x) != self.batch_tokens:
            return super().queries(attn, x, turns)
        qr = self.rms_norm(self.linear(x, attn.wq_a), attn.q_norm, attn.eps)
        q = self.linear(qr, attn.wq_b).unflatten(-1, (-1, attn.head_dim))
        return self._normed_and_turned(q, turns.real, turns.imag, attn.eps), qr

    def rope(self, x, cis, inverse=False):
        if x.dim() != 3 or len(x) != self.batch_tokens:
            return super().rope(x, cis, inverse)
        return self._turned(x, cis.real, -cis.imag if inverse else cis.imag)

    def _turned(self, x, cos, sin):
        """Rotate adjacent pairs of the last R dims of x (N, H, d) by angles whose cosines and sines are (N, R/2)."""
        cos, sin = cos[:, None], sin[:, None]
        plain, even, odd = x[..., : -2 * cos.shape[-1]], *x[..., -2 * cos.shape[-1] :].unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
        return torch.cat((plain, turned), -1)

    def _normed_and_turned(self, x, cos, sin, eps):
        return TrainingOps._turned(self, ReferenceOps.rms_norm(self, x, None, eps), cos, sin)

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
