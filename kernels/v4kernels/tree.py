"""A model's weights as a tree, in the order the forward walks it: what an op table is bound to (api.py).

`M` is a matrix (out, in) and `V` a vector or small tensor, each of the kind the backend takes; names and shapes are
those of the official checkpoint (spec 2.1). Beside its weights every node holds the sizes that its ops need.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

import numpy as np

M = TypeVar("M")
V = TypeVar("V")

OVERLAPPED = 4  # the compression ratio whose blocks overlap, and whose entries are chosen by an indexer


class Kind(Enum):
    """What a layer's tokens attend to beside their window."""

    WINDOW = "window"  # nothing
    CSA = "csa"  # those of the lightly compressed entries that the indexer chooses
    HCA = "hca"  # all heavily compressed entries

    @classmethod
    def of(cls, ratio: int) -> "Kind":
        """By compression ratio: tokens per entry, 0 for none."""
        return cls.WINDOW if not ratio else cls.CSA if ratio == OVERLAPPED else cls.HCA


@dataclass(frozen=True, eq=False, slots=True)
class Hyper(Generic[V]):
    """A hyper-connection and the norm behind it (spec 3.2); S streams of D."""

    fn: V  # (2S + S*S, S*D); (S, S*D) of the final collapse
    base: V  # (rows of fn,)
    scale: V  # (3,); (1,) of the final collapse
    norm: V  # (D,)
    streams: int
    iters: int
    norm_eps: float
    eps: float


@dataclass(frozen=True, eq=False, slots=True)
class Compressor(Generic[M, V]):
    """Makes an entry of each `ratio` tokens (spec 3.6), C channels a token: twice head_dim if blocks overlap."""

    ape: V  # (ratio, C)
    wkv: M  # (C, D)
    wgate: M  # (C, D)
    norm: V  # (head_dim,)
    freqs: np.ndarray  # (rope_dims / 2,) fp32
    is_index: bool  # entries are index keys (spec 3.7)
    ratio: int
    head_dim: int
    rope_dims: int
    eps: float


@dataclass(frozen=True, eq=False, slots=True)
class Indexer(Generic[M, V]):
    """Chooses entries (spec 3.7)."""

    wq_b: M  # (heads * head_dim, q_lora_rank)
    weights_proj: M  # (heads, D)
    compressor: Compressor[M, V]
    heads: int
    head_dim: int
    rope_dims: int
    top_k: int


@dataclass(frozen=True, eq=False, slots=True)
class Attention(Generic[M, V]):
    """Attention of one layer (spec 3.3-3.8)."""

    sink: V  # (heads,)
    wq_a: M  # (q_lora_rank, D)
    q_norm: V  # (q_lora_rank,)
    wq_b: M  # (heads * head_dim, q_lora_rank)
    wkv: M  # (head_dim, D)
    kv_norm: V  # (head_dim,)
    wo_a: M  # (groups * o_lora_rank, heads / groups * head_dim)
    wo_b: M  # (D, groups * o_lora_rank)
    compressor: Compressor[M, V] | None
    indexer: Indexer[M, V] | None
    freqs: np.ndarray  # (rope_dims / 2,) fp32, radians per token
    ratio: int
    heads: int
    head_dim: int
    rope_dims: int
    groups: int
    window: int
    eps: float

    @property
    def kind(self) -> Kind:
        return Kind.of(self.ratio)


@dataclass(frozen=True, eq=False, slots=True)
class Expert(Generic[M]):
    """A SwiGLU MLP: w2(silu(w1 x) * w3 x)."""

    w1: M  # (I, D)
    w3: M  # (I, D)
    w2: M  # (D, I)


@dataclass(frozen=True, eq=False, slots=True)
class Mixture(Generic[M, V]):
    """Router and experts of one layer (spec 3.10). Hash layers have tid2eid, the others gate_bias."""

    gate: M  # (E, D)
    gate_bias: V | None  # (E,)
    tid2eid: V | None  # (vocab_size, top_k) int64
    experts: Sequence[Expert[M]]  # none where a bank of its own holds them
    shared: Expert[M]
    top_k: int
    scale: float
    limit: float


@dataclass(frozen=True, eq=False, slots=True)
class Layer(Generic[M, V]):
    hc_attn: Hyper[V]
    attn: Attention[M, V]
    hc_ffn: Hyper[V]
    ffn: Mixture[M, V]


@dataclass(frozen=True, eq=False, slots=True)
class Tree(Generic[M, V]):
    embed: M  # (vocab_size, D)
    layers: Sequence[Layer[M, V]]
    hc_head: Hyper[V]
    head: M  # (vocab_size, D)


@dataclass(frozen=True, eq=False, slots=True)
class Dspark(Generic[M, V]):
    """Draft blocks of 0731 and 0813 (spec 3.11): `size` tokens at a time, from what the trunk's layers gave."""

    tree: Tree[M, V]  # the blocks and their own collapse; embedding and head are the trunk's
    main_proj: M  # (D, targets * D)
    main_norm: V  # (D,)
    markov_in: M  # (vocab_size, rank)
    markov_out: M  # (vocab_size, rank)
    confidence: V  # (1, D + rank)
    targets: tuple[int, ...]  # layers of the trunk whose results are looked at
    size: int
    noise: int  # token id
    eps: float


@dataclass(frozen=True, eq=False, slots=True)
class Mtp(Generic[M, V]):
    """Draft block of April (spec 3.11): one token, from the trunk's last streams and the token that is known."""

    tree: Tree[M, V]  # the block and its own collapse; embedding and head are the trunk's
    e_proj: M  # (D, D)
    h_proj: M  # (D, D)
    enorm: V  # (D,)
    hnorm: V  # (D,)
    eps: float
