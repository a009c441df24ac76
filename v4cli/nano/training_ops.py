"""The reference ops as nano's training uses them."""

import functools
import random

import torch
from torch import Tensor
from v4kernels.reference import ReferenceOps
from v4kernels.reference.forward import TorchTree

PARTS = 4  # of a timeline: the early ones see fewer entries
BIAS_RATE = 1e-3  # noaux_tc: how far a router bias moves per step towards balance


class TrainingOps(ReferenceOps):
    """Reference ops made affordable to train through; also counts how often each expert is chosen.

    The memory-bound ops (Sinkhorn above all: 20 iterations on 4x4 matrices; rotations; softmax) are compiled into
    single loops, once, since every batch has the same number of tokens.
    """

    def __init__(self, tree: TorchTree, batch_tokens: int):
        super().__init__(tree)
        self.batch_tokens = batch_tokens
        self.loads: list[tuple[torch.Tensor, torch.Tensor]] = []
        for op in ("hc_pre", "hc_post", "hc_head", "_batch_norm", "_turned", "_normed_and_turned"):
            setattr(self, op, torch.compile(getattr(self, op), dynamic=False))
        self._shares = torch.compile(self._shares, dynamic=True)

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

    # -- attention --------------------------------------------------------------------------------------------

    def crowding(self, n_entries: int) -> Tensor:
        """Added to the scores of each entry, (n_entries,): with log(c) it counts c times."""
        return torch.zeros(n_entries)

    def attention(self, q, window, first, entries, visible, selected, sink, window_size):
        """The same, of a whole timeline: N is a multiple of the window's size. Its blocks see themselves, the block
        before and entries; few large products are several times as fast as many small ones."""
        n, _, d = q.shape
        width = window_size
        blocks = torch.cat((window.new_zeros(width, d), window)).view(-1, width, d)
        pairs = torch.cat((blocks[:-1], blocks[1:]), 1)  # (N / width, 2 * width, d)
        hidden = _hidden(n // width, width)
        if entries is None:
            return self._attend_blocks(q, pairs, hidden, sink)
        late = torch.arange(len(entries)) >= visible[:, None]
        later = self.crowding(len(entries)).masked_fill(late, -torch.inf)
        later = later.unflatten(0, (-1, width))  # (N / width, width, n)
        out, per_part = [], max(1, len(pairs) // PARTS)
        for i in range(0, len(pairs), per_part):
            part = slice(i, i + per_part)
            seen = max(1, int(visible[min(n, (i + per_part) * width) - 1]))
            keys = torch.cat((pairs[part], entries[:seen].expand(len(pairs[part]), -1, -1)), 1)
            mask = torch.cat((hidden[part], later[part, :, :seen]), -1)
            out.append(self._attend_blocks(q[i * width : (i + per_part) * width], keys, mask, sink))
        return torch.cat(out)

    def _attend_blocks(self, q: Tensor, keys: Tensor, mask: Tensor, sink: Tensor) -> Tensor:
        """q (b * w, H, d), keys (b, m, d), mask (b, w, m) added to scores -> (b * w, H, d). Heads are rows of one
        product, as they share the keys."""
        _, heads, d = q.shape
        rows = q.reshape(len(keys), -1, d)  # (b, w * H, d)
        scores = torch.matmul(rows * d**-0.5, keys.mT).unflatten(1, (-1, heads))
        return torch.matmul(self._shares(scores, mask, sink).flatten(1, 2), keys).reshape(q.shape)

    def _shares(self, scores: Tensor, mask: Tensor, sink: Tensor) -> Tensor:
        """Softmax of scores (b, w, H, m) + mask (b, w, m), to whose sum the sink (H,) adds."""
        scores, sink = scores + mask[:, :, None], sink[:, None]
        top = torch.maximum(scores.amax(-1, keepdim=True), sink).detach()
        powers = torch.exp(scores - top)
        return powers / (powers.sum(-1, keepdim=True) + torch.exp(sink - top))

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


@functools.cache
def _hidden(n_blocks: int, width: int) -> Tensor:
    """0 where a row of a block sees a key of its two blocks, else -inf: (n_blocks, width, 2 * width)."""
    age = torch.arange(width, 2 * width)[:, None] - torch.arange(2 * width)
    hidden = torch.zeros(n_blocks, width, 2 * width).masked_fill((age < 0) | (age >= width), -torch.inf)
    hidden[0, :, :width] = -torch.inf
    return hidden
