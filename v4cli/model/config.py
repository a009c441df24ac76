"""The model's config: one frozen dataclass with the official config.json's names, validated on the way in (spec 1.1).

V4 Flash and Pro, April and 0731/0813, and any smaller model of the same architecture. V4.1 is refused.
"""

from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

from v4cli import jsonfile
from v4cli.errors import ModelError

LIMIT = 1 << 24  # no size in a config is larger than this
MAX_BLOCKS = 1024
MAX_EXPERTS = 1 << 15  # of all blocks together; Pro has 24,576, and each is six tensors with a name
RATIOS = (0, 4, 128)

# Keys whose value this engine takes for granted.
FIXED = {
    "model_type": "deepseek_v4",
    "attention_bias": False,
    "expert_dtype": "fp4",
    "hidden_act": "silu",
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_key_value_heads": 1,
    "scoring_func": "sqrtsoftplus",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
}
FIXED_QUANTIZATION = {
    "fmt": "e4m3",
    "quant_method": "fp8",
    "scale_fmt": "ue8m0",
    "weight_block_size": [128, 128],
}
FLATTENED = {
    "rope_factor": "factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "original_max_position_embeddings": "original_max_position_embeddings",
}
NOT_POSITIVE = {"bos_token_id", "eos_token_id", "num_hash_layers", "num_nextn_predict_layers"}  # may be 0


