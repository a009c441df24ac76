"""Checkpoints as `transformers` saves them, and weights in BF16 or F32 under official names: what their tensors and
their config.json are called officially (spec 2.4).

transformers 5 saves the module's names (`model.layers.0.self_attn.q_a_proj.weight`, experts stacked), or, by default,
something between: `model.layers.0.attn.wq_a.weight`, and `attn.norm` for what is `attn.kv_norm`. Both are read.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from v4kernels.formats import OFFICIAL

from v4cli.errors import ModelError
from v4cli.model.config import FIXED, FIXED_QUANTIZATION
from v4cli.model.schema import TensorSpec
from v4cli.store.header import TensorPlace

FLOATS = ("BF16", "F32")
RENAMES = [
    (re.compile(pattern), official)
    for pattern, official in (
        (r"^model\.", ""),
        (r"^embed_tokens\.", "embed."), (r"^lm_head\.", "head."), (r"^hc_head\.hc_", "hc_head_"),
        (r"\.input_layernorm\.", ".attn_norm."), (r"\.post_attention_layernorm\.", ".ffn_norm."),
        (r"\.(attn|ffn)_hc\.", r".hc_\1_"), (r"\.self_attn\.", ".attn."), (r"\.mlp\.", ".ffn."),
        (r"\.attn\.sinks$", ".attn.attn_sink"), (r"\.attn\.norm\.", ".attn.kv_norm."),
        (r"\.q_a_proj\.", ".wq_a."), (r"\.q_a_norm\.", ".q_norm."), (r"\.q_b_proj\.", ".wq_b."),
        (r"\.kv_proj\.", ".wkv."), (r"\.o_a_proj\.", ".wo_a."), (r"\.o_b_proj\.", ".wo_b."),
        (r"\.compressor\.indexer\.(scorer\.)?(weights_proj|wq_b)\.", r".indexer.\2."),
        (r"\.compressor\.indexer\.", ".indexer.compressor."),
        (r"\.compressor\.gate_proj\.", ".compressor.wgate."), (r"\.compressor\.kv_norm\.", ".compressor.norm."),
        (r"\.position_bias$", ".ape"), (r"\.gate\.e_score_correction_bias$", ".gate.bias"),
        (r"(experts\.(?:\d+\.)?)gate_proj\.", r"\1w1."), (r"(experts\.\d+\.|shared_experts\.)down_proj\.", r"\1w2."),
        (r"(experts\.(?:\d+\.)?)up_proj\.", r"\1w3."),
    )
]  # fmt: skip
STACKED = re.compile(r"(.+\.ffn\.experts)\.(gate_up_proj|down_proj)(\.weight)?")


def official_names(name: str, n_experts: int) -> list[str]:
    """What a tensor holds: one official tensor, or one or two matrices of every expert."""
    for pattern, official in RENAMES:
        name = pattern.sub(official, name)
    stacked = STACKED.fullmatch(name)
    if stacked is None:
        return [name]
    own = ("w1", "w3") if stacked[2] == "gate_up_proj" else ("w2",)
    return [f"{stacked[1]}.{expert}.{w}.weight" for expert in range(n_experts) for w in own]


def translated(places: Mapping[str, TensorPlace], n_experts: int) -> dict[str, TensorPlace]:
    """The same tensors by their official names. ModelError if two have one name."""
    found: dict[str, TensorPlace] = {}
    for name, place in places.items():
        for official, piece in _pieces(official_names(name, n_experts), name, place):
            if official in found:
                raise ModelError(f"{place.path}: tensor {name[:200]} is there twice, as {official}")
            found[official] = piece
    return found


def _pieces(names: list[str], name: str, place: TensorPlace) -> Iterator[tuple[str, TensorPlace]]:
    shape = place.spec.shape
    if len(names) == 1 and len(shape) < 3:
        yield names[0], place
        return
    each = 2 if ".w1." in names[0] else 1
    if len(shape) != 3 or shape[0] * each != len(names) or shape[1] % each:
        raise ModelError(f"{place.path}: tensor {name[:200]} has shape {list(shape)}, not that of all experts")
    spec = TensorSpec(place.spec.dtype, (shape[1] // each, shape[2]))
    for i, official in enumerate(names):
        yield official, replace(place, offset=place.offset + i * spec.nbytes, spec=spec)


def is_plain(names: Iterable[str]) -> bool:
    """Whether these are tensors of a checkpoint without scales, by their names alone."""
    return not any(name.endswith(("scale", "scale_inv")) and "hc" not in name for name in names)


def stands_for(spec: TensorSpec, official: TensorSpec) -> bool:
    """Whether a tensor may be converted to what an official one is: the same, or its values in BF16 or F32."""
    if spec == official or official.dtype not in OFFICIAL:
        return spec == official
    shape = (*official.shape[:-1], OFFICIAL[official.dtype].cols(official.shape[-1]))
    return spec.dtype in FLOATS and spec.shape == shape


def as_official(config: dict) -> dict:
    """A config.json of transformers in the words of the official one; what it does not say is left out."""
    out = {key: value for key, value in config.items() if key not in ("quantization_config", "rope_parameters")}
    out = FIXED | out | {"quantization_config": dict(FIXED_QUANTIZATION)}
    ropes, kinds, rates = (config.get(key) for key in ("rope_parameters", "layer_types", "compress_rates"))
    if isinstance(ropes, dict) and all(isinstance(ropes.get(kind), dict) for kind in ("main", "compress")):
        main, compress = ropes["main"], ropes["compress"]
        keys = ("type", "factor", "beta_fast", "beta_slow", "original_max_position_embeddings")
        out["rope_scaling"] = {key: compress.get(key) for key in keys} | {"type": compress.get("rope_type")}
        out["rope_theta"], out["compress_rope_theta"] = main.get("rope_theta"), compress.get("rope_theta")
    if "compress_ratios" not in out and isinstance(kinds, list) and isinstance(rates, dict):
        out["compress_ratios"] = [rates.get(kind, 0) if isinstance(kind, str) else None for kind in kinds]
    mixtures = config.get("mlp_layer_types")
    if "num_hash_layers" not in out and isinstance(mixtures, list):
        out["num_hash_layers"] = next((i for i, kind in enumerate(mixtures) if kind != "hash_moe"), len(mixtures))
    return out
