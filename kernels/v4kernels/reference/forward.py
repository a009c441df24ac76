"""Reference backend: the op table (api.py) in plain, differentiable torch. The oracle for all others; to be read first.

The ops stand in the order of the forward pass; each equation they are made of is in equations.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from v4kernels.api import Routing, Span
from v4kernels.reference.equations import Equations, Weight
from v4kernels.reference.state import Layer, Part, Pending, Timeline
from v4kernels.tree import OVERLAPPED, Attention, Compressor, Hyper, Indexer, Tree

Mix = tuple[Tensor, Tensor]  # post (N, S), comb (N, S, S)
TorchTree = Tree[Weight, Tensor]


class Reference:
    """Makes op tables of `exact` (fp32) or `official` numerics."""

    name = "reference"

    def __init__(self, numerics: str = "exact"):
        self.numerics = numerics

    def new_state(self, attentions: Sequence[Attention], most_tokens: int) -> Timeline:
        return Timeline(attentions)

    def bind(self, tree: TorchTree) -> "ReferenceOps":
        return ReferenceOps(tree, self.numerics)


@dataclass(frozen=True)
class TorchBatch:
    """Rows of a step: ids (N,) int64, and the spans they belong to."""

    ids: Tensor
    spans: Sequence[Span[Timeline]]

    @property
    def rows(self) -> int:
        return len(self.ids)

    def parts(self) -> Iterator[tuple[slice, Span[Timeline]]]:
        """Each span with its rows."""
        end = 0
        for span in self.spans:
            begin, end = end, end + len(span.ids)
            yield slice(begin, end), span


@dataclass(frozen=True)
class Rows:
    """A span in a layer's attention: x (n, D), qr (n, q_lora_rank), turns (n, R/2) rotations, the layer's state."""

    x: Tensor
    qr: Tensor
    turns: Tensor
    start: int
    kv: Layer


class ReferenceOps(Equations):
    """The op table over a tree of torch weights."""

    name = "reference"
    chunk = 512
    most_drafts = 0  # sums depend on how many rows are computed together

    def __init__(self, tree: TorchTree, numerics: str = "exact"):
        super().__init__(numerics)
        self.tree = tree

    def inference(self) -> AbstractContextManager:
        return torch.inference_mode()

    def new_state(self, most_tokens: int, folder: Path | None = None) -> Timeline:
        if folder is not None:
            raise ValueError("a KV cache in a folder needs the cpu backend")
        return Timeline([layer.attn for layer in self.tree.layers])

    def batch(self, spans: Sequence[Span[Timeline]]) -> TorchBatch:
        ids = [torch.as_tensor(span.ids) for span in spans]
        return TorchBatch(torch.cat(ids), spans)

    def step(self, batch: TorchBatch, walk: Callable[[], Tensor], repeatable: bool) -> Tensor:
        return walk()

    def embed(self, batch: TorchBatch) -> Tensor:
        return self.lookup(batch.ids, self.tree.embed)[:, None].expand(-1, self.tree.hc_head.streams, -1)

    # -- hyper-connections (spec 3.2) -----------------------------------------------------------------------

    def attention_input(self, layer: int, streams: Tensor) -> tuple[Tensor, Mix]:
        return self._sublayer_input(streams, self.tree.layers[layer].hc_attn)

    def ffn_input(self, layer: int, streams: Tensor) -> tuple[Tensor, Mix]:
        return self._sublayer_input(streams, self.tree.layers[layer].hc_ffn)

    def _sublayer_input(self, streams: Tensor, hyper: Hyper[Tensor]) -> tuple[Tensor, Mix]:
        x, post, comb = self.hc_pre(streams, hyper.fn, hyper.base, hyper.scale, hyper.norm_eps, hyper.iters, hyper.eps)
        return self.rms_norm(x, hyper.norm, hyper.norm_eps), (post, comb)

    def sublayer_output(self, out: Tensor, streams: Tensor, mix: Mix) -> Tensor:
        return self.hc_post(out, streams, *mix)

    # -- attention (spec 3.3-3.8) ---------------------------------------------------------------------------

    def window_attention(self, layer: int, x: Tensor, batch: TorchBatch) -> Tensor:
        def nothing_else(span: Rows) -> None:
            return None

        return self._attention(layer, x, batch, nothing_else)

    def csa_attention(self, layer: int, x: Tensor, batch: TorchBatch) -> Tensor:
        attn = self.tree.layers[layer].attn
        compressor, indexer = attn.compressor, attn.indexer
        assert compressor is not None and indexer is not None

        def chosen_entries(span: Rows) -> Tensor | None:
            main, index = span.kv.main, span.kv.index
            assert main is not None and index is not None
            self.append_compressed(compressor, span.x, span.start, main)
            self.append_compressed(indexer.compressor, span.x, span.start, index)
            return self.select(indexer, span.x, span.qr, span.turns, span.start, index)

        return self._attention(layer, x, batch, chosen_entries)

    def hca_attention(self, layer: int, x: Tensor, batch: TorchBatch) -> Tensor:
        compressor = self.tree.layers[layer].attn.compressor
        assert compressor is not None

        def all_entries(span: Rows) -> None:
            assert span.kv.main is not None
            self.append_compressed(compressor, span.x, span.start, span.kv.main)

        return self._attention(layer, x, batch, all_entries)

    def _attention(
        self, layer: int, x: Tensor, batch: TorchBatch, compressed: Callable[[Rows], Tensor | None]
    ) -> Tensor:
        """`compressed` makes a span's entries and says which its rows attend to; None: all that they may see."""
        attn, done = self.tree.layers[layer].attn, []
        for rows, span in batch.parts():
            kv, turns = span.state.layers[layer], self.rotations(attn.freqs, span.start, len(span.ids))
            q, qr = self.queries(attn, x[rows], turns)  # (n, H, d), (n, q_lora_rank)
            self.append_window(attn, x[rows], turns, kv)
            if span.together:
                done.append(self.attend_together(attn, q, turns, kv, span.together))  # (n, H, d)
                continue
            selected = compressed(Rows(x[rows], qr, turns, span.start, kv))  # (n, index_topk) or None
            done.append(self.attend(attn, q, turns, span.start, kv, selected))  # (n, H, d)
        return self.attention_output(attn, torch.cat(done))

    def rotations(self, freqs: np.ndarray, start: int, n: int, step: int = 1) -> Tensor:
        """e^(i * position * frequency) for n positions from start on: (n, R/2) complex64."""
        positions = start + step * torch.arange(n, dtype=torch.float32)
        angles = torch.outer(positions, torch.as_tensor(freqs))
        return torch.polar(torch.ones_like(angles), angles)

    def queries(self, attn: Attention, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, D) -> q (N, H, d), normed and rotated, and qr (N, q_lora_rank), from which the indexer starts."""
        qr = self.rms_norm(self.linear(x, attn.wq_a), attn.q_norm, attn.eps)
        q = self.linear(qr, attn.wq_b).unflatten(-1, (-1, attn.head_dim))
        return self.rope(self.rms_norm(q, None, attn.eps), turns), qr

    def append_window(self, attn: Attention, x: Tensor, turns: Tensor, kv: Layer) -> None:
        """The latents of x (N, D) join the window."""
        latent = self.rms_norm(self.linear(x, attn.wkv), attn.kv_norm, attn.eps)  # (N, d)
        latent = self.quantize_kv(self.rope(latent, turns), attn.rope_dims)
        kv.window = latent if kv.window is None else torch.cat((kv.window, latent))

    def append_compressed(self, compressor: Compressor, x: Tensor, start: int, part: Part) -> None:
        """Feed x (N, D) to a compressor; the blocks it completes become entries of `part`.

        Of C = 2 * entry size channels (ratio 4, whose blocks overlap) the first half serves the NEXT block, the
        second half the token's own.
        """
        ratio = compressor.ratio
        kv, gate = self.linear_fp32(x, compressor.wkv), self.linear_fp32(x, compressor.wgate)  # (N, C)
        gate = gate + compressor.ape[(start + torch.arange(len(kv))) % ratio]
        pending = part.pending
        if pending.kv is not None and pending.gate is not None:
            kv, gate = torch.cat((pending.kv, kv)), torch.cat((pending.gate, gate))
        n_blocks = len(kv) // ratio
        whole = n_blocks * ratio
        pending.kv, pending.gate = kv[whole:].clone(), gate[whole:].clone()
        if not n_blocks:
            return
        kv = kv[:whole].unflatten(0, (n_blocks, ratio))  # (n, ratio, C)
        gate = gate[:whole].unflatten(0, (n_blocks, ratio))
        if ratio == OVERLAPPED:
            kv, gate = _overlap(pending, kv, gate)  # (n, 2 * ratio, C / 2)
        entries = self.rms_norm(self.pool(kv, gate), compressor.norm, compressor.eps)  # (n, entry size)
        entries = self.rope(entries, self.rotations(compressor.freqs, part.entries.n * ratio, n_blocks, ratio))
        if compressor.is_index:
            part.entries.append(self.quantize_index(entries))
        else:
            part.entries.append(self.quantize_kv(entries, compressor.rope_dims))

    def select(self, indexer: Indexer, x: Tensor, qr: Tensor, turns: Tensor, start: int, part: Part) -> Tensor | None:
        """The entries each token attends to: (N, top_k) ids, -1 where fewer are visible; None: all visible ones."""
        keys = part.entries.view()
        if keys is None or len(keys) <= indexer.top_k:
            return None
        q = self.linear(qr, indexer.wq_b).unflatten(-1, (-1, indexer.head_dim))
        q = self.quantize_index(self.rope(q, turns))  # (N, Hi, c)
        weights = self.linear(x, indexer.weights_proj) * (indexer.head_dim**-0.5 * indexer.heads**-0.5)
        return self.index_topk(q, weights, keys, _visible(start, len(x), OVERLAPPED), indexer.top_k)

    def attend(
        self, attn: Attention, q: Tensor, turns: Tensor, start: int, kv: Layer, selected: Tensor | None
    ) -> Tensor:
        """Attention over the window and the compressed entries, turned back by the query's position: (N, H, d).

        The window then keeps what the next token needs.
        """
        assert kv.window is not None
        n = len(q)
        entries = kv.main.entries.view() if kv.main else None
        visible = _visible(start, n, attn.ratio) if attn.ratio else None
        first = len(kv.window) - n
        out = self.attention(q, kv.window, first, entries, visible, selected, attn.sink, attn.window)
        kv.window = kv.window[-attn.window :].clone()
        return self.rope(out, turns, inverse=True)

    def attend_together(self, attn: Attention, q: Tensor, turns: Tensor, kv: Layer, n: int) -> Tensor:
        """The same in a draft block: the last n rows of q (N, H, d) see each other, beside the window before them. The
        window keeps what is before them."""
        assert kv.window is not None
        before, seen = kv.window[:-n], kv.window[-n - attn.window :]
        parts = [self._attend(q[-n:], [(seen, torch.zeros((n, len(seen)), dtype=torch.bool))], attn.sink)]
        if len(q) > n:
            first = len(before) - (len(q) - n)
            parts = [self.attention(q[:-n], before, first, None, None, None, attn.sink, attn.window), *parts]
        kv.window = before[-attn.window :].clone() if len(before) else None
        return self.rope(torch.cat(parts), turns, inverse=True)

    def attention_output(self, attn: Attention, heads: Tensor) -> Tensor:
        """heads (N, H, d) -> (N, D)."""
        low = self.grouped_linear(heads.reshape(len(heads), attn.groups, -1), attn.wo_a)  # (N, G * o_lora_rank)
        return self.linear(low, attn.wo_b)

    # -- feed-forward (spec 3.10) ---------------------------------------------------------------------------

    def route_by_token(self, layer: int, x: Tensor, batch: TorchBatch) -> Routing[Tensor]:
        ffn = self.tree.layers[layer].ffn
        assert ffn.tid2eid is not None
        return Routing(*self.scored(x, ffn.gate, ffn.top_k, ffn.scale, None, ffn.tid2eid[batch.ids]))

    def route_by_score(self, layer: int, x: Tensor) -> Routing[Tensor]:
        ffn = self.tree.layers[layer].ffn
        return Routing(*self.scored(x, ffn.gate, ffn.top_k, ffn.scale, ffn.gate_bias))

    def shared_expert(self, layer: int, x: Tensor) -> Tensor:
        ffn = self.tree.layers[layer].ffn
        return self.expert(x, ffn.shared, ffn.limit, None).float()

    def resident(self) -> "Resident":
        return Resident(self)

    # -- head -----------------------------------------------------------------------------------------------

    def final_hidden(self, streams: Tensor) -> Tensor:
        hyper = self.tree.hc_head
        x = self.hc_head(streams, hyper.fn, hyper.base, hyper.scale, hyper.norm_eps, hyper.eps)
        return self.rms_norm(x, hyper.norm, hyper.norm_eps)

    def finite(self, x: Tensor) -> bool:
        return bool(x.isfinite().all())

    def rows(self, hidden: Tensor, rows: Sequence[int]) -> Tensor:
        return hidden[list(rows)]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.linear_fp32(hidden, self.tree.head)


class Resident:
    """The bank of the experts in the tree."""

    repeatable = True

    def __init__(self, ops: ReferenceOps):
        self.ops = ops

    def doubt(self, rows: Sequence[int]) -> Callable[[int], None]:
        """Nothing is learned."""
        return lambda row: None

    def begin_step(self, batch: TorchBatch) -> None:
        """All is there."""

    def foresee(self, layer: int, streams: Tensor) -> None:
        """All is there."""

    def end_step(self, rows: int) -> None:
        """Nothing to do."""

    def begin(self, layer: int, x: Tensor, routing: Routing[Tensor], streams: Tensor) -> "Mixing":
        return Mixing(self.ops, layer, x, routing)


@dataclass(frozen=True)
class Mixing:
    """Routed experts of one layer, computed when they are added."""

    ops: ReferenceOps
    layer: int
    x: Tensor
    routing: Routing[Tensor]

    def add_to(self, out: Tensor) -> Tensor:
        ffn = self.ops.tree.layers[self.layer].ffn
        return self.ops.mixture(out, self.x, self.routing.chosen, self.routing.weights, ffn.experts, ffn.limit)


def _visible(start: int, n: int, ratio: int) -> Tensor:
    """Entries that each of n tokens may see."""
    return (torch.arange(start, start + n) + 1) // ratio


def _overlap(pending: Pending, kv: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Slots of each block: the previous block's tokens (first half channels), then its own (second half).

    (n, r, 2c) -> (n, 2r, c); the block before the first has gate -inf, which softmax turns into weight 0.
    """
    half = kv.shape[-1] // 2
    if pending.previous_kv is None or pending.previous_gate is None:
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
