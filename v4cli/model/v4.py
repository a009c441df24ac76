"""The whole DeepSeek-V4 forward pass, in execution order, over an op table (spec 3).

In: token ids of one or more sequences, laid end to end, each with its own State. Out: final hidden states and
logits. Tensors carry their official checkpoint names. What computes, and in which numerics, is the op table's
business; what is remembered is the State's. Knows nothing of text, files or sampling.

Sizes: N tokens in the batch, T tokens of one sequence, D hidden_size, S hc_mult streams, H heads, d head_dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from v4cli.cache.state import CompressedKV, State
from v4cli.model.rope import cis, frequencies


@dataclass(frozen=True)
class Segment:
    """One sequence of a batch: its rows [start, stop) of the N tokens, and its state."""

    start: int
    stop: int
    state: State

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


class V4:
    """A model: config, weights (see model/weights.py for the tree of official names) and ops."""

    def __init__(self, config, weights, ops):
        self.config = config
        self.weights = weights
        self.ops = ops
        self.ratios = tuple(config.compress_ratios[: config.num_hidden_layers])
        self.freqs = {ratio: frequencies(config, ratio) for ratio in set(self.ratios)}

    def new_state(self) -> State:
        """An empty timeline for this model."""
        return State(self.ratios)

    def forward(self, ids: Tensor, segments: list[Segment]) -> Tensor:
        """Advance every segment's state by its tokens; ids (N,) int64 -> hidden (N, D), normed for the head."""
        ops, w, cfg = self.ops, self.weights, self.config
        positions = torch.cat([s.state.n_tokens + torch.arange(s.stop - s.start) for s in segments])
        turns = {ratio: cis(freqs, positions) for ratio, freqs in self.freqs.items()}
        embedded = ops.embed(ids, w.embed)  # (N, D)
        streams = embedded[:, None].expand(-1, cfg.hc_mult, -1)  # (N, S, D)
        hyper = cfg.rms_norm_eps, cfg.hc_sinkhorn_iters, cfg.hc_eps
        for i, layer in enumerate(w.layers):
            x, post, comb = ops.hc_pre(streams, *layer.hc_attn, *hyper)
            x = ops.rms_norm(x, layer.attn_norm, cfg.rms_norm_eps)
            x = self.attention(i, x, turns[self.ratios[i]], segments)  # (N, D)
            streams = ops.hc_post(x, streams, post, comb)  # (N, S, D)
            x, post, comb = ops.hc_pre(streams, *layer.hc_ffn, *hyper)
            x = ops.rms_norm(x, layer.ffn_norm, cfg.rms_norm_eps)
            x = self.moe(layer.ffn, x, ids)  # (N, D)
            streams = ops.hc_post(x, streams, post, comb)
        for segment in segments:
            segment.state.n_tokens += segment.stop - segment.start
        hidden = ops.hc_head(streams, *w.hc_head, cfg.rms_norm_eps, cfg.hc_eps)  # (N, D)
        return ops.rms_norm(hidden, w.norm, cfg.rms_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (M, D) -> logits (M, vocab_size) fp32."""
        return self.ops.linear_fp32(hidden, self.weights.head)

    # -- attention ------------------------------------------------------------------------------------------

    def attention(self, i: int, x: Tensor, turns: Tensor, segments: list[Segment]) -> Tensor:
        """Layer i's attention: x (N, D) normed input, turns (N, R/2) rotations at each token -> (N, D)."""
        ops, cfg, attn = self.ops, self.config, self.weights.layers[i].attn
        qr = ops.rms_norm(ops.linear(x, attn.wq_a), attn.q_norm, cfg.rms_norm_eps)  # (N, q_lora_rank)
        q = ops.linear(qr, attn.wq_b).unflatten(-1, (-1, cfg.head_dim))  # (N, H, d)
        q = ops.rope(ops.rms_norm(q, None, cfg.rms_norm_eps), turns)
        kv = ops.rms_norm(ops.linear(x, attn.wkv), attn.kv_norm, cfg.rms_norm_eps)  # (N, d)
        kv = ops.quantize_kv(ops.rope(kv, turns), cfg.qk_rope_head_dim)
        compressed = self.compressor_inputs(attn.compressor, x)
        index = self.indexer_inputs(attn.indexer, x, qr, turns)
        out = torch.cat([self.attend(i, s, q, kv, compressed, index) for s in segments])  # (N, H, d)
        out = ops.rope(out, turns, inverse=True)
        out = ops.grouped_linear(out.reshape(len(x), cfg.o_groups, -1), attn.wo_a)  # (N, G * o_lora_rank)
        return ops.linear(out, attn.wo_b)

    def attend(self, i: int, segment: Segment, q, kv, compressed, index) -> Tensor:
        """Update one sequence's state in layer i and attend over it -> (T, H, d)."""
        ops, cfg, ratio = self.ops, self.config, self.ratios[i]
        rows, state = segment.rows, segment.state.layers[i]
        window = kv[rows] if state.window is None else torch.cat((state.window, kv[rows]))
        state.window = window[-cfg.sliding_window :].clone()
        attn = self.weights.layers[i].attn
        entries = selected = visible = None
        if ratio:
            start = segment.state.n_tokens
            visible = (torch.arange(start, start + segment.stop - segment.start) + 1) // ratio
            self.compress(state.main, attn.compressor, *(c[rows] for c in compressed), start, ratio)
            entries = state.main.entries.view()
        if index is not None:
            index_q, head_weights, index_kv, index_gate = (part[rows] for part in index)
            self.compress(state.index, attn.indexer.compressor, index_kv, index_gate, start, ratio)
            if state.index.entries.n > cfg.index_topk:
                keys = state.index.entries.view()
                selected = ops.index_topk(index_q, head_weights, keys, visible, cfg.index_topk)
        first = len(window) - (segment.stop - segment.start)
        return ops.attention(q[rows], window, first, entries, visible, selected, attn.attn_sink, cfg.sliding_window)

    def compressor_inputs(self, compressor, x: Tensor):
        """kv and gate of every token, (N, C) fp32 each; the position part of the gate is added in compress."""
        if compressor is None:
            return None
        return self.ops.linear_fp32(x, compressor.wkv), self.ops.linear_fp32(x, compressor.wgate)

    def indexer_inputs(self, indexer, x: Tensor, qr: Tensor, turns: Tensor):
        """Index queries (N, Hi, c), head weights (N, Hi), and the indexer's own compressor kv and gate."""
        if indexer is None:
            return None
        ops, cfg = self.ops, self.config
        q = ops.linear(qr, indexer.wq_b).unflatten(-1, (-1, cfg.index_head_dim))
        q = ops.quantize_index(ops.rope(q, turns))
        scale = cfg.index_head_dim**-0.5 * cfg.index_n_heads**-0.5
        head_weights = ops.linear(x, indexer.weights_proj) * scale
        return q, head_weights, *self.compressor_inputs(indexer.compressor, x)

    def compress(self, part: CompressedKV, compressor, kv: Tensor, gate: Tensor, start: int, ratio: int):
        """Feed T tokens from position `start` to a compressor and append the entries they complete.

        kv, gate (T, C) fp32. C is the entry size, or twice it when blocks overlap (ratio 4): the first half of
        the channels serves the NEXT block, the second half the token's own block.
        """
        cfg = self.config
        gate = gate + compressor.ape[(start + torch.arange(len(kv))) % ratio]
        pending = part.pending
        if pending.kv is not None:
            kv, gate = torch.cat((pending.kv, kv)), torch.cat((pending.gate, gate))
        n_blocks = len(kv) // ratio
        whole = n_blocks * ratio
        pending.kv, pending.gate = kv[whole:].clone(), gate[whole:].clone()
        if not n_blocks:
            return
        blocks_kv = kv[:whole].unflatten(0, (n_blocks, ratio))  # (n, ratio, C)
        blocks_gate = gate[:whole].unflatten(0, (n_blocks, ratio))
        if ratio == 4:
            blocks_kv, blocks_gate = self.overlap(part, blocks_kv, blocks_gate)  # (n, 2 * ratio, C / 2)
        entries = self.ops.compress(blocks_kv, blocks_gate)  # (n, c)
        entries = self.ops.rms_norm(entries, compressor.norm, cfg.rms_norm_eps)
        block_starts = (part.entries.n + torch.arange(n_blocks)) * ratio
        entries = self.ops.rope(entries, cis(self.freqs[ratio], block_starts))
        if compressor.is_index:
            entries = self.ops.quantize_index(entries)
        else:
            entries = self.ops.quantize_kv(entries, cfg.qk_rope_head_dim)
        part.entries.append(entries)

    def overlap(self, part: CompressedKV, kv: Tensor, gate: Tensor):
        """Slots of each block: the previous block's tokens (first half channels), then its own (second half).

        (n, r, 2c) -> (n, 2r, c); the block before the first has gate -inf, which softmax turns into weight 0.
        """
        half = kv.shape[-1] // 2
        pending = part.pending
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

    # -- feed-forward ---------------------------------------------------------------------------------------

    def moe(self, ffn, x: Tensor, ids: Tensor) -> Tensor:
        """Router, routed experts and the shared expert: x (N, D), ids (N,) raw input tokens -> (N, D)."""
        ops, cfg = self.ops, self.config
        chosen = None if ffn.tid2eid is None else ffn.tid2eid[ids]  # hash layers route by token id
        chosen, weights = ops.route(
            x, ffn.gate, cfg.num_experts_per_tok, cfg.routed_scaling_factor, ffn.gate_bias, chosen
        )
        return ops.experts(x, chosen, weights, ffn.experts, ffn.shared_experts, cfg.swiglu_limit)
