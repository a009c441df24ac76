"""Builds the tree of weights (v4kernels/tree.py) from any source of official tensor names (spec 2.1).

A source answers `weight(name)` with a matrix and `vector(name)` with an fp32 or integer tensor, both of the kind its
backend takes: model/sources.py has those that read files; the trainer's parameters are another.
"""

from typing import Protocol, TypeVar

import numpy as np
from v4kernels.tree import Attention, Compressor, Dspark, Expert, Hyper, Indexer, Kind, Layer, Mixture, Mtp, Tree

from v4cli.model.config import V4Config
from v4cli.model.rope import frequencies

M = TypeVar("M", covariant=True)
V = TypeVar("V", covariant=True)


class Source(Protocol[M, V]):
    def weight(self, name: str) -> M: ...
    def vector(self, name: str) -> V: ...


class NoWeights:
    """A source of nothing, for the constants alone."""

    def weight(self, name: str) -> None:
        return None

    vector = weight


def build(config: V4Config, source: Source[M, V], experts: bool = True) -> Tree[M, V]:
    """The weight tree of the trunk (mtp.* is not part of it); without `experts` the routed ones are left to a bank."""
    return Tree(
        embed=source.weight("embed.weight"),
        head=source.weight("head.weight"),
        hc_head=_hyper(config, source, "hc_head", "norm.weight"),
        layers=[
            layer_of(config, source, f"layers.{i}.", ratio, i < config.num_hash_layers, experts)
            for i, ratio in enumerate(config.compress_ratios[: config.num_hidden_layers])
        ],
    )


def build_draft(config: V4Config, source: Source[M, V], trunk: Tree[M, V]) -> Dspark[M, V] | Mtp[M, V]:
    """The draft blocks (mtp.*) of a model that has them, over its trunk's embedding and head."""
    blocks = [layer_of(config, source, f"mtp.{i}.", 0, False, True) for i in range(config.n_mtp_blocks)]
    last, eps = f"mtp.{len(blocks) - 1}.", config.rms_norm_eps
    tree = Tree(
        embed=trunk.embed,
        head=trunk.head,
        hc_head=_hyper(config, source, last + "hc_head", last + "norm.weight"),
        layers=blocks,
    )
    if config.dspark_target_layer_ids is None:
        return Mtp(
            tree=tree,
            e_proj=source.weight(last + "e_proj.weight"),
            h_proj=source.weight(last + "h_proj.weight"),
            enorm=source.vector(last + "enorm.weight"),
            hnorm=source.vector(last + "hnorm.weight"),
            eps=eps,
        )
    assert config.dspark_block_size is not None and config.dspark_noise_token_id is not None
    return Dspark(
        tree=tree,
        main_proj=source.weight("mtp.0.main_proj.weight"),
        main_norm=source.vector("mtp.0.main_norm.weight"),
        markov_in=source.weight(last + "markov_head.markov_w1.weight"),
        markov_out=source.weight(last + "markov_head.markov_w2.weight"),
        confidence=source.vector(last + "confidence_head.proj.weight"),
        targets=config.dspark_target_layer_ids,
        size=config.dspark_block_size,
        noise=config.dspark_noise_token_id,
        eps=eps,
    )


def layer_of(config: V4Config, source: Source[M, V], at: str, ratio: int, hashed: bool, experts: bool) -> Layer[M, V]:
    """One block, whose tensors' names begin with `at`; `hashed`: whether it routes by token."""
    n_experts = config.n_routed_experts if experts else 0
    return Layer(
        hc_attn=_hyper(config, source, at + "hc_attn", at + "attn_norm.weight"),
        attn=_attention(config, source, at + "attn.", ratio),
        hc_ffn=_hyper(config, source, at + "hc_ffn", at + "ffn_norm.weight"),
        ffn=Mixture(
            gate=source.weight(at + "ffn.gate.weight"),
            gate_bias=None if hashed else source.vector(at + "ffn.gate.bias"),
            tid2eid=source.vector(at + "ffn.gate.tid2eid") if hashed else None,
            experts=[_expert(source, f"{at}ffn.experts.{e}.") for e in range(n_experts)],
            shared=_expert(source, at + "ffn.shared_experts."),
            top_k=config.num_experts_per_tok,
            scale=config.routed_scaling_factor,
            limit=config.swiglu_limit,
        ),
    )


def _hyper(config: V4Config, source: Source[M, V], at: str, norm: str) -> Hyper[V]:
    """A hyper-connection and the norm behind it."""
    return Hyper(
        fn=source.vector(at + "_fn"),
        base=source.vector(at + "_base"),
        scale=source.vector(at + "_scale"),
        norm=source.vector(norm),
        streams=config.hc_mult,
        iters=config.hc_sinkhorn_iters,
        norm_eps=config.rms_norm_eps,
        eps=config.hc_eps,
    )


def _attention(config: V4Config, source: Source[M, V], at: str, ratio: int) -> Attention[M, V]:
    indexer, freqs = None, frequencies(config, ratio)
    if Kind.of(ratio) is Kind.CSA:
        indexer = Indexer(
            wq_b=source.weight(at + "indexer.wq_b.weight"),
            weights_proj=source.weight(at + "indexer.weights_proj.weight"),
            compressor=_compressor(config, source, at + "indexer.compressor.", ratio, freqs, is_index=True),
            heads=config.index_n_heads,
            head_dim=config.index_head_dim,
            rope_dims=config.qk_rope_head_dim,
            top_k=config.index_topk,
        )
    compressor = _compressor(config, source, at + "compressor.", ratio, freqs, is_index=False) if ratio else None
    return Attention(
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
        freqs=freqs,
        ratio=ratio,
        heads=config.num_attention_heads,
        head_dim=config.head_dim,
        rope_dims=config.qk_rope_head_dim,
        groups=config.o_groups,
        window=config.sliding_window,
        eps=config.rms_norm_eps,
    )


def _compressor(
    config: V4Config, source: Source[M, V], at: str, ratio: int, freqs: np.ndarray, is_index: bool
) -> Compressor[M, V]:
    return Compressor(
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


def _expert(source: Source[M, V], at: str) -> Expert[M]:
    return Expert(**{w: source.weight(f"{at}{w}.weight") for w in ("w1", "w2", "w3")})
