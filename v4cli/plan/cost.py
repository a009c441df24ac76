"""What a model costs, from its config alone: parameters, bytes on disk, KV bytes, bytes and FLOPs per decoded token
(spec 0, 2.3, 4), and the DeepSeek-V3.2 figures they are compared with.

What depends on quantization takes the tensors as they are stored: `expected_tensors(config)` for the official
checkpoint, `stored_tensors(layout(config, quant))` for a store.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from v4cli.model.config import V4Config
from v4cli.model.schema import TensorSpec, expected_tensors
from v4cli.plan.placement import Needs, Use
from v4cli.store.store import Part

ROPE_BYTES = 2  # the cache keeps RoPE dims in bf16
SCALE_GROUP = 64  # e4m3 dims per KV scale byte
KV_PADDING = 8  # the scale bytes of an entry are padded to a multiple of this
V32_KV_BYTES_PER_TOKEN = 61 * (656 + 132)
CHUNK = 512  # tokens the engine prefills at a time
CANDIDATES = 256  # tokens whose candidates for selection are held at a time, six numbers for each choice


@dataclass(frozen=True)
class Parameters:
    """Model values, draft blocks not counted."""

    total: int
    active: int  # touched by one token


@dataclass(frozen=True)
class PayloadBytes:
    """Tensor bytes by component; dense is what is left of the trunk."""

    experts: int
    dense: int
    embed: int
    head: int
    mtp: int
    n_tensors: int

    @property
    def total(self) -> int:
        return self.experts + self.dense + self.embed + self.head + self.mtp


@dataclass(frozen=True)
class KVBytes:
    """KV state at some context length."""

    compressed: int
    indexer: int
    windows: int

    @property
    def total(self) -> int:
        return self.compressed + self.indexer + self.windows


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one decoded token, two per multiply-add."""

    linear: float
    compressor: float
    indexer_projection: float
    indexer_scores: float
    attention: float
    ffn: float  # router included
    head: float
    router: float
    index_weight: float = 0.5  # FP4 scores; 1 for V3.2's FP8 indexer

    @property
    def fp8_equivalent(self) -> float:
        """FP8 counts once, BF16 (attention, compressor, router, head) twice, index scores by their precision."""
        once = self.linear + self.ffn - self.router + self.indexer_projection
        twice = self.attention + self.compressor + self.router + self.head
        return once + 2 * twice + self.index_weight * self.indexer_scores


def _component(name: str) -> str:
    if ".ffn.experts." in name and not name.startswith("mtp."):
        return "experts"
    first = name.split(".")[0]
    return first if first in ("mtp", "embed", "head") else "dense"


def parameters(config: V4Config) -> Parameters:
    """Total and active values of the trunk; the token-to-expert tables are not parameters."""
    counts = {"experts": 0, "embed": 0, "head": 0, "dense": 0}
    for name, spec in expected_tensors(config, with_mtp=False).items():
        if spec.dtype != "I64":
            counts[_component(name)] += spec.n_values
    used = counts["experts"] * config.num_experts_per_tok // config.n_routed_experts
    return Parameters(sum(counts.values()), counts["dense"] + counts["head"] + used)


def stored_tensors(parts: Mapping[str, Part]) -> dict[str, TensorSpec]:
    """The tensors of a store's parts, padding left out."""
    return {n: t.spec for part in parts.values() for n, t in part.tensors.items() if t.format != "pad"}


def payload_bytes(tensors: Mapping[str, TensorSpec]) -> PayloadBytes:
    """Bytes of stored tensors, to the byte."""
    totals = {"experts": 0, "dense": 0, "embed": 0, "head": 0, "mtp": 0}
    for name, spec in tensors.items():
        totals[_component(name)] += spec.nbytes
    return PayloadBytes(**totals, n_tensors=len(tensors))


def largest_expert(tensors: Mapping[str, TensorSpec]) -> int:
    """Bytes of the trunk's largest routed expert: they may differ in formats, and a place in memory holds any."""
    sizes: dict[str, int] = {}
    for name, spec in tensors.items():
        if _component(name) == "experts":
            expert = name.rsplit(".", 2)[0]
            sizes[expert] = sizes.get(expert, 0) + spec.nbytes
    return max(sizes.values())


