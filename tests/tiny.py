"""Random official-format checkpoints for tests, and the golden tiny one made openable."""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from v4cli.chat import special
from v4cli.chat.vocabulary import BYTE_OF, NANO_PATTERNS, pre_tokenizer
from v4cli.model.config import V4Config
from v4cli.model.schema import expected_tensors
from v4cli.nano import recipe
from v4cli.pull.convert import convert_part
from v4cli.store.checkpoint import INDEX, Checkpoint
from v4cli.store.recipe import RECIPES, Recipe, Rule, formats_by
from v4cli.store.record import recorded
from v4cli.store.store import NEEDED, Manifest
from v4cli.store.writer import _encode, write_checkpoint

SMALL = recipe.CONFIG | {
    "vocab_size": 512,
    "hidden_size": 256,
    "q_lora_rank": 128,
    "o_lora_rank": 128,
    "head_dim": 512,
    "index_n_heads": 8,
    "index_topk": 16,
    "moe_intermediate_size": 128,
    "initializer_range": 0.02,
}
FLASH_LIKE = SMALL | {"compress_ratios": [0, 0, 4, 128, 4, 128], "num_hash_layers": 2}
PRO_LIKE = SMALL | {
    "compress_ratios": [128, 128, 4, 128, 4],
    "num_hidden_layers": 5,
    "num_hash_layers": 3,
    "num_attention_heads": 8,
    "o_groups": 4,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 2.5,
    "index_topk": 24,
}
STORE_LIKE = FLASH_LIKE | {
    "head_dim": 128,
    "num_hidden_layers": 4,
    "compress_ratios": [0, 4, 128, 4],
}

# A format for every way in which tensors may differ.
MIXED: Recipe = (
    Rule("experts", "int8", layers=("0-1",), matrices=("w2",)),
    Rule("experts", "int4", experts=("1", "3")),
    Rule("experts", "int8", layers=("3",), matrices=("w1", "w3")),
    Rule("experts", "keep"),
    Rule("linear", "fp4", matrices=("wq_b",)),
    Rule("linear", "int4", layers=("2-3",), matrices=("w1", "w2", "w3")),
    Rule("linear", "int8"),
    Rule("embed", "int4"),
    Rule("head", "fp4"),
)

# The least that opens: printable ASCII and the special tokens.
TOKENIZER = {
    "added_tokens": [{"id": i, "content": text, "special": True} for i, text in enumerate(special.ALL)],
    "pre_tokenizer": pre_tokenizer(NANO_PATTERNS),
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    "model": {"type": "BPE", "vocab": {byte: len(special.ALL) + i for i, byte in enumerate(BYTE_OF)}, "merges": []},
}


def config(values: dict) -> V4Config:
    return V4Config.from_dict(values)


