"""The equations of the V4 forward in plain, differentiable torch, each on its own; forward.py joins them to ops.

Sizes: N tokens of a batch, T tokens of one sequence, D hidden, S streams, H heads, d head_dim, R rope dims,
n compressed entries, E experts. `exact` computes in fp32; `official` keeps bf16 activations and simulates the
quantization the released model was trained with (spec 3.9). Ops know shapes, never a model config.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from v4kernels.reference.quant import fake_fp4, fake_fp8, hadamard
from v4kernels.tree import Expert

ATTENTION_BLOCK = 128  # queries handled together: bounds the score matrix
GATHER_FLOATS = 1 << 24  # gathered KV elements per query block when a selection is in force
SCORE_FLOATS = 1 << 25  # index score elements held at a time


class Weight:
    """A matrix (out, in) with the storage kind that decides how its input is treated.

    kind "fp8" or "fp4": `official` numerics quantize the input; "bf16" and "f32": they do not.
    """

    __slots__ = ("_dense", "kind")

    def __init__(self, kind: str, dense: Tensor | None = None):
        self.kind = kind
        self._dense = dense

    def dense(self) -> Tensor:
        """The matrix in fp32, dequantized."""
        assert self._dense is not None, "given by a subclass"
        return self._dense


class LazyWeight(Weight):
    """A matrix dequantized from the mapped file at every use: slow, but needs no memory of its own."""

    __slots__ = ("_load",)

    def __init__(self, kind: str, load: Callable[[], Tensor]):
        super().__init__(kind)
        self._load = load

    def dense(self) -> Tensor:
        return self._load()


class Equations:
    """The equations in `exact` or `official` numerics."""

    def __init__(self, numerics: str):
        self.numerics = numerics
        self.official = numerics == "official"
        self.dtype = torch.bfloat16 if self.official else torch.float32

    # -- linear and norm ------------------------------------------------------------------------------------

    def lookup(self, ids: Tensor, table: Weight) -> Tensor:
        """ids (N,) int64, table (V, D) -> (N, D)."""
        return F.embedding(ids, table.dense()).to(self.dtype)

    def linear(self, x: Tensor, w: Weight) -> Tensor:
        """x (..., in) @ w.T -> (..., out); official: e4m3 input per 128 for fp8/fp4 weights, bf16 output."""
        if not self.official:
            return F.linear(x, w.dense())
        if w.kind in ("fp8", "fp4"):
            x = fake_fp8(x, 128)
        return F.linear(x.float(), w.dense()).to(torch.bfloat16)

    def linear_fp32(self, x: Tensor, w: Weight) -> Tensor:
        """x (..., in) @ w.T -> (..., out) fp32: router, compressor, head, hyper-connections."""
        return F.linear(x.float(), w.dense())

    def grouped_linear(self, x: Tensor, w: Weight) -> Tensor:
        """x (N, G, in), w (G*out, in), group g with its own rows -> (N, G*out). Never input-quantized."""
        groups = x.shape[1]
        y = torch.einsum("ngi,goi->ngo", x.float(), w.dense().unflatten(0, (groups, -1)))
        return y.flatten(1).to(self.dtype)

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """x (..., D) / rms(x) * weight, in fp32. Without weight the official code stays in bf16."""
        if weight is None:
            y = x.to(self.dtype)
            return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight).to(self.dtype)

    def rope(self, x: Tensor, cis: Tensor, inverse: bool = False) -> Tensor:
        """Rotate adjacent pairs of the last R dims of x (N, [H,] d) by cis (N, R/2) complex64."""
        rope_dims = 2 * cis.shape[-1]
        if x.dim() == 3:
            cis = cis[:, None]
        pairs = torch.view_as_complex(x[..., -rope_dims:].float().unflatten(-1, (-1, 2)).contiguous())
        turned = torch.view_as_real(pairs * (cis.conj() if inverse else cis)).flatten(-2)
        return torch.cat((x[..., :-rope_dims], turned.to(x.dtype)), dim=-1)

    # -- hyper-connections (spec 3.2) -----------------------------------------------------------------------

    def hc_mixes(self, streams: Tensor, fn: Tensor, eps: float) -> Tensor:
        """streams (N, S, D), fn (M, S*D) -> M mixing numbers per token, fp32."""
        flat = streams.flatten(1).float()
        return F.linear(flat, fn) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)

    def hc_pre(
        self, streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, norm_eps: float, iters: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Collapse streams (N, S, D) to the sublayer input y (N, D), with post (N, S) and comb (N, S, S).

        fn (2S+S*S, S*D), base (2S+S*S,), scale (3,), all fp32.
        """
        n_streams = streams.shape[1]
        mixes = self.hc_mixes(streams, fn, norm_eps).float()
        pre, post, comb = mixes.split((n_streams, n_streams, n_streams**2), dim=-1)
        base_pre, base_post, base_comb = base.split((n_streams, n_streams, n_streams**2))
        pre = torch.sigmoid(pre * scale[0] + base_pre) + eps
        post = 2 * torch.sigmoid(post * scale[1] + base_post)
        comb = sinkhorn((comb * scale[2] + base_comb).unflatten(-1, (n_streams, n_streams)), iters, eps)
        return self._weighted_sum(streams, pre), post, comb

    def hc_post(self, out: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        """X'_k = post_k * out + sum_j comb_jk X_j -> (N, S, D)."""
        mixed = torch.matmul(comb.transpose(1, 2), streams.float())
        return (mixed + post[..., None] * out.float()[:, None]).to(self.dtype)

    def hc_head(self, streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, norm_eps: float, eps: float) -> Tensor:
        """Final collapse of streams (N, S, D) -> (N, D); fn (S, S*D), base (S,), scale (1,)."""
        pre = torch.sigmoid(self.hc_mixes(streams, fn, norm_eps).float() * scale + base) + eps
        return self._weighted_sum(streams, pre)

    def _weighted_sum(self, streams: Tensor, weights: Tensor) -> Tensor:
        return torch.matmul(weights[:, None], streams.float()).squeeze(1).to(self.dtype)

    # -- KV entries, compressor, indexer (spec 3.5-3.9) -----------------------------------------------------

    def quantize_kv(self, kv: Tensor, rope_dims: int) -> Tensor:
        """What the cache stores: official rounds the non-rope dims of (n, d) to e4m3 in blocks of 64."""
        if not self.official:
            return kv
        return torch.cat((fake_fp8(kv[..., :-rope_dims], 64), kv[..., -rope_dims:]), dim=-1)

    def quantize_index(self, x: Tensor) -> Tensor:
        """Index queries and keys (..., 128): official applies Hadamard and e2m1 in blocks of 32.

        The transform is orthonormal and on both sides of the dot product, so `exact` skips it.
        """
        return fake_fp4(hadamard(x), 32) if self.official else x

    def pool(self, kv: Tensor, gate: Tensor) -> Tensor:
        """Channelwise softmax pooling: kv, gate (n, slots, c) fp32 -> (n, c)."""
        return (torch.softmax(gate, dim=1) * kv).sum(1).to(self.dtype)

    def index_topk(self, q: Tensor, head_weights: Tensor, keys: Tensor, visible: Tensor, top_k: int) -> Tensor:
        """Best `top_k` visible entries per query: q (T, Hi, c), head_weights (T, Hi), keys (n, c),
        visible (T,) entries seen by each query -> (T, top_k) int64, -1 where fewer are visible."""
        order = torch.arange(keys.shape[0], device=q.device)
        block = max(1, SCORE_FLOATS // (q.shape[1] * keys.shape[0]))
        chosen = []
        for i in range(0, q.shape[0], block):
            dots = torch.einsum("thc,nc->thn", q[i : i + block], keys.to(q.dtype)).relu()
            scores = (dots * head_weights[i : i + block, :, None].to(q.dtype)).sum(1).float()
            hidden = order >= visible[i : i + block, None]
            best = scores.masked_fill(hidden, float("-inf")).topk(top_k, dim=-1)
            chosen.append(best.indices.masked_fill(best.values == float("-inf"), -1))
        return torch.cat(chosen)

    # -- attention (spec 3.3, 3.5, 3.8) ---------------------------------------------------------------------

    def attention(
        self,
        q: Tensor,
        window: Tensor,
        first: int,
        entries: Tensor | None,
        visible: Tensor | None,
        selected: Tensor | None,
        sink: Tensor,
        window_size: int,
    ) -> Tensor:
        """One latent per key serves as K and V for all heads; softmax has an extra sink term without value.

        q (T, H, d) queries at the LAST T positions of `window`; window (L, d) raw latents, L >= T;
        first: index in `window` of the first query; entries (n, d) compressed latents or None;
        visible (T,) number of entries each query may see; selected (T, k) entry ids (-1: none) or None = all
        visible; sink (H,) fp32. Returns (T, H, d).
        """
        block = ATTENTION_BLOCK
        if selected is not None:
            block = max(1, min(block, GATHER_FLOATS // (selected.shape[1] * q.shape[2])))
        out = []
        for i in range(0, q.shape[0], block):
            rows = slice(i, min(i + block, q.shape[0]))
            lo = max(0, first + rows.start - window_size + 1)
            keys = window[lo : first + rows.stop]
            age = torch.arange(first + rows.start, first + rows.stop, device=q.device)[:, None]
            age = age - torch.arange(lo, first + rows.stop, device=q.device)
            groups = [(keys, (age < 0) | (age >= window_size))]
            if selected is not None and entries is not None:
                ids = selected[rows]
                groups.append((entries[ids.clamp_min(0)], ids < 0))
            elif entries is not None and visible is not None and entries.shape[0]:
                order = torch.arange(int(visible[rows].max()), device=q.device)
                groups.append((entries[: len(order)], order >= visible[rows, None]))
            out.append(self._attend(q[rows], groups, sink))
        return torch.cat(out) if len(out) > 1 else out[0]

    def _attend(self, q: Tensor, groups: Sequence[tuple[Tensor, Tensor]], sink: Tensor) -> Tensor:
        """q (T, H, d); groups of (keys (L, d) shared or (T, L, d) per query, hidden (T, L)) -> (T, H, d)."""
        q32 = q.float() * q.shape[-1] ** -0.5
        parts = [
            torch.matmul(q32, keys.float().transpose(-1, -2)).masked_fill(hidden[:, None], float("-inf"))
            for keys, hidden in groups
        ]
        scores = torch.cat((*parts, sink.expand(q.shape[0], -1)[..., None]), dim=-1).float()
        if self.official:  # rounds the weights before they are normalised, as a streaming softmax does
            scores = torch.exp(scores - scores[..., :-1].amax(-1, keepdim=True))
            total = scores.sum(-1, keepdim=True)
            probs = scores.to(torch.bfloat16).float()
        else:
            probs, total = torch.softmax(scores, dim=-1), torch.ones(())
        out, at = torch.zeros(()), 0
        for keys, hidden in groups:
            out = out + torch.matmul(probs[..., at : at + hidden.shape[1]], keys.float())
            at += hidden.shape[1]
        return (out / total).to(self.dtype)

    # -- mixture of experts (spec 3.10) ---------------------------------------------------------------------

    def scored(
        self,
        x: Tensor,
        gate: Weight,
        top_k: int,
        scale: float,
        bias: Tensor | None = None,
        chosen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Router: x (N, D), gate (E, D) -> expert ids (N, k), weights (N, k) and the scores (N, E) of the choice, fp32.

        Selection is by sqrt(softplus) score + bias (E,), or given as `chosen` (N, k) in hash layers; the bias
        never enters the weights.
        """
        scores = sqrt_softplus(self.linear_fp32(x, gate).float())
        by = scores if bias is None else scores + bias
        if chosen is None:
            chosen = by.topk(top_k, dim=-1).indices
        weights = scores.gather(1, chosen)
        return chosen, weights / weights.sum(-1, keepdim=True) * scale, by

    def mixture(
        self, out: Tensor, x: Tensor, ids: Tensor, weights: Tensor, experts: Sequence[Expert[Weight]], limit: float
    ) -> Tensor:
        """out (N, D) fp32, and the routed experts of x (N, D): ids and weights (N, k) -> (N, D)."""
        flat = ids.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=len(experts)).tolist()
        tokens = order // ids.shape[1]
        per_slot = weights.flatten()[order]
        at = 0
        for expert, count in zip(experts, counts):
            if count:
                rows = tokens[at : at + count]
                y = self.expert(x[rows], expert, limit, per_slot[at : at + count, None])
                out = out.index_add(0, rows, y.float())
            at += count
        return out.to(self.dtype)

    def expert(self, x: Tensor, expert: Expert[Weight], limit: float, weight: Tensor | None) -> Tensor:
        """w2(silu(min(w1 x, limit)) * clamp(w3 x) * weight); the weight comes before w2's input rounding."""
        return self.linear(self.gated(x, expert, limit, weight), expert.w2)

    def gated(self, x: Tensor, expert: Expert[Weight], limit: float, weight: Tensor | None) -> Tensor:
        """What w2 is multiplied with: x (N, D) -> (N, I)."""
        gate = self.linear(x, expert.w1).float().clamp(max=limit)
        up = self.linear(x, expert.w3).float().clamp(-limit, limit)
        z = F.silu(gate) * up
        if weight is not None:
            z = z * weight
        return z.to(self.dtype)


def sqrt_softplus(x: Tensor) -> Tensor:
    """sqrt(log(1 + e^x)); e^(x/2) far below zero, where e^x would underflow and leave 0/0 to the router."""
    low = x < -30.0
    return torch.where(low, torch.exp(x / 2), F.softplus(x.masked_fill(low, 0.0)).sqrt())


def sinkhorn(logits: Tensor, iters: int, eps: float) -> Tensor:
    """Doubly stochastic (N, S, S) from logits: softmax over k, then columns, then iters-1 x (rows, columns).

    Works on (S, S, N) so that the 2*iters reductions over S run along contiguous tokens.
    """
    c = torch.softmax(logits.permute(1, 2, 0), dim=1) + eps
    c = c / (c.sum(0, keepdim=True) + eps)
    for _ in range(iters - 1):
        c = c / (c.sum(1, keepdim=True) + eps)
        c = c / (c.sum(0, keepdim=True) + eps)
    return c.permute(2, 0, 1)
