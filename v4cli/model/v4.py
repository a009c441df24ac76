"""The whole DeepSeek-V4 forward pass, in execution order, over an op table (spec 3).

In: token ids that continue one or several timelines. Out: final hidden states and logits. What computes, in which
numerics and on what arrays, is the op table's business (v4kernels/api.py says what every op gives, the equations are in
v4kernels/reference); what is remembered is the State's. Knows nothing of text, files or sampling.

Sizes: N new tokens, D hidden_size, S hc_mult streams.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic

from v4kernels.api import A, B, Bank, Ops, S, Span, X
from v4kernels.tree import Kind

from v4cli.model.config import V4Config
from v4cli.model.draft import DraftModel
from v4cli.model.state import State


class V4(Generic[A, X, S, B]):
    """A model: its config, the ops over its weights, and who holds its experts."""

    def __init__(
        self,
        config: V4Config,
        ops: Ops[A, X, S, B],
        bank: Bank[A, B] | None = None,
        head: DraftModel | None = None,
    ):
        """`bank`: by default that of the experts in the ops' weights; `head`: the draft model that came with them."""
        self.config, self.ops, self.head = config, ops, head
        self.bank: Bank[A, B] = ops.resident() if bank is None else bank
        self.kinds = [Kind.of(ratio) for ratio in config.compress_ratios[: config.num_hidden_layers]]

    def new_state(self, kv_dir: Path | None = None) -> State[S]:
        """An empty timeline, its entries in RAM or in a file in folder `kv_dir`. ResourceError, UsageError."""
        return State(lambda: self.ops.new_state(self.config.max_position_embeddings, kv_dir))

    def forward(
        self,
        feeds: Sequence[tuple[Sequence[int], State[S]]],
        watch: Callable[[str, A], None] | None = None,
        pause: Callable[[], None] = lambda: None,
    ) -> A:
        """Each timeline's next tokens, (n,) int64 with the state before them -> hidden (N, D), normed for the head, of
        all of them one behind the other. The states advance. ResourceError without room for them.

        `watch(name, streams)` is called with the streams after the embedding and after each sublayer, named like its
        tensors; `pause()` between sublayers, unless the step is played from a record. What they raise ends the forward;
        some layers have advanced then.
        """
        ops, bank = self.ops, self.bank
        for ids, state in feeds:
            state.begin(len(ids))
        batch = ops.batch([Span(ids, state.timeline, state.n_tokens) for ids, state in feeds])
        bank.begin_step(batch)
        hidden = ops.step(batch, lambda: self._walk(batch, watch, pause), bank.repeatable and watch is None)
        bank.end_step(batch.rows)
        for ids, state in feeds:
            state.n_tokens += len(ids)
        return hidden

    def _walk(self, batch: B, watch: Callable[[str, A], None] | None, pause: Callable[[], None]) -> A:
        """All layers, for the rows of a batch (N) -> hidden (N, D)."""
        ops, bank = self.ops, self.bank

        def seen(name: str, streams: A) -> None:
            if watch is not None:
                watch(name, streams)
            pause()

        streams = ops.embed(batch)  # (N, S, D)
        seen("embed", streams)
        for layer, kind in enumerate(self.kinds):
            bank.foresee(layer, streams)
            x, mix = ops.attention_input(layer, streams)  # (N, D)
            if kind is Kind.WINDOW:  # the last tokens
                x = ops.window_attention(layer, x, batch)  # (N, D)
            elif kind is Kind.CSA:  # these, and the chosen of the lightly compressed entries
                x = ops.csa_attention(layer, x, batch)  # (N, D)
            else:  # these, and all of the heavily compressed entries
                x = ops.hca_attention(layer, x, batch)  # (N, D)
            streams = ops.sublayer_output(x, streams, mix)  # (N, S, D)
            seen(f"layers.{layer}.attn", streams)

            x, mix = ops.ffn_input(layer, streams)  # (N, D)
            if layer < self.config.num_hash_layers:
                routing = ops.route_by_token(layer, x, batch)  # (N, top_k)
            else:
                routing = ops.route_by_score(layer, x)  # (N, top_k)
            experts = bank.begin(layer, x, routing, streams)
            x = experts.add_to(ops.shared_expert(layer, x))  # (N, D)
            streams = ops.sublayer_output(x, streams, mix)  # (N, S, D)
            seen(f"layers.{layer}.ffn", streams)
        return ops.final_hidden(streams)  # (N, D)

    def logits(self, hidden: A) -> A:
        """hidden (M, D) -> logits (M, vocab_size) fp32."""
        return self.ops.logits(hidden)