@dataclass(frozen=True)
class V4Config:
    """Sizes and constants of one model; field names are the official keys."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_lora_rank: int
    o_groups: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    num_hash_layers: int
    sliding_window: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    hc_mult: int
    hc_sinkhorn_iters: int
    max_position_embeddings: int
    num_nextn_predict_layers: int
    bos_token_id: int
    eos_token_id: int
    original_max_position_embeddings: int
    hc_eps: float
    rms_norm_eps: float
    rope_theta: float
    compress_rope_theta: float
    rope_factor: float
    beta_fast: float
    beta_slow: float
    routed_scaling_factor: float
    swiglu_limit: float
    compress_ratios: tuple[int, ...]  # one per layer, then those of the mtp blocks
    dspark_block_size: int | None = None
    dspark_noise_token_id: int | None = None
    dspark_target_layer_ids: tuple[int, ...] | None = None
    dspark_markov_rank: int | None = None
    prompt_contract: str | None = None  # of another release; nano's, which has DSpark and April's prompts

    @classmethod
    def load(cls, path: Path) -> "V4Config":
        """Read config.json, or the one in folder `path`. ModelError names the file and the key."""
        path = Path(path)
        if path.is_dir():
            path = path / "config.json"
        return cls.from_dict(jsonfile.read(path, limit=jsonfile.SMALL), str(path))

    @classmethod
    def from_dict(cls, data: dict, where: str = "config.json") -> "V4Config":
        """Validate a parsed config.json."""
        if not isinstance(data, dict):
            raise ModelError(f"{where}: not a JSON object")
        kind = data.get("model_type")
        if isinstance(kind, str) and kind.startswith("deepseek_v41"):
            raise ModelError(f"{where}: DeepSeek-V4.1 has a different architecture and is not supported")
        _check_fixed(data, FIXED, where)
        quantization, scaling = data.get("quantization_config"), data.get("rope_scaling")
        if not isinstance(quantization, dict) or not isinstance(scaling, dict):
            raise ModelError(f"{where}: quantization_config and rope_scaling must be objects")
        _check_fixed(quantization, FIXED_QUANTIZATION, f"{where}: quantization_config")
        _check_fixed(scaling, {"type": "yarn"}, f"{where}: rope_scaling")
        flat = data | {ours: scaling.get(theirs) for ours, theirs in FLATTENED.items()}
        values = {f.name: _value(f, flat.get(f.name), where) for f in fields(cls)}
        config = cls(**values)
        config._check_relations(where)
        return config

    def _check_relations(self, where: str) -> None:
        n, blocks = self.num_hidden_layers, self.num_hidden_layers + self.n_mtp_blocks
        dspark = [getattr(self, name) is None for name in DSPARK_FIELDS]
        checks = (
            (len(self.compress_ratios) >= n, "compress_ratios is shorter than num_hidden_layers"),
            (set(self.compress_ratios) <= set(RATIOS), f"compress_ratios may hold only {RATIOS}"),
            (not any(self.compress_ratios[n:]), "compress_ratios of the mtp blocks must be 0"),
            (blocks <= MAX_BLOCKS, f"num_hidden_layers and num_nextn_predict_layers: more than {MAX_BLOCKS} blocks"),
            (
                self.num_attention_heads % self.o_groups == 0,
                "num_attention_heads is not a multiple of o_groups",
            ),
            (self.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim is odd"),
            (self.head_dim > self.qk_rope_head_dim, "head_dim must exceed qk_rope_head_dim"),
            (
                (self.head_dim - self.qk_rope_head_dim) % 64 == 0,
                "head_dim - qk_rope_head_dim: not a multiple of 64",
            ),
            (self.index_head_dim >= self.qk_rope_head_dim, "index_head_dim is below qk_rope_head_dim"),
            (self.index_head_dim & (self.index_head_dim - 1) == 0, "index_head_dim is not a power of two"),
            (self.index_head_dim % 32 == 0, "index_head_dim is not a multiple of 32"),
            (self.hidden_size % 32 == 0, "hidden_size is not a multiple of 32"),
            (self.moe_intermediate_size % 32 == 0, "moe_intermediate_size is not a multiple of 32"),
            (
                self.num_experts_per_tok <= self.n_routed_experts,
                "num_experts_per_tok exceeds n_routed_experts",
            ),
            (
                blocks * self.n_routed_experts <= MAX_EXPERTS,
                f"n_routed_experts: {blocks} blocks of {self.n_routed_experts} are more than {MAX_EXPERTS} in all",
            ),
            (self.num_hash_layers <= n, "num_hash_layers exceeds num_hidden_layers"),
            (self.bos_token_id < self.vocab_size, "bos_token_id is outside the vocabulary"),
            (self.eos_token_id < self.vocab_size, "eos_token_id is outside the vocabulary"),
            (min(self.rope_theta, self.compress_rope_theta) > 1, "rope_theta or compress_rope_theta is not above 1"),
            (max(self.sliding_window, self.index_topk) <= 1 << 16, "sliding_window or index_topk is beyond 65536"),
            (self.hc_mult <= 64 and self.hc_sinkhorn_iters <= 1000, "hc_mult or hc_sinkhorn_iters is absurd"),
            (all(dspark) or not any(dspark), "dspark_* keys are incomplete"),
        )
        for ok, message in checks:
            if not ok:
                raise ModelError(f"{where}: {message}")

    @property
    def release(self) -> str:
        """ "april" or "0731" (Flash-0731, Pro-0813): told apart by the dspark_* keys."""
        return "april" if self.dspark_block_size is None else "0731"

    @property
    def contract(self) -> str:
        """How prompts are written: as the release's, unless config.json says otherwise."""
        return self.prompt_contract or self.release

    @property
    def n_mtp_blocks(self) -> int:
        """Draft blocks shipped: config says 1 for DSpark although three are in the files."""
        return self.num_nextn_predict_layers if self.dspark_block_size is None else 3

    def to_dict(self) -> dict:
        """A config.json that loads to the same config."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        out = {"architectures": ["DeepseekV4ForCausalLM"], "torch_dtype": "bfloat16", **FIXED}
        out |= {k: list(v) if isinstance(v, tuple) else v for k, v in own.items() if v is not None}
        scaling = {theirs: out.pop(ours) for ours, theirs in FLATTENED.items()}
        quantization = FIXED_QUANTIZATION | {"activation_scheme": "dynamic"}
        return out | {"rope_scaling": {"type": "yarn", **scaling}, "quantization_config": quantization}


RELEASES = ("april", "0731")
DSPARK_FIELDS = (
    "dspark_block_size",
    "dspark_noise_token_id",
    "dspark_target_layer_ids",
    "dspark_markov_rank",
)


def _check_fixed(data: dict, fixed: dict, where: str) -> None:
    for key, wanted in fixed.items():
        if data.get(key) != wanted or type(data.get(key)) is not type(wanted):
            raise ModelError(f"{where}: {key} is {jsonfile.shown(data.get(key))}, this engine needs {wanted!r}")


def _value(field: Field, value: Any, where: str) -> Any:
    """One key's value, type and range checked."""
    name = field.name
    if value is None and name in (*DSPARK_FIELDS, "prompt_contract"):
        return None
    if name == "prompt_contract":
        if value not in RELEASES:
            raise ModelError(f"{where}: {name} must be one of {', '.join(RELEASES)}, not {jsonfile.shown(value)}")
        return value
    if name in ("compress_ratios", "dspark_target_layer_ids"):
        if not isinstance(value, list) or len(value) > 4096 or not all(_is_size(v) for v in value):
            raise ModelError(f"{where}: {name} must be a list of small non-negative integers")
        return tuple(value)
    if field.type is float or field.type == "float":
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 1e-30 < value < 1e12:
            raise ModelError(f"{where}: {name} must be a number between 1e-30 and 1e12, not {jsonfile.shown(value)}")
        return float(value)
    if not _is_size(value) or (value == 0 and name not in NOT_POSITIVE):
        raise ModelError(f"{where}: {name} must be a positive integer below {LIMIT}, not {jsonfile.shown(value)}")
    return value


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LIMIT
