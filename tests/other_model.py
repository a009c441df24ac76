"""The same model in an independent implementation, that of transformers, made of an official-format checkpoint."""

import json

import pytest
import torch

from v4cli.store.checkpoint import Checkpoint

RENAMES = (
    ("embed.", "model.embed_tokens."), ("head.weight", "lm_head.weight"), ("norm.weight", "model.norm.weight"),
    ("hc_head_", "model.hc_head.hc_"),
)  # fmt: skip
LAYER_RENAMES = (
    ("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"), ("hc_attn_", "attn_hc."),
    ("hc_ffn_", "ffn_hc."), ("ffn.gate.bias", "mlp.gate.e_score_correction_bias"), ("ffn.", "mlp."),
    ("attn.attn_sink", "attn.sinks"), ("attn.wq_a", "attn.q_a_proj"), ("attn.q_norm", "attn.q_a_norm"),
    ("attn.wq_b", "attn.q_b_proj"), ("attn.wkv", "attn.kv_proj"), ("attn.wo_a", "attn.o_a_proj"),
    ("attn.wo_b", "attn.o_b_proj"), ("attn.indexer.compressor.", "attn.compressor.indexer."),
    ("attn.indexer.wq_b", "attn.compressor.indexer.q_b_proj"),
    ("attn.indexer.weights_proj", "attn.compressor.indexer.scorer.weights_proj"),
    (".wkv", ".kv_proj"), (".wgate", ".gate_proj"), (".ape", ".position_bias"),
    ("compressor.norm", "compressor.kv_norm"), ("indexer.norm", "indexer.kv_norm"), ("attn.", "self_attn."),
    ("shared_experts.w1", "shared_experts.gate_proj"), ("shared_experts.w2", "shared_experts.down_proj"),
    ("shared_experts.w3", "shared_experts.up_proj"),
)  # fmt: skip


def other_name(name: str) -> str:
    """Official tensor name to the other implementation's (spec 2.4)."""
    if not name.startswith("layers."):
        return next(new + name[len(old) :] for old, new in RENAMES if name.startswith(old))
    _, i, rest = name.split(".", 2)
    for old, new in LAYER_RENAMES:
        rest = new + rest[len(old) :] if rest.startswith(old) else rest.replace(old, new) if old[0] == "." else rest
        if old in ("compressor.norm", "indexer.norm"):
            rest = rest.replace(old, new)
        if old.startswith("shared"):
            rest = rest.replace(old, new)
    return f"model.layers.{i}.{rest}"


def other_model(checkpoint: Checkpoint):
    transformers = pytest.importorskip("transformers")
    cfg = json.loads((checkpoint.path / "config.json").read_text())
    cfg.pop("quantization_config")
    kwargs = {k: v for k, v in cfg.items() if k not in ("architectures", "model_type", "torch_dtype")}
    config = transformers.DeepseekV4Config(**kwargs, attn_implementation="eager")
    model = transformers.DeepseekV4ForCausalLM(config).float().eval()
    state = {}
    for name, place in checkpoint.places.items():
        if name.endswith(".scale") or ".ffn.experts." in name:
            continue
        value = checkpoint.tensor(name) if place.spec.dtype == "I64" else checkpoint.dense(name)
        state[other_name(name)] = value
    for i in range(checkpoint.config.num_hidden_layers):
        at = f"layers.{i}.ffn.experts."
        experts = [
            {w: checkpoint.dense(f"{at}{e}.{w}.weight") for w in ("w1", "w2", "w3")}
            for e in range(checkpoint.config.n_routed_experts)
        ]
        to = f"model.layers.{i}.mlp.experts."
        state[to + "gate_up_proj"] = torch.stack([torch.cat((e["w1"], e["w3"])) for e in experts])
        state[to + "down_proj"] = torch.stack([e["w2"] for e in experts])
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and not [name for name in missing if "inv_freq" not in name], (missing, unexpected)
    return model
