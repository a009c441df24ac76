"""Floating-point operations of a token, by component, and DeepSeek-V3.2's to compare them with (spec 4.2)."""

from dataclasses import dataclass

from v4cli.model.config import V4Config
from v4cli.plan.cost import selects

STEPS = 16
V32_KV_BYTES_PER_TOKEN = 61 * (656 + 132)


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


def routed_share(config: V4Config) -> float:
    """Of the weight bytes that a decoded token reads, those of its routed experts: FP4 as they are, all else int8."""
    f, c = flops(config, 0), config
    routed = 6 * c.hidden_size * c.moe_intermediate_size * c.num_experts_per_tok * c.num_hidden_layers
    others = f.linear + f.compressor + f.indexer_projection + f.ffn + f.head - routed
    fp4, int8 = 1 / 2 + 1 / 32, 1 + 2 / 32
    return fp4 * routed / (fp4 * routed + int8 * others)


def token_macs(config: V4Config, n_tokens: int) -> float:
    """Multiply-adds of one prefilled token at `n_tokens` of context, head left out."""
    f = flops(config, n_tokens)
    work = f.linear + f.compressor + f.attention + f.ffn
    if selects(config, n_tokens):
        work += f.indexer_projection + f.indexer_scores
    return work / 2


def prefill_macs(config: V4Config, begin: int, end: int) -> float:
    """The same of all tokens from `begin` to `end`, as a sum over the middles of STEPS parts."""
    step = (end - begin) / STEPS
    return step * sum(token_macs(config, int(begin + (i + 0.5) * step)) for i in range(STEPS))


def prefill_s_left(config: V4Config, begin: int, done: int, total: int, seconds: float) -> float | None:
    """Seconds that a prefill from `begin` to `total` tokens has still to go if it came to `done` in `seconds`: by the
    work that is left. None before anything is done."""
    work = prefill_macs(config, begin, done)
    return seconds * prefill_macs(config, done, total) / work if work else None


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
