"""The attention of one Flash layer at any context length, its cache filled with random entries."""

import ctypes
from dataclasses import replace

import numpy as np
from v4kernels import native
from v4kernels.api import Span
from v4kernels.cpu import Buffer, Cpu

from v4cli.bench.random_weights import RandomSource
from v4cli.bench.synthetic import shape
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.plan import flops


class AttentionLayer:
    """One layer of compression ratio `ratio` (4 or 128) after `context` tokens."""

    def __init__(self, ratio: int, context: int):
        config = shape("flash", 1)
        self.config = replace(config, compress_ratios=(ratio,), n_routed_experts=8, vocab_size=1024, num_hash_layers=0)
        self.model = V4(self.config, Cpu().bind(build(self.config, RandomSource(self.config, "native"))))
        self.context = context
        self.state = self.model.new_state()
        self.state.n_tokens = context
        for part in self._parts():
            part.reserve(context + 1)
            codes = part.rows["entries"].data[: context // ratio]
            codes[:] = np.random.default_rng(1).integers(0, 256, codes.size, np.uint8).reshape(codes.shape) & 0xB7
            if "scales" in part.rows:
                part.rows["scales"].data[: context // ratio] = 127
        self.x = Buffer.of(np.random.default_rng(2).standard_normal((1, self.config.hidden_size), np.float32))
        self.batch = self.model.ops.batch([Span([0], self.state.timeline, context)])
        self.scores = np.empty(context // 4, np.float32)
        self.q = np.random.default_rng(3).standard_normal((64, 128)).astype(np.float32)

    def _parts(self):
        layer = self.state.layers[0]
        return [part for part in (layer.main, layer.index) if part]

    @property
    def macs(self) -> int:
        """Multiply-adds of one step."""
        f = flops.flops(self.config, self.context)
        work = f.linear + f.compressor + f.attention
        return int(work + (f.indexer_projection + f.indexer_scores if self.scores.size and self._indexed() else 0)) // 2

    def _indexed(self) -> bool:
        return self.config.compress_ratios[0] == 4

    @property
    def score_macs(self) -> int:
        return self.config.index_n_heads * self.config.index_head_dim * self.scores.size

    def step(self) -> None:
        """One token through the layer's attention, always at the same place."""
        self.model.ops.window_attention(0, self.x, self.batch)

    def score(self) -> None:
        """Index scores of one token over all keys."""
        indexer, keys = self.model.ops.layers[0].attn.indexer, self.state.layers[0].index.native
        native.checked(
            native.library().v4k_index_scores(
                ctypes.addressof(indexer), self.q.ctypes.data, self.q.ctypes.data, keys.entries, keys.scales,
                self.scores.size, self.scores.ctypes.data,
            )
        )  # fmt: skip
