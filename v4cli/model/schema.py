"""Which tensors an official checkpoint holds, with dtype and shape, from the config alone (spec 2.1)."""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

from v4kernels.formats import DTYPES, FORMATS, OFFICIAL, Format

from v4cli.model.config import V4Config


@dataclass(frozen=True)
class TensorSpec:
    """safetensors dtype and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @cached_property  # of tens of thousands of experts all share theirs
    def nbytes(self) -> int:
        return DTYPES[self.dtype].n_bytes * math.prod(self.shape)

    @property
    def n_values(self) -> int:
        """Model values held by a tensor of an official checkpoint; scales count nothing."""
        count = math.prod(self.shape)
        return 0 if self.dtype == "F8_E8M0" else OFFICIAL[self.dtype].cols(count) if self.dtype in OFFICIAL else count


@lru_cache(maxsize=1000)  # of tens of thousands of experts all are alike
def stored_as(form: Format, rows: int, cols: int) -> tuple[tuple[str, TensorSpec], ...]:
    """What a matrix is in a format: `weight`, and `scale` if it is quantized."""
    return tuple((half, TensorSpec(dtype, shape)) for half, (dtype, shape) in form.tensors(rows, cols).items())


class _Builder:
    """Collects specs under a name prefix."""

    def __init__(self, config: V4Config):
        self.c = config
        self.out: dict[str, TensorSpec] = {}

    def add(self, name: str, dtype: str, *shape: int) -> None:
        self.out[name] = TensorSpec(dtype, shape)

    def fp8(self, name: str, rows: int, cols: int) -> None:
        self.quantized(name, "fp8", rows, cols)

    def fp4(self, name: str, rows: int, cols: int) -> None:
        self.quantized(name, "fp4", rows, cols)

    def quantized(self, name: str, form: str, rows: int, cols: int) -> None:
        for half, spec in stored_as(FORMATS[form], rows, cols):
            self.out[f"{name}.{half}"] = spec

    def hyper(self, at: str, n_mixes: int, n_scales: int) -> None:
        self.add(at + "_fn", "F32", n_mixes, self.c.hc_mult * self.c.hidden_size)
        self.add(at + "_base", "F32", n_mixes)
        self.add(at + "_scale", "F32", n_scales)

    def compressor(self, at: str, ratio: int, dim: int) -> None:
        width = 2 * dim if ratio == 4 else dim  # overlap: a half for the next block, a half for the own
        self.add(at + "ape", "F32", ratio, width)
        self.add(at + "norm.weight", "BF16", dim)
        self.add(at + "wkv.weight", "BF16", width, self.c.hidden_size)
        self.add(at + "wgate.weight", "BF16", width, self.c.hidden_size)

    def attention(self, at: str, ratio: int) -> None:
        c = self.c
        self.add(at + "attn_sink", "F32", c.num_attention_heads)
        self.fp8(at + "wq_a", c.q_lora_rank, c.hidden_size)
        self.add(at + "q_norm.weight", "BF16", c.q_lora_rank)
        self.fp8(at + "wq_b", c.num_attention_heads * c.head_dim, c.q_lora_rank)
        self.fp8(at + "wkv", c.head_dim, c.hidden_size)
        self.add(at + "kv_norm.weight", "BF16", c.head_dim)
        self.fp8(at + "wo_a", c.o_groups * c.o_lora_rank, c.num_attention_heads * c.head_dim // c.o_groups)
        self.fp8(at + "wo_b", c.hidden_size, c.o_groups * c.o_lora_rank)
        if ratio:
            self.compressor(at + "compressor.", ratio, c.head_dim)
        if ratio == 4:
            self.fp8(at + "indexer.wq_b", c.index_n_heads * c.index_head_dim, c.q_lora_rank)
            self.add(at + "indexer.weights_proj.weight", "BF16", c.index_n_heads, c.hidden_size)
            self.compressor(at + "indexer.compressor.", ratio, c.index_head_dim)

    def ffn(self, at: str, hashed: bool) -> None:
        c = self.c
        self.add(at + "gate.weight", "BF16", c.n_routed_experts, c.hidden_size)
        if hashed:
            self.add(at + "gate.tid2eid", "I64", c.vocab_size, c.num_experts_per_tok)
        else:
            self.add(at + "gate.bias", "F32", c.n_routed_experts)
        for e in range(c.n_routed_experts):
            self.fp4(f"{at}experts.{e}.w1", c.moe_intermediate_size, c.hidden_size)
            self.fp4(f"{at}experts.{e}.w2", c.hidden_size, c.moe_intermediate_size)
            self.fp4(f"{at}experts.{e}.w3", c.moe_intermediate_size, c.hidden_size)
        self.fp8(at + "shared_experts.w1", c.moe_intermediate_size, c.hidden_size)
        self.fp8(at + "shared_experts.w2", c.hidden_size, c.moe_intermediate_size)
        self.fp8(at + "shared_experts.w3", c.moe_intermediate_size, c.hidden_size)

    def block(self, at: str, ratio: int, hashed: bool) -> None:
        c = self.c
        n_mixes = c.hc_mult * (2 + c.hc_mult)
        self.attention(at + "attn.", ratio)
        self.ffn(at + "ffn.", hashed)
        for norm in ("attn_norm", "ffn_norm"):
            self.add(f"{at}{norm}.weight", "BF16", c.hidden_size)
        for part in ("hc_attn", "hc_ffn"):
            self.hyper(at + part, n_mixes, 3)

    def tail(self, at: str) -> None:
        """Final norm and stream collapse, of the trunk or of a draft head."""
        self.add(at + "norm.weight", "BF16", self.c.hidden_size)
        self.hyper(at + "hc_head", self.c.hc_mult, 1)

    def mtp_april(self, at: str) -> None:
        self.block(at, 0, hashed=False)
        for name in ("e_proj", "h_proj"):
            self.fp8(at + name, self.c.hidden_size, self.c.hidden_size)
        for name in ("enorm", "hnorm"):
            self.add(f"{at}{name}.weight", "BF16", self.c.hidden_size)
        self.tail(at)

    def dspark(self) -> None:
        c, targets, rank = self.c, self.c.dspark_target_layer_ids, self.c.dspark_markov_rank
        assert targets is not None and rank is not None  # a config has all of DSpark's fields or none
        for i in range(3):
            self.block(f"mtp.{i}.", 0, hashed=False)
        self.fp8("mtp.0.main_proj", c.hidden_size, len(targets) * c.hidden_size)
        self.add("mtp.0.main_norm.weight", "BF16", c.hidden_size)
        self.tail("mtp.2.")
        for w in ("markov_w1", "markov_w2"):
            self.add(f"mtp.2.markov_head.{w}.weight", "BF16", c.vocab_size, rank)
        self.add("mtp.2.confidence_head.proj.weight", "BF16", 1, c.hidden_size + rank)


def expected_tensors(config: V4Config, with_mtp: bool = True) -> dict[str, TensorSpec]:
    """Every tensor name with its spec; the draft blocks (mtp.*) are optional."""
    b = _Builder(config)
    b.add("embed.weight", "BF16", config.vocab_size, config.hidden_size)
    b.add("head.weight", "BF16", config.vocab_size, config.hidden_size)
    b.tail("")
    for i in range(config.num_hidden_layers):
        b.block(f"layers.{i}.", config.compress_ratios[i], hashed=i < config.num_hash_layers)
    if with_mtp and config.release == "0731":
        b.dspark()
    elif with_mtp:
        for i in range(config.n_mtp_blocks):
            b.mtp_april(f"mtp.{i}.")
    return b.out
