"""Writes GGUF files for tests: of an official checkpoint as llama.cpp's converter lays them out, and wrong ones."""

import struct
from pathlib import Path

import numpy as np

from v4cli.store.checkpoint import Checkpoint
from v4cli.store.gguf import GLOBALS, OF_LAYER, TYPES

IDS = {name: number for number, name in TYPES.items()}
RAW = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "I32": (1, 4), "MXFP4": (32, 17)}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(item) -> bytes:
    """Type and value of a key."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    if item and isinstance(item[0], str):
        return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(text, item))
    kind, code = (6, "f") if item and isinstance(item[0], float) else (5, "i")
    return struct.pack(f"<IIQ{len(item)}{code}", 9, kind, len(item), *item)


def write(path: Path, keys: dict, tensors: list[tuple[str, tuple[int, ...], str, bytes]], offsets=None) -> Path:
    """`tensors`: name, shape as in safetensors, type, bytes; `offsets` instead of the right ones."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    head += b"".join(text(key) + value(item) for key, item in keys.items())
    data = b""
    for i, (name, shape, kind, raw) in enumerate(tensors):
        at = len(data) if offsets is None else offsets[i]
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += struct.pack("<IQ", IDS[kind], at)
        data += raw + bytes(-len(raw) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def keys_of(config, tokenizer: dict) -> dict:
    """Metadata as llama.cpp's converter writes them."""
    c, a = config, "deepseek4."
    numbers = {
        "block_count": c.num_hidden_layers, "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size, "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": 1, "rope.scaling.type": "yarn", "rope.scaling.factor": c.rope_factor,
        "rope.scaling.original_context_length": c.original_max_position_embeddings,
        "rope.scaling.yarn_beta_fast": c.beta_fast, "rope.scaling.yarn_beta_slow": c.beta_slow,
        "rope.freq_base": c.rope_theta, "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "expert_count": c.n_routed_experts, "expert_used_count": c.num_experts_per_tok, "expert_gating_func": 4,
        "attention.key_length": c.head_dim, "rope.dimension_count": c.qk_rope_head_dim,
        "attention.q_lora_rank": c.q_lora_rank, "attention.sliding_window": c.sliding_window,
        "expert_feed_forward_length": c.moe_intermediate_size, "expert_weights_scale": c.routed_scaling_factor,
        "expert_weights_norm": True, "swiglu_clamp_exp": [c.swiglu_limit] * c.num_hidden_layers,
        "attention.indexer.head_count": c.index_n_heads, "attention.indexer.key_length": c.index_head_dim,
        "attention.indexer.top_k": c.index_topk, "attention.output_group_count": c.o_groups,
        "attention.output_lora_rank": c.o_lora_rank, "attention.compress_ratios": list(c.compress_ratios),
        "attention.compress_rope_freq_base": c.compress_rope_theta, "hyper_connection.count": c.hc_mult,
        "hyper_connection.sinkhorn_iterations": c.hc_sinkhorn_iters, "hyper_connection.epsilon": c.hc_eps,
        "hash_layer_count": c.num_hash_layers,
    }  # fmt: skip
    specials = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    tokens = {number: name for name, number in tokenizer["model"]["vocab"].items()} | specials
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    return {"general.architecture": "deepseek4"} | {a + key: item for key, item in numbers.items()} | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [tokens[i] for i in range(len(tokens))],
        "tokenizer.ggml.token_type": [3 if i in specials else 1 for i in range(len(tokens))],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": c.bos_token_id, "tokenizer.ggml.eos_token_id": c.eos_token_id,
    }  # fmt: skip


def tensors_of(checkpoint: Checkpoint, dense: str) -> list[tuple[str, tuple[int, ...], str, bytes]]:
    """All tensors; what is FP8 officially in type `dense`."""
    theirs = {official: name for name, official in GLOBALS.items()}
    own = {official: name for name, official in OF_LAYER.items()}
    out, n = [], checkpoint.config.n_routed_experts
    for name, place in checkpoint.places.items():
        if name.endswith(".scale") or ".ffn.experts." in name:
            continue
        there = theirs.get(name)
        if there is None:
            _, layer, rest = name.split(".", 2)
            there = f"blk.{layer}.{own[rest]}"
        kind = {"F8_E4M3": dense, "I64": "I32", "F32": "F32", "BF16": "BF16"}[place.spec.dtype]
        kind = "F32" if kind == "BF16" and len(place.spec.shape) == 1 else kind
        values = checkpoint.ids(name) if kind == "I32" else checkpoint.dense(name).numpy()
        out.append((there, place.spec.shape, kind, packed(values, kind)))
    for layer in range(checkpoint.config.num_hidden_layers):
        for w, there in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            experts = [mxfp4(checkpoint, f"layers.{layer}.ffn.experts.{e}.{w}.") for e in range(n)]
            rows, width = checkpoint.spec(f"layers.{layer}.ffn.experts.0.{w}.weight").shape
            out.append((f"blk.{layer}.ffn_{there}_exps.weight", (n, rows, 2 * width), "MXFP4", b"".join(experts)))
    return out


def packed(values: np.ndarray, kind: str) -> bytes:
    if kind == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()  # they are BF16 values
    if kind == "Q8_0":
        groups = values.reshape(-1, 32)
        scale = (np.abs(groups).max(1, keepdims=True) / 127).astype("<f4")
        scaled = groups * (1 / np.where(scale == 0, np.float32(1), scale))
        codes = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)  # halves away from zero
        return np.concatenate((scale.astype("<f2").view(np.uint8), codes.view(np.uint8)), axis=1).tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2", "I32": "<i4"}[kind]).tobytes()


def mxfp4(checkpoint: Checkpoint, at: str) -> bytes:
    """As ggml's block_mxfp4: the scale, then inputs j and j + 16 in one byte."""
    codes = checkpoint.raw(at + "weight").reshape(-1, 16)
    inputs = np.stack((codes & 15, codes >> 4), axis=-1).reshape(-1, 32)
    scales = checkpoint.raw(at + "scale").reshape(-1, 1)
    return np.concatenate((scales, inputs[:, :16] | inputs[:, 16:] << 4), axis=1).tobytes()
