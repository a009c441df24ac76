"""The tree of weights the forward walks, built once from any source of official tensor names (spec 2.1).

A source answers `weight(name)` with a matrix and `vector(name)` with an fp32 or integer tensor, both of the kind its
op table takes: model/sources.py has those that read files; the trainer's parameters are another. Beside its weights
every node holds the constants that its ops need.
"""

from types import SimpleNamespace
from typing import Protocol

from v4cli.model.rope import frequencies


class Source(Protocol):
    def weight(self, name: str): ...
    def vector(self, name: str): ...


class NoWeights:
    """A source of nothing, for the constants alone."""

    def weight(self, name: str) -> None:
        return None

    vector = weight


def build(config, source: Source) -> SimpleNamespace:
    """The weight tree of the trunk (mtp.* is not part of it)."""
    freqs = {ratio: frequencies(config, ratio) for ratio in config.compress_ratios[: config.num_hidden_layers]}
    return SimpleNamespace(
        embed=source.weight("embed.weight"),
        head=source.weight("head.weight"),
        hc_head=_hyper(config, source, "hc_head", "norm.weight"),
        freqs=freqs,  # by ratio
        layers=[_layer(config, source, i, freqs) for i in range(config.num_hidden_layers)],
    )


def _layer(config, source: Source, i: int, freqs) -> SimpleNamespace:
    at = f"layers.{i}."
    ratio = config.compress_ratios[i]
    return SimpleNamespace(
        hc_attn=_hyper(config, source, at + "hc_attn", at + "attn_norm.weight"),
        attn=_attention(config, source, at + "attn.", ratio, freqs[ratio]),
        hc_ffn=_hyper(config, source, at + "hc_ffn", at + "ffn_norm.weight"),
        ffn=_ffn(config, source, at + "ffn.", hashed=i < config.num_hash_layers),
    )


def _hyper(config, source: Source, at: str, norm: str) -> SimpleNamespace:
    """A hyper-connection and the norm behind it."""
    return SimpleNamespace(
        fn=source.vector(at + "_fn"),
        base=source.vector(at + "_base"),
        scale=source.vector(at + "_scale"),
        norm=source.vector(norm),
        streams=config.hc_mult,
        iters=config.hc_sinkhorn_iters,
        norm_eps=config.rms_norm_eps,
        eps=config.hc_eps,
    )


def _attention(config, source: Source, at: str, ratio: int, freqs) -> SimpleNamespace:
    indexer = None
    if ratio == 4:
        indexer = SimpleNamespace(
            wq_b=source.weight(at + "indexer.wq_b.weight"),
            weights_proj=source.weight(at + "indexer.weights_proj.weight"),
            compressor=_compressor(config, source, at + "indexer.compressor.", ratio, freqs, is_index=True),
            heads=config.index_n_heads,
            head_dim=config.index_head_dim,
            rope_dims=config.qk_rope_head_dim,
            top_k=config.index_topk,
        )
    compressor = _compressor(config, source, at + "compressor.", ratio, freqs, is_index=False) if ratio else None
    return SimpleNamespace(
        sink=source.vector(at + "attn_sink"),
        wq_a=source.weight(at + "wq_a.weight"),
        q_norm=source.vector(at + "q_norm.weight"),
        wq_b=source.weight(at + "wq_b.weight"),
        wkv=source.weight(at + "wkv.weight"),
        kv_norm=source.vector(at + "kv_norm.weight"),
        wo_a=source.weight(at + "wo_a.weight"),
        wo_b=source.weight(at + "wo_b.weight"),
        compressor=compressor,
        indexer=indexer,
        ratio=ratio,
        heads=config.num_attention_heads,
        head_dim=config.head_dim,
        rope_dims=config.qk_rope_head_dim,
        groups=config.o_groups,
        window=config.sliding_window,
        eps=config.rms_norm_eps,
    )


def _compressor(config, source: Source, at: str, ratio: int, freqs, is_index: bool) -> SimpleNamespace:
    return SimpleNamespace(
        ape=source.vector(at + "ape"),
        wkv=source.weight(at + "wkv.weight"),
        wgate=source.weight(at + "wgate.weight"),
        norm=source.vector(at + "norm.weight"),
        freqs=freqs,
        is_index=is_index,
        ratio=ratio,
        head_dim=config.index_head_dim if is_index else config.head_dim,
        rope_dims=config.qk_rope_head_dim,
        eps=config.rms_norm_eps,
    )


def _ffn(config, source: Source, at: str, hashed: bool) -> SimpleNamespace:
    return SimpleNamespace(
        gate=source.weight(at + "gate.weight"),
        gate_bias=None if hashed else source.vector(at + "gate.bias"),
        tid2eid=source.vector(at + "gate.tid2eid") if hashed else None,
        experts=[_expert(source, f"{at}experts.{e}.") for e in range(config.n_routed_experts)],
        shared_experts=_expert(source, at + "shared_experts."),
        top_k=config.num_experts_per_tok,
        scale=config.routed_scaling_factor,
        limit=config.swiglu_limit,
    )


def _expert(source: Source, at: str) -> SimpleNamespace:
    return SimpleNamespace(**{w: source.weight(f"{at}{w}.weight") for w in ("w1", "w2", "w3")})