def needs(config: V4Config, tensors: Mapping[str, TensorSpec]) -> Needs:
    """What running from these tensors takes, at a context of 0 tokens."""
    payload = payload_bytes(tensors)
    dense: dict[str, Use] = {}
    for name, spec in tensors.items():
        if _component(name) == "dense":
            block = ".".join(name.split(".")[:2]) if name.startswith("layers.") else "tail"
            read = 0 if name.endswith("tid2eid") else spec.nbytes  # of a table one row is read: next to nothing
            before = dense.get(block, Use(0, 0))
            dense[block] = Use(before.held + spec.nbytes, before.read + read)
    n_experts = config.num_hidden_layers * config.n_routed_experts
    bare = Needs(
        dense=tuple(dense.values()),
        head=payload.head,
        embed=Use(payload.embed, payload.embed // config.vocab_size),
        draft=payload.mtp,
        expert=largest_expert(tensors),
        n_experts=n_experts,
        experts_per_token=config.num_hidden_layers * config.num_experts_per_tok,
        experts_at_once=config.num_experts_per_tok,
        kv=Use(0, 0),
        work=0,
    )
    return at_context(bare, config, 0)


def at_context(bare: Needs, config: V4Config, n_tokens: int) -> Needs:
    """The same needs with the KV state and working memory of `n_tokens` of context."""
    return replace(
        bare,
        kv=Use(kv_bytes(config, n_tokens).total, kv_read_bytes(config, n_tokens)),
        work=work_bytes(config),
    )


def read_bytes_per_token(config: V4Config, tensors: Mapping[str, TensorSpec]) -> dict[str, int]:
    """Weight bytes that one decoded token reads, by component; draft blocks are not used."""
    asked = needs(config, tensors)
    return {
        "experts": asked.experts_per_token * asked.expert,
        "dense": sum(use.read for use in asked.dense),
        "head": asked.head,
        "embed": asked.embed.read,
    }


def entry_bytes(config: V4Config) -> tuple[int, int]:
    """Bytes of one KV entry and of one index key (spec 4.1: 584 and 68 for V4)."""
    plain = config.head_dim - config.qk_rope_head_dim
    scales = -(-(plain // SCALE_GROUP) // KV_PADDING) * KV_PADDING
    return (
        plain + ROPE_BYTES * config.qk_rope_head_dim + scales,
        config.index_head_dim // 2 + config.index_head_dim // 32,
    )


def kv_bytes(config: V4Config, n_tokens: int) -> KVBytes:
    """KV state in the official compressed layout at `n_tokens` of context."""
    kv, key = entry_bytes(config)
    ratios = config.compress_ratios[: config.num_hidden_layers]
    compressed = sum(n_tokens // r for r in ratios if r) * kv
    indexer = sum(n_tokens // r for r in ratios if r == 4) * key
    return KVBytes(compressed, indexer, len(ratios) * min(n_tokens, config.sliding_window) * kv)


def kv_bytes_per_token(config: V4Config) -> float:
    """Growth of the KV state per token of context."""
    kv, key = entry_bytes(config)
    return sum(kv / r + (key / r if r == 4 else 0) for r in config.compress_ratios[: config.num_hidden_layers] if r)


def kv_read_parts(config: V4Config, n_tokens: int) -> dict[str, int]:
    """KV bytes that one decoded token reads, by component: all index keys (none while every entry is chosen), the
    chosen entries of ratio 4, all of ratio 128."""
    kv, key = entry_bytes(config)
    ratios = config.compress_ratios[: config.num_hidden_layers]
    entries = n_tokens // 4
    return {
        "window": len(ratios) * min(n_tokens, config.sliding_window) * kv,
        "index_keys": ratios.count(4) * (entries if _selects(config, n_tokens) else 0) * key,
        "csa_entries": ratios.count(4) * min(config.index_topk, entries) * kv,
        "hca_entries": ratios.count(128) * (n_tokens // 128) * kv,
    }


def kv_read_bytes(config: V4Config, n_tokens: int) -> int:
    """The sum of `kv_read_parts`."""
    return sum(kv_read_parts(config, n_tokens).values())


def _selects(config: V4Config, n_tokens: int) -> bool:
    """Whether there are more entries than are chosen: until then nothing is scored."""
    return n_tokens // 4 > config.index_topk


def work_bytes(config: V4Config) -> int:
    """Working memory of one prefill chunk in fp32: residual streams, queries and attention output, index
    queries and candidates, and the compressors' unfinished blocks (spec 4.1)."""
    c = config
    ratios = c.compress_ratios[: c.num_hidden_layers]
    per_token = 2 * c.hc_mult * c.hidden_size + 2 * c.num_attention_heads * c.head_dim
    per_token += 2 * c.num_experts_per_tok * c.hidden_size
    index = CHUNK * c.index_n_heads * c.index_head_dim * 5 // 4 + CANDIDATES * 6 * c.index_topk if 4 in ratios else 0
    tails = {0: 0, 4: 2 * 8 * 2 * (c.head_dim + c.index_head_dim), 128: 2 * 127 * c.head_dim}
    return 4 * (CHUNK * per_token + index + sum(tails[r] for r in ratios))


def flops(config: V4Config, n_tokens: int) -> Flops:
    """One decoded token at `n_tokens` of context (formulas of spec 4.2)."""
    c = config
    d, h, hd = c.hidden_size, c.num_attention_heads, c.head_dim
    ratios = c.compress_ratios[: c.num_hidden_layers]
    n_csa, n_layers = ratios.count(4), len(ratios)
    out = h * hd * c.o_lora_rank + c.o_groups * c.o_lora_rank * d
    linear = 2 * (d * c.q_lora_rank + c.q_lora_rank * h * hd + d * hd + out) * n_layers
    keys = sum(_keys(c, r, n_tokens) for r in ratios)
    compressor = sum(2 * 2 * d * hd * (2 if r == 4 else 1) for r in ratios if r)
    index_width = c.index_n_heads * c.index_head_dim
    projection = 2 * (c.q_lora_rank * index_width + d * c.index_n_heads + 4 * d * c.index_head_dim)
    experts = 6 * d * c.moe_intermediate_size * (c.num_experts_per_tok + 1)
    router = 2 * d * c.n_routed_experts
    return Flops(
        linear=linear,
        compressor=compressor,
        indexer_projection=projection * n_csa,
        indexer_scores=2 * (n_tokens / 4) * index_width * n_csa,
        attention=4 * h * hd * keys,
        ffn=(experts + router) * n_layers,
        head=2 * d * c.vocab_size,
        router=router * n_layers,
    )


def token_macs(config: V4Config, n_tokens: int) -> float:
    """Multiply-adds of one prefilled token at `n_tokens` of context, head left out."""
    f = flops(config, n_tokens)
    work = f.linear + f.compressor + f.attention + f.ffn
    if _selects(config, n_tokens):
        work += f.indexer_projection + f.indexer_scores
    return work / 2


def _keys(config: V4Config, ratio: int, n_tokens: int) -> float:
    """Keys one query attends to in a layer."""
    entries = min(config.index_topk, n_tokens / 4) if ratio == 4 else n_tokens / 128 if ratio else 0
    return min(n_tokens, config.sliding_window) + entries


def v32_flops(n_tokens: int) -> Flops:
    """DeepSeek-V3.2 decoding one token: 61 layers of absorbed MLA over the top 2,048, lightning indexer in FP8."""
    d, ql, heads, latent, rope = 7168, 1536, 128, 512, 64
    attention_weights = d * ql + ql * heads * 192 + d * (latent + rope) + 2 * heads * 128 * latent + heads * 128 * d
    ffn = 58 * (6 * d * 2048 * 9 + 2 * d * 256) + 3 * 6 * d * 18432
    return Flops(
        linear=61 * 2 * attention_weights,
        compressor=0.0,
        indexer_projection=61 * 2 * (ql * 64 * 128 + d * 128 + d * 64),
        indexer_scores=61 * 2 * n_tokens * 64 * 128,
        attention=61 * 2 * heads * min(n_tokens, 2048) * (2 * latent + rope),
        ffn=ffn,
        head=2 * d * 129280,
        router=0.0,  # the report's 1,145.8 GF counts V3.2's router once, with its FFN
        index_weight=1.0,
    )
