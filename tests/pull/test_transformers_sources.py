"""Checkpoints as transformers saves them, and official names without scales: the stores are those of the same values in
the official format."""

import json
import shutil

import numpy as np
import pytest
import torch
from other_model import other_model, other_name
from pulling import LITTLE, Listener, logits
from safetensors.torch import load_file, save_file
from tiny import random_checkpoint

from v4cli.chat.turn import READERS
from v4cli.errors import ModelError
from v4cli.pull.hub import FolderSource
from v4cli.pull.pull import plan_pull, pull
from v4cli.store.checkpoint import INDEX, Checkpoint
from v4cli.store.store import Store

N_EXPERTS = LITTLE["n_routed_experts"]


def made(source, dest) -> Store:
    pull(FolderSource(source), dest, reporter=Listener(), readers=READERS)
    return Store.open(dest)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("official") / "m", LITTLE)


def values(official, dtype) -> dict[str, torch.Tensor]:
    """Every tensor in `dtype`, but for integers; experts by name."""
    checkpoint = Checkpoint.open(official)
    out = {}
    for name, place in checkpoint.places.items():
        if not name.endswith(".scale"):
            is_ids = place.spec.dtype == "I64"
            out[name] = checkpoint.tensor(name).clone() if is_ids else checkpoint.dense(name).to(dtype)
    return out


def folder_of(official, out, tensors, drop=()):
    """A checkpoint of these tensors in two files."""
    out.mkdir(parents=True)
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name].contiguous() for name in part}, out / file)
    shutil.copy(official / "tokenizer.json", out)
    (out / INDEX).write_text(json.dumps({"weight_map": {name: file for file in files for name in files[file]}}))
    config = json.loads((official / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({key: v for key, v in config.items() if key not in drop}))
    return out


def in_module_names(tensors):
    """As transformers calls them in memory: experts of a layer stacked."""
    out = {other_name(name): value for name, value in tensors.items() if ".ffn.experts." not in name}
    for i in range(LITTLE["num_hidden_layers"]):
        experts = [{w: tensors[f"layers.{i}.ffn.experts.{e}.{w}.weight"] for w in ("w1", "w2", "w3")}
                   for e in range(N_EXPERTS)]  # fmt: skip
        to = f"model.layers.{i}.mlp.experts."
        out[to + "gate_up_proj"] = torch.stack([torch.cat((e["w1"], e["w3"])) for e in experts])
        out[to + "down_proj"] = torch.stack([e["w2"] for e in experts])
    return out


def same(one: Store, other: Store) -> None:
    """Bits of all but FP4 experts, and of those the values: a scale may be halved and the codes doubled."""
    assert one.places.keys() == other.places.keys() and one.config == other.config
    for name in one.places:
        if ".ffn.experts." in name:
            assert name.endswith("scale") or torch.equal(one.dense(name), other.dense(name)), name
        else:
            assert np.array_equal(one.raw(name), other.raw(name)), name


def test_f32_in_every_naming_is_the_official_store(official, tmp_path):
    expected = made(official, tmp_path / "official")
    tensors = values(official, torch.float32)
    namings = {"own": tensors, "module": in_module_names(tensors)}
    for naming, named in namings.items():
        folder = folder_of(official, tmp_path / naming, named, drop=("quantization_config",))
        store = made(folder, tmp_path / f"{naming}-store")
        same(store, expected)
        assert np.array_equal(logits(store.path), logits(expected.path)), naming


def test_bf16_differs_by_the_rounding_of_what_is_f32_officially_and_by_nothing_else(official, tmp_path):
    folder = folder_of(official, tmp_path / "bf16", in_module_names(values(official, torch.bfloat16)))
    rounded = shutil.copytree(official, tmp_path / "rounded")
    for shard in rounded.glob("*.safetensors"):
        tensors = load_file(shard)
        save_file({n: t.bfloat16().float() if t.dtype == torch.float32 else t for n, t in tensors.items()}, shard)
    one, other = made(folder, tmp_path / "one"), made(rounded, tmp_path / "other")
    same(one, other)
    assert np.array_equal(logits(one.path), logits(other.path))


def test_values_off_the_official_grid_are_rounded_once(official, tmp_path):
    """Of a fine-tune: dense weights to INT8 without FP8 between, experts to FP4."""
    noise = torch.Generator().manual_seed(4)
    tensors = values(official, torch.float32)
    tuned = {
        name: value if value.dtype == torch.int64 else value * (1 + 0.05 * torch.rand(value.shape, generator=noise))
        for name, value in tensors.items()
    }
    store = made(folder_of(official, tmp_path / "tuned", in_module_names(tuned)), tmp_path / "store")
    for name, bound in (("layers.1.attn.wq_b.weight", 0.01), ("layers.1.ffn.experts.2.w2.weight", 0.15)):
        off = (store.dense(name) - tuned[name]).norm() / tuned[name].norm()
        assert 0 < off < bound, (name, off)
    errors = store.manifest.files["layer-001.safetensors"]["errors"]
    assert set(errors) == {"linear"} and "experts" in store.manifest.files["layer-001-experts.safetensors"]["errors"]


@pytest.mark.slow
def test_what_transformers_saves_is_read(official, tmp_path):
    model = other_model(Checkpoint.open(official))
    expected = made(official, tmp_path / "official")
    for original in (True, False):
        model.save_pretrained(tmp_path / f"{original}", save_original_format=original)
        shutil.copy(official / "tokenizer.json", tmp_path / f"{original}")
        same(made(tmp_path / f"{original}", tmp_path / f"{original}-store"), expected)


def test_what_is_wrong_with_one_is_found_before_anything_is_made(official, tmp_path):
    tensors = in_module_names(values(official, torch.bfloat16))
    at = "model.layers.2.mlp.experts."
    wrong = {
        "is missing": lambda t: t.pop("model.layers.2.self_attn.q_b_proj.weight"),
        "does not belong": lambda t: t.update({"model.layers.2.self_attn.k_proj.weight": torch.zeros(2, 2)}),
        "is there twice": lambda t: t.update({"layers.0.attn.wq_a.weight": torch.zeros(128, 256)}),
        "not that of all experts": lambda t: t.update({at + "down_proj": t[at + "down_proj"][1:].clone()}),
        "not what config and index say": lambda t: t.update({"model.norm.weight": torch.zeros(3)}),
        "as in transformers": lambda t: t.update(
            {
                "model.layers.0.self_attn.kv_proj.weight": t["model.layers.0.self_attn.kv_proj.weight"].to(
                    torch.float8_e4m3fn
                )
            }
        ),
    }
    for i, (says, harm) in enumerate(wrong.items()):
        broken = dict(tensors)
        harm(broken)
        folder = folder_of(official, tmp_path / f"{i}", broken)
        with pytest.raises(ModelError, match=says):
            plan_pull(FolderSource(folder), tmp_path / "out", reporter=Listener())
    broken = {n: torch.full_like(t, torch.inf) if n == "model.layers.1.attn_hc.base" else t for n, t in tensors.items()}
    with pytest.raises(ModelError, match="hc_attn_base holds values that are not finite"):
        made(folder_of(official, tmp_path / "inf", broken), tmp_path / "out")
    broken = {n: t * torch.nan if n == at + "down_proj" else t for n, t in tensors.items()}
    with pytest.raises(ModelError, match=r"w2.weight holds values that are not finite"):
        made(folder_of(official, tmp_path / "nan", broken), tmp_path / "other")
