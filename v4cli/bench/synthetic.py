"""Random checkpoints in the official format, at any size:
`python -m v4cli.bench.synthetic OUT --like flash --layers 2`.

One shard per layer, as in the releases, written as a stream. Values come from a pool of random numbers that is read
on from tensor to tensor, so that gigabytes take seconds; logits are O(1) and routing, gates and sinks vary. Routing
has about the statistics published of real models: 6 % of a layer's experts get 35 to 45 % of the requests, and what a
router makes of the streams one layer earlier holds 7 of 10 of its choices.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from v4cli.files import write_atomically
from v4cli.model.config import V4Config
from v4cli.model.known import MODELS
from v4cli.model.schema import TensorSpec, expected_tensors
from v4cli.nano.recipe import CONFIG, GENERATION_CONFIG
from v4cli.paths import NANO
from v4cli.store.checkpoint import INDEX
from v4cli.store.formats import pack_fp4
from v4cli.store.parts import Part

POOL = 1 << 23  # random numbers drawn once
PREFERENCE = 0.2  # spread of gate.bias: how much more some experts are used than others
SMALL = CONFIG | {
    "vocab_size": 512, "hidden_size": 256, "q_lora_rank": 128, "o_lora_rank": 128, "head_dim": 512, "index_n_heads": 8,
    "index_topk": 64, "compress_ratios": [0, 0, 4, 128, 4, 128],
}  # fmt: skip
TINY = MODELS["flash-preview"][1] | {  # Flash's depth with next to no work in a layer: what is left is overhead
    "vocab_size": 512, "hidden_size": 64, "q_lora_rank": 32, "o_lora_rank": 32, "head_dim": 128, "o_groups": 1,
    "num_attention_heads": 2, "index_n_heads": 2, "moe_intermediate_size": 32, "n_routed_experts": 16,
    "bos_token_id": 0, "eos_token_id": 1, "num_nextn_predict_layers": 0,
}  # fmt: skip
SHAPES = {"small": SMALL, "tiny": TINY, "flash": MODELS["flash-preview"][1], "pro": MODELS["pro-preview"][1]}


def shape(like: str, n_layers: int | None = None, n_experts: int | None = None) -> V4Config:
    """A named config, cut to its first layers, and each layer to so many routed experts."""
    values = dict(SHAPES[like])
    if n_experts:
        values["n_routed_experts"] = n_experts
    if n_layers:
        values["num_hidden_layers"] = n_layers
        values["compress_ratios"] = values["compress_ratios"][:n_layers]
        values["num_hash_layers"] = min(values["num_hash_layers"], n_layers)
    return V4Config.from_dict(values)


class Pool:
    """Normal random numbers, read in a circle."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.values = torch.randn(POOL, generator=self.generator)
        self.fp8 = self.values.mul(64.0).to(torch.float8_e4m3fn).view(torch.uint8)
        self.fp4 = pack_fp4(self.values.mul(1.5).clamp(-6, 6)[None])[0].view(torch.uint8)
        self.at = 0

    def take(self, source: Tensor, count: int):
        """`count` elements of one of the pools, in pieces."""
        while count:
            start = self.at % len(source)
            piece = source[start : start + count]
            self.at += len(piece)
            count -= len(piece)
            yield piece


def write_synthetic(path: Path, config: V4Config, seed: int = 0) -> Path:
    """Write folder `path`: config, generation config, index and shards."""
    path.mkdir(parents=True, exist_ok=True)
    pool, shards = Pool(seed), {}
    specs = expected_tensors(config, with_mtp=False)
    for name, spec in specs.items():
        words = name.split(".")
        shard = words[1] if words[0] == "layers" else words[0] if words[0] == "embed" else "head"
        shards.setdefault(shard, Part(shard)).add(name, spec, "keep", name, 1)
    weight_map = {}
    for i, part in enumerate(shards.values(), 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        with (path / file).open("wb") as out:
            out.write(part.header)
            for name, stored in part.tensors.items():
                for piece in values(name, stored.spec, pool, config):
                    out.write(piece.contiguous().view(torch.uint8).numpy())
        weight_map |= dict.fromkeys(part.tensors, file)
    total = sum(spec.nbytes for spec in specs.values())
    texts = {INDEX: {"metadata": {"total_size": total}, "weight_map": weight_map}}
    texts |= {"config.json": config.to_dict(), "generation_config.json": GENERATION_CONFIG}
    for file, value in texts.items():
        write_atomically(path / file, json.dumps(value, indent=1).encode())
    write_atomically(path / "tokenizer.json", (NANO / "tokenizer.json").read_bytes())
    return path


def values(name: str, spec: TensorSpec, pool: Pool, config):
    """Pieces of one tensor, in its dtype or as bytes."""
    count = math.prod(spec.shape)
    if spec.dtype == "I64":
        rows = torch.rand((spec.shape[0], config.n_routed_experts), generator=pool.generator)
        yield rows.topk(spec.shape[1]).indices
    elif spec.dtype == "F8_E4M3":
        yield from pool.take(pool.fp8, count)
    elif spec.dtype == "I8":
        yield from pool.take(pool.fp4, count)
    elif spec.dtype == "F8_E8M0":
        fan_in = spec.shape[1] * (32 if ".ffn.experts." in name else 128)
        unit = 1.5 if ".ffn.experts." in name else 64.0  # spread of the codes
        yield torch.full((count,), 127 + round(math.log2(fan_in**-0.5 / unit)), dtype=torch.uint8)
    else:
        dtype = torch.bfloat16 if spec.dtype == "BF16" else torch.float32
        spread = 1.0 if len(spec.shape) == 1 or name == "embed.weight" else spec.shape[-1] ** -0.5
        for piece in pool.take(pool.values, count):
            if name.endswith("norm.weight"):
                piece = 1 + 0.1 * piece
            elif name.endswith("_scale"):
                piece = 0.5 + piece.abs().clamp(max=1)
            elif name.endswith("gate.bias"):
                piece = PREFERENCE * piece
            else:
                piece = piece * spread
            yield piece.to(dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description="write a random official-format checkpoint")
    parser.add_argument("out", type=Path)
    parser.add_argument("--like", choices=SHAPES, default="small")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_synthetic(args.out, shape(args.like, args.layers), args.seed)


if __name__ == "__main__":
    main()
