"""Reference backend: the op table of the V4 forward over plain, differentiable torch. The oracle for all others.

An op takes a node of the weight tree (v4cli/model/weights.py says what each holds), activations and, where something
is remembered, a layer's state (v4cli/cache/layer.py). Sizes: N tokens of one timeline, from position `start` on,
D hidden, S streams, H heads, d head_dim.
"""

import torch
from torch import Tensor

from v4kernels.primitives import Primitives, Weight


class ReferenceOps(Primitives):
    """Op table with `exact` or `official` numerics."""

    name = "reference"
    packed = False  # whether weights stay stored codes and the state stays packed entries

    def prepare(self, weights) -> None:
        """Once per weight tree, before its first use: nothing to do here."""

    def inference(self):
        """What to run a forward in when no gradient is wanted."""
        return torch.inference_mode()

    def tokens(self, ids) -> Tensor:
        """Token ids as the other ops take them: (N,) int64."""
        return torch.as_tensor(ids)

    def embed(self, ids: Tensor, table: Weight, n_streams: int) -> Tensor:
        """ids (N,) -> streams (N, S, D), all alike."""
        return self.lookup(ids, table)[:, None].expand(-1, n_streams, -1)

    def rotations(self, freqs, start: int, n: int, step: int = 1) -> Tensor:
        """e^(i * position * frequency) for n positions from start on: (n, R/2) complex64."""
        positions = start + step * torch.arange(n, dtype=torch.float32)
        angles = torch.outer(positions, torch.as_tensor(freqs))
        return torch.polar(torch.ones_like(angles), angles)

    # -- hyper-connections (spec 3.2) -----------------------------------------------------------------------

    def sublayer_input(self, streams: Tensor, hyper):
        """streams (N, S, D) -> normed input x (N, D) of a sublayer, and the mix that sublayer_output needs."""
        x, post, comb = self.hc_pre(streams, hyper.fn, hyper.base, hyper.scale, hyper.norm_eps, hyper.iters, hyper.eps)
        return self.rms_norm(x, hyper.norm, hyper.norm_eps), (post, comb)

    def sublayer_output(self, out: Tensor, streams: Tensor, mix) -> Tensor:
        """A sublayer's result (N, D) goes back into the streams (N, S, D); they may be overwritten."""
        return self.hc_post(out, streams, *mix)

    def final_hidden(self, streams: Tensor, hyper) -> Tensor:
        """streams (N, S, D) -> hidden (N, D), normed for the head."""
        x = self.hc_head(streams, hyper.fn, hyper.base, hyper.scale, hyper.norm_eps, hyper.eps)
        return self.rms_norm(x, hyper.norm, hyper.norm_eps)

    # -- attention (spec 3.3-3.8) ---------------------------------------------------------------------------

    def self_attention(self, attn, x: Tensor, turns, start: int, kv) -> Tensor:
        """One layer's attention: x (N, D) normed input, turns (N, R/2) rotations, kv the layer's state -> (N, D)."""
        selected = None
        q, qr = self.queries(attn, x, turns)  # (N, H, d), (N, q_lora_rank)
        self.append_window(attn, x, turns, kv)
        if attn.compressor is not None:
            self.append_compressed(attn.compressor, x, start, kv.main)
        if attn.indexer is not None:
            self.append_compressed(attn.indexer.compressor, x, start, kv.index)
            selected = self.select(attn.indexer, x, qr, turns, start, kv.index)  # (N, index_topk) or None
        heads = self.attend(attn, q, turns, start, kv, selected)  # (N, H, d)
        return self.attention_output(attn, heads)

    def queries(self, attn, x: Tensor, turns):
        """x (N, D) -> q (N, H, d), normed and rotated, and qr (N, q_lora_rank), from which the indexer starts."""
        qr = self.rms_norm(self.linear(x, attn.wq_a), attn.q_norm, attn.eps)
        q = self.linear(qr, attn.wq_b).unflatten(-1, (-1, attn.head_dim))
        return self.rope(self.rms_norm(q, None, attn.eps), turns), qr

    def append_window(self, attn, x: Tensor, turns, kv) -> None:
        """The latents of x (N, D) join the window."""
        latent = self.rms_norm(self.linear(x, attn.wkv), attn.kv_norm, attn.eps)  # (N, d)
        latent = self.quantize_kv(self.rope(latent, turns), attn.rope_dims)
        kv.window = latent if kv.window is None else torch.cat((kv.window, latent))

    def append_compressed(self, compressor, x: Tensor, start: int, part) -> None:
        """Feed x (N, D) to a compressor; the blocks it completes become entries of `part`.

        Of C = 2 * entry size channels (ratio 4, whose blocks overlap) the first half serves the NEXT block, the
        second half the token's own.
        """
        ratio = compressor.ratio
        kv, gate = self.linear_fp32(x, compressor.wkv), self.linear_fp32(x, compressor.wgate)  # (N, C)
        gate = gate + compressor.ape[(start + torch.arange(len(kv))) % ratio]
        pending = part.pending
        if pending.kv is not None:
            kv, gate = torch.cat((pending.kv, kv)), torch.cat((pending.gate, gate))
        n_blocks = len(kv) // ratio
        whole = n_blocks * ratio
        pending.kv, pending.gate = kv[whole:].clone(), gate[whole:].clone()
        if not n_blocks:
            return
        kv = kv[:whole].unflatten(0, (n_blocks, ratio))  # (n, ratio, C)
        gate = gate[:whole].unflatten(0, (n_blocks, ratio))
        if ratio == 4:
            kv, gate = _overlap(pending, kv, gate)  # (n, 2 * ratio, C / 2)
        entries = self.rms_norm(self.pool(kv, gate), compressor.norm, compressor.eps)  # (n, entry size)
        entries = self.rope(entries, self.rotations(compressor.freqs, part.entries.n * ratio, n_blocks, ratio))
        if compressor.is_index:
            part.entries.append(self.quantize_index(entries))
        else:
            part.entries.append(self.quantize_kv(entries, compressor.rope_dims))

    def select(self, indexer, x: Tensor, qr: Tensor, turns, start: int, part) -> Tensor | None:
        """The entries each token attends to: (N, top_k) ids, -1 where fewer are visible; None: all visible ones."""
        if part.entries.n <= indexer.top_k:
            return None
        q = self.linear(qr, indexer.wq_b).unflatten(-1, (-1, indexer.head_dim))
        q = self.quantize_index(self.rope(q, turns))  # (N, Hi, c)
        weights = self.linear(x, indexer.weights_proj) * (indexer.head_dim**-0.5 * indexer.heads**-0.5)
        return self.index_topk(q, weights, part.entries.view(), _visible(start, len(x), 4), indexer.top_k)

    def attend(self, attn, q: Tensor, turns, start: int, kv, selected) -> Tensor:
        """Attention over the window and the compressed entries, turned back by the query's position: (N, H, d).

        The window then keeps what the next token needs.
        """
        n = len(q)
        entries = kv.main.entries.view() if kv.main else None
        visible = _visible(start, n, attn.ratio) if attn.ratio else None
        first = len(kv.window) - n
        out = self.attention(q, kv.window, first, entries, visible, selected, attn.sink, attn.window)
        kv.window = kv.window[-attn.window :].clone()
        return self.rope(out, turns, inverse=True)

    def attention_output(self, attn, heads: Tensor) -> Tensor:
        """heads (N, H, d) -> (N, D)."""
        low = self.grouped_linear(heads.reshape(len(heads), attn.groups, -1), attn.wo_a)  # (N, G * o_lora_rank)
        return self.linear(low, attn.wo_b)

    # -- feed-forward (spec 3.10) ---------------------------------------------------------------------------

    def route(self, ffn, x: Tensor, ids: Tensor):
        """Experts of each token and their weights, (N, k) each; hash layers route by token id."""
        chosen = None if ffn.tid2eid is None else ffn.tid2eid[ids]
        return self.scored(x, ffn.gate, ffn.top_k, ffn.scale, ffn.gate_bias, chosen)

    def experts(self, ffn, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Routed and shared experts: (N, D)."""
        return self.mixture(x, chosen, weights, ffn.experts, ffn.shared_experts, ffn.limit)

    # -- head -----------------------------------------------------------------------------------------------

    def finite(self, x: Tensor) -> bool:
        """Whether every value of streams or hidden states is finite."""
        return bool(x.isfinite().all())

    def last(self, hidden: Tensor) -> Tensor:
        """The last token's row, (1, D)."""
        return hidden[-1:]

    def logits(self, hidden: Tensor, head: Weight) -> Tensor:
        """hidden (M, D) -> (M, vocab_size) fp32."""
        return self.linear_fp32(hidden, head)


def _visible(start: int, n: int, ratio: int) -> Tensor:
    """Entries that each of n tokens may see."""
    return (torch.arange(start, start + n) + 1) // ratio


def _overlap(pending, kv: Tensor, gate: Tensor):
    """Slots of each block: the previous block's tokens (first half channels), then its own (second half).

    (n, r, 2c) -> (n, 2r, c); the block before the first has gate -inf, which softmax turns into weight 0.
    """
    half = kv.shape[-1] // 2
    if pending.previous_kv is None:
        before_kv = torch.zeros_like(kv[:1, :, :half])
        before_gate = torch.full_like(before_kv, float("-inf"))
    else:
        before_kv, before_gate = pending.previous_kv[None], pending.previous_gate[None]
    as_previous_kv = torch.cat((before_kv, kv[:-1, :, :half]))
    as_previous_gate = torch.cat((before_gate, gate[:-1, :, :half]))
    pending.previous_kv = kv[-1, :, :half].clone()
    pending.previous_gate = gate[-1, :, :half].clone()
    return (
        torch.cat((as_previous_kv, kv[..., half:]), dim=1),
        torch.cat((as_previous_gate, gate[..., half:]), dim=1),
    )
