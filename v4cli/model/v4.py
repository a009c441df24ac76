"""The whole DeepSeek-V4 forward pass, in execution order, over an op table (spec 3).

In: token ids that continue a State. Out: final hidden states and logits. Weights carry their official checkpoint names.
What computes, in which numerics and on what arrays, is the op table's business (v4kernels/reference.py describes every
op); what is remembered is the State's. Knows nothing of text, files or sampling.

Sizes: N new tokens, D hidden_size, S hc_mult streams, H heads, d head_dim.
"""

from collections.abc import Callable
from pathlib import Path

from v4cli.cache.state import State
from v4cli.errors import Interrupted


class V4:
    """A model: config, weights (see model/weights.py for the tree of official names) and ops."""

    def __init__(self, config, weights, ops):
        self.config = config
        self.weights = weights
        self.ops = ops
        ops.prepare(weights)

    def new_state(self, kv_dir: Path | None = None) -> State:
        """An empty timeline for this model, its entries in RAM or in a file in folder `kv_dir`."""
        attentions = [layer.attn for layer in self.weights.layers]
        return State(attentions, self.ops.packed, self.config.max_position_embeddings, kv_dir)

    def forward(
        self,
        ids,
        state: State,
        cancelled: Callable[[], bool] = lambda: False,
        watch: Callable[[str, object], None] | None = None,
    ):
        """Advance `state` by its tokens; ids (N,) int64 -> hidden (N, D), normed for the head.

        Interrupted if `cancelled()` between layers; some have then advanced. `watch(name, result)`: called with what
        the embedding and each sublayer gave, named like its tensors.
        """
        ops, w, start = self.ops, self.weights, state.n_tokens
        n, ids = len(ids), ops.tokens(ids)
        turns = {ratio: ops.rotations(freqs, start, n) for ratio, freqs in w.freqs.items()}
        streams = ops.embed(ids, w.embed, self.config.hc_mult)  # (N, S, D)
        if watch:
            watch("embed", streams)
        for i, (layer, kv) in enumerate(zip(w.layers, state.layers)):
            if cancelled():
                raise Interrupted("interrupted")
            x, mix = ops.sublayer_input(streams, layer.hc_attn)  # (N, D)
            x = ops.self_attention(layer.attn, x, turns[layer.attn.ratio], start, kv)  # (N, D)
            streams = ops.sublayer_output(x, streams, mix)  # (N, S, D)
            if watch:
                watch(f"layers.{i}.attn", streams)
            x, mix = ops.sublayer_input(streams, layer.hc_ffn)  # (N, D)
            chosen, weights = ops.route(layer.ffn, x, ids)  # (N, top_k)
            x = ops.experts(layer.ffn, x, chosen, weights)  # (N, D)
            streams = ops.sublayer_output(x, streams, mix)  # (N, S, D)
            if watch:
                watch(f"layers.{i}.ffn", streams)
        state.n_tokens += n
        return ops.final_hidden(streams, w.hc_head)  # (N, D)

    def logits(self, hidden):
        """hidden (M, D) -> logits (M, vocab_size) fp32."""
        return self.ops.logits(hidden, self.weights.head)