def random_checkpoint(path: Path, values: dict, seed: int = 0, shards: int = 2) -> Path:
    """Write random weights whose logits are O(1) and whose routing, gates and sinks vary."""
    cfg = config(values)
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, spec in expected_tensors(cfg, with_mtp=False).items():
        if name.endswith(".scale"):
            continue
        shape = (spec.shape[0], 2 * spec.shape[1]) if spec.dtype == "I8" else spec.shape
        if spec.dtype == "I64":
            tensors[name] = torch.rand((shape[0], cfg.n_routed_experts), generator=g).topk(shape[1]).indices
        elif name.endswith("norm.weight"):
            tensors[name] = 1 + 0.1 * torch.randn(shape, generator=g)
        elif "hc_" in name and name.endswith("_scale"):
            tensors[name] = 0.5 + torch.rand(shape, generator=g)
        else:
            spread = 1.0 if len(shape) == 1 or "embed" in name else shape[-1] ** -0.5
            tensors[name] = torch.randn(shape, generator=g) * spread
    write_checkpoint(path, cfg, tensors, recipe.GENERATION_CONFIG, shards)
    (path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return path


def make_store(source: Path, out: Path, quant: str = "native", recipe: Recipe | None = None) -> Path:
    """Convert a whole checkpoint, as pull does part by part; by `recipe` if there is no name for it."""
    out.mkdir(parents=True)
    checkpoint = Checkpoint.open(source)
    manifest = Manifest(quant, checkpoint.has_drafts, {"repo": "test/model", "revision": "abc", "files": {}})
    official = expected_tensors(checkpoint.config, checkpoint.has_drafts)
    manifest.formats = recorded(formats_by(RECIPES[quant].rules if recipe is None else recipe, official))
    for part in manifest.parts(checkpoint.config, out).values():
        manifest.files[part.file] = convert_part(part, checkpoint.places, out / part.file)
    for name in NEEDED:
        text = (source / name).read_bytes()
        (out / name).write_bytes(text)
        manifest.files[name] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    manifest.complete = True
    manifest.save(out)
    return out


def golden_tiny(golden: Path, out: Path, draft: str = "") -> Path:
    """The golden tiny checkpoint as a folder with an official config.json; draft blocks: `april` or `dspark`."""
    short = json.loads((golden / "tiny" / "config.json").read_text())["config"]
    names = {
        "vocab_size": "vocab_size", "dim": "hidden_size", "moe_inter_dim": "moe_intermediate_size",
        "n_layers": "num_hidden_layers", "n_hash_layers": "num_hash_layers", "n_heads": "num_attention_heads",
        "n_routed_experts": "n_routed_experts", "n_activated_experts": "num_experts_per_tok",
        "route_scale": "routed_scaling_factor", "q_lora_rank": "q_lora_rank", "head_dim": "head_dim",
        "rope_head_dim": "qk_rope_head_dim", "o_groups": "o_groups", "o_lora_rank": "o_lora_rank",
        "index_n_heads": "index_n_heads", "index_head_dim": "index_head_dim", "index_topk": "index_topk",
        "compress_ratios_main": "compress_ratios",
    }  # fmt: skip
    values = recipe.CONFIG | {official: short[key] for key, official in names.items()}
    out.mkdir(parents=True, exist_ok=True)
    if not draft:
        shutil.copyfile(golden / "tiny" / "main.safetensors", out / "model.safetensors")
    else:
        tensors = {}
        for file in ("main", f"mtp_{draft}"):
            tensors |= load_file(golden / "tiny" / f"{file}.safetensors")
        save_file(tensors, out / "model.safetensors")
        values["num_nextn_predict_layers"] = 1
        values["compress_ratios"] = values["compress_ratios"] + [0] * (3 if draft == "dspark" else 1)
    if draft == "dspark":
        about = short["dspark"]
        keys = ("block_size", "noise_token_id", "target_layer_ids", "markov_rank")
        values |= {f"dspark_{key}": about[key] for key in keys}
    (out / "config.json").write_text(json.dumps(values))
    return out


def with_drafts(source: Path, out: Path, seed: int = 1) -> Path:
    """A random checkpoint and random draft blocks of DSpark for it."""
    values = json.loads((source / "config.json").read_text())
    ratios = values["compress_ratios"][: values["num_hidden_layers"]]
    values |= {
        "compress_ratios": [*ratios, 0, 0, 0], "num_nextn_predict_layers": 1, "dspark_block_size": 5,
        "dspark_noise_token_id": 2, "dspark_target_layer_ids": [1, 2, 3], "dspark_markov_rank": 32,
    }  # fmt: skip
    cfg, g = config(values), torch.Generator().manual_seed(seed)
    shutil.copytree(source, out)
    index = json.loads((out / INDEX).read_text())
    stored: dict[str, torch.Tensor] = {}
    for name, spec in expected_tensors(cfg).items():
        if name.startswith("mtp.") and not name.endswith(".scale"):
            shape = (spec.shape[0], 2 * spec.shape[1]) if spec.dtype == "I8" else spec.shape
            value = torch.randn(shape, generator=g) * (1.0 if len(shape) == 1 else shape[-1] ** -0.5)
            stored |= _encode(name, spec, 1 + 0.1 * value if name.endswith("norm.weight") else value)
    save_file(stored, out / "drafts.safetensors")
    index["weight_map"] |= dict.fromkeys(stored, "drafts.safetensors")
    (out / INDEX).write_text(json.dumps(index))
    (out / "config.json").write_text(json.dumps(cfg.to_dict()))
    return out
