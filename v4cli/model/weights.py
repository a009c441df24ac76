"""The tree of weights the forward walks, built once from any source of official tensor names (spec 2.1).

A source answers `weight(name)` with a matrix handle (`Weight`, for ops.linear and friends) and `vector(name)`
with an fp32 or integer tensor. A checkpoint is one source; the trainer's parameters are another.
"""

from types import SimpleNamespace
from typing import Protocol

import torch
from torch import Tensor
from v4kernels import native
from v4kernels.cpu import PackedWeight
from v4kernels.reference import Weight

KINDS = {"F8_E4M3": "fp8", "I8": "fp4", "BF16": "bf16", "F32": "f32"}


class Source(Protocol):
    def weight(self, name: str) -> Weight: ...
    def vector(self, name: str) -> Tensor: ...


def build(config, source: Source) -> SimpleNamespace:
    """The weight tree of the trunk (mtp.* is not part of it)."""
    return SimpleNamespace(
        embed=source.weight("embed.weight"),
        head=source.weight("head.weight"),
        norm=source.vector("norm.weight"),
        hc_head=_hyper(source, "hc_head"),
        layers=[_layer(config, source, i) for i in range(config.num_hidden_layers)],
    )


def _layer(config, source: Source, i: int) -> SimpleNamespace:
    at = f"layers.{i}."
    return SimpleNamespace(
        hc_attn=_hyper(source, at + "hc_attn"),
        attn_norm=source.vector(at + "attn_norm.weight"),
        attn=_attention(source, at + "attn.", config.compress_ratios[i]),
        hc_ffn=_hyper(source, at + "hc_ffn"),
        ffn_norm=source.vector(at + "ffn_norm.weight"),
        ffn=_ffn(config, source, at + "ffn.", hashed=i < config.num_hash_layers),
    )


def _hyper(source: Source, at: str) -> tuple[Tensor, Tensor, Tensor]:
    """fn, base, scale of one hyper-connection, in the order the ops take them."""
    return tuple(source.vector(f"{at}_{part}") for part in ("fn", "base", "scale"))


def _attention(source: Source, at: str, ratio: int) -> SimpleNamespace:
    indexer = None
    if ratio == 4:
        indexer = SimpleNamespace(
            wq_b=source.weight(at + "indexer.wq_b.weight"),
            weights_proj=source.weight(at + "indexer.weights_proj.weight"),
            compressor=_compressor(source, at + "indexer.compressor.", is_index=True),
        )
    return SimpleNamespace(
        attn_sink=source.vector(at + "attn_sink"),
        wq_a=source.weight(at + "wq_a.weight"),
        q_norm=source.vector(at + "q_norm.weight"),
        wq_b=source.weight(at + "wq_b.weight"),
        wkv=source.weight(at + "wkv.weight"),
        kv_norm=source.vector(at + "kv_norm.weight"),
        wo_a=source.weight(at + "wo_a.weight"),
        wo_b=source.weight(at + "wo_b.weight"),
        compressor=_compressor(source, at + "compressor.", is_index=False) if ratio else None,
        indexer=indexer,
    )


def _compressor(source: Source, at: str, is_index: bool) -> SimpleNamespace:
    return SimpleNamespace(
        ape=source.vector(at + "ape"),
        wkv=source.weight(at + "wkv.weight"),
        wgate=source.weight(at + "wgate.weight"),
        norm=source.vector(at + "norm.weight"),
        is_index=is_index,
    )


def _ffn(config, source: Source, at: str, hashed: bool) -> SimpleNamespace:
    return SimpleNamespace(
        gate=source.weight(at + "gate.weight"),
        gate_bias=None if hashed else source.vector(at + "gate.bias"),
        tid2eid=source.vector(at + "gate.tid2eid") if hashed else None,
        experts=[_expert(source, f"{at}experts.{e}.") for e in range(config.n_routed_experts)],
        shared_experts=_expert(source, at + "shared_experts."),
    )


def _expert(source: Source, at: str) -> SimpleNamespace:
    return SimpleNamespace(**{w: source.weight(f"{at}{w}.weight") for w in ("w1", "w2", "w3")})


class LazyWeight(Weight):
    """A matrix dequantized from the mapped file at every use: slow, but needs no memory of its own."""

    __slots__ = ("_load",)

    def __init__(self, kind: str, load):
        super().__init__(kind)
        self._load = load

    def dense(self) -> Tensor:
        return self._load()


def stored_format(checkpoint, name: str) -> str:
    """Format of a matrix in a store or an official checkpoint: one the kernels read (native.FORMATS) or "keep"."""
    form = getattr(checkpoint, "formats", {}).get(name, "keep")
    return "fp4" if form == "keep" and checkpoint.official_dtype(name) == "I8" else form


class CheckpointSource:
    """Weights of a store or an official checkpoint, dequantized to fp32 at load, or at every use with `lazy`.

    With `packed`, matrices in a format the kernels read stay as they are in the mapped file.
    """

    def __init__(self, checkpoint, lazy: bool, packed: bool = False):
        self.checkpoint = checkpoint
        self.lazy = lazy
        self.packed = packed

    def weight(self, name: str) -> Weight:
        kind = KINDS[self.checkpoint.official_dtype(name)]
        form = stored_format(self.checkpoint, name)
        if self.packed and form in native.FORMATS:
            return self._packed(name, kind, form)
        if self.lazy:
            return LazyWeight(kind, lambda: self.checkpoint.dense(name))
        return Weight(kind, self.checkpoint.dense(name))

    def _packed(self, name: str, kind: str, form: str) -> PackedWeight:
        codes, scale_name = self.checkpoint.tensor(name), name.removesuffix("weight") + "scale"
        scale = self.checkpoint.tensor(scale_name)
        if not self.lazy:  # codes cannot be but finite; of a model beyond memory not every page is read for this
            self.checkpoint.finite(scale_name, scale.float())
        return PackedWeight(kind, codes, scale, form, lambda: self.checkpoint.dense(name))

    def vector(self, name: str) -> Tensor:
        tensor = self.checkpoint.tensor(name)
        return tensor.clone() if tensor.dtype == torch.int64 else tensor.float()
