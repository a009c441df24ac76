"""Write a checkpoint in the official format: shards, index, config. Files appear whole or not at all."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from v4kernels.formats import OFFICIAL

from v4cli import system
from v4cli.files import write_atomically
from v4cli.model.schema import TensorSpec, expected_tensors
from v4cli.store.checkpoint import INDEX
from v4cli.store.formats import ENCODE

DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}


def write_checkpoint(path: Path, config, tensors: dict[str, Tensor], generation_config: dict, shards: int = 1) -> None:
    """Quantize fp32 `tensors` (official names, no scales) to their official dtypes and write folder `path`.

    Trunk only. `shards` spreads the tensors over that many files.
    """
    names = [name for name in expected_tensors(config, with_mtp=False) if not name.endswith(".scale")]
    write_stored(path, config, encoded(config, {name: tensors[name] for name in names}), generation_config, shards)


def encoded(config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """fp32 tensors in their official dtypes, those of quantized ones beside their scales."""
    specs, stored = expected_tensors(config), {}
    for name, value in tensors.items():
        stored |= _encode(name, specs[name], value)
    return stored


def write_stored(path: Path, config, stored: dict[str, Tensor], generation_config: dict, shards: int = 1) -> None:
    """Write folder `path` of tensors that have their official dtypes."""
    path.mkdir(parents=True, exist_ok=True)
    names = list(stored)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: stored[name] for name in names[i::shards]}
        save_file(part, path / (file + ".tmp"), metadata={"format": "pt"})
        system.replace(path / (file + ".tmp"), path / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in stored.values())
    _write_json(path / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(path / "generation_config.json", generation_config)
    _write_json(path / "config.json", config.to_dict())


def _encode(name: str, spec: TensorSpec, value: Tensor) -> dict[str, Tensor]:
    if spec.dtype in DTYPES:
        return {name: value.to(DTYPES[spec.dtype]).contiguous()}
    weight, scale = ENCODE[OFFICIAL[spec.dtype].name](value)
    return {name: weight.contiguous(), name.removesuffix("weight") + "scale": scale.contiguous()}


def _write_json(path: Path, value: dict) -> None:
    write_atomically(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
