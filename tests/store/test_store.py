"""The store: layout, bit-exact experts, quantized dense weights, damage, repacking."""

import errno
import json
import os
import random
import shutil
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from tiny import STORE_LIKE

from v4cli.engine.engine import Engine
from v4cli.errors import ModelError, V4Error
from v4cli.model.config import V4Config
from v4cli.model.schema import TensorSpec
from v4cli.pull.convert import convert_part
from v4cli.store import formats
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.header import TensorPlace, read_header
from v4cli.store.parts import EXPERT_ORDER, PAGE, Part, layout
from v4cli.store.store import MANIFEST, Store


def test_experts_are_bit_exact_contiguous_and_page_aligned(source, made):
    official, opened = Checkpoint.open(source), Store.open(made)
    for layer in range(4):
        part = opened.parts[f"layer-{layer:03d}-experts"]
        for e in range(STORE_LIKE["n_routed_experts"]):
            at = f"layers.{layer}.ffn.experts.{e}."
            places = [opened.places[at + name] for name in EXPERT_ORDER]
            assert places[0].offset % PAGE == 0
            for before, after in pairwise(places):
                assert after.offset == before.offset + before.spec.nbytes
            for name in EXPERT_ORDER:
                assert torch.equal(
                    opened.tensor(at + name).view(torch.uint8), official.tensor(at + name).view(torch.uint8)
                )
        assert (made / part.file).stat().st_size == part.n_bytes


def test_other_tools_can_open_the_parts(made):
    names = set()
    for path in made.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    assert {n for n in names if not n.startswith("pad.")} == set(Store.open(made).places)


def test_dense_weights_are_what_the_formats_make_of_the_source(source, made):
    official, opened = Checkpoint.open(source), Store.open(made)
    four_bits = opened.manifest.quant == "q4"
    for name, form in opened.formats.items():
        if form == "pad" or not name.endswith(".weight"):
            continue
        want = official.dense(name)
        if form == "int8":
            want = formats.decode_int8(*formats.encode_int8(want))
        elif form == "int4":
            want = formats.decode_int4(*formats.encode_int4(want))
        assert torch.equal(opened.dense(name), want), name
    assert opened.formats["head.weight"] == ("int4" if four_bits else "int8")
    assert opened.formats["layers.1.attn.wq_b.weight"] == ("int4" if four_bits else "int8")
    assert opened.formats["layers.1.ffn.gate.weight"] == "bf16" and opened.formats["norm.weight"] == "keep"


@pytest.mark.parametrize("numerics", ["exact", "official"])
def test_engine_runs_from_the_store_as_from_the_source_up_to_the_dense_step(source, made, numerics):
    tokens = torch.randint(0, 256, (150,), generator=torch.Generator().manual_seed(3)).tolist()
    from_store, from_source = (Engine.open(path, numerics=numerics) for path in (made, source))
    opened = Store.open(made)
    for name in [n for n in opened.formats if opened.formats[n] in ("int8", "int4") and n.endswith("weight")]:
        node = from_source.model.ops.tree
        for word in name.removesuffix(".weight").replace("shared_experts", "shared").split("."):
            node = node[int(word)] if word.isdigit() else getattr(node, word)
        node._dense = opened.dense(name)
    a, b = (engine.session().feed(tokens, all_logits=True) for engine in (from_store, from_source))
    assert (a == b).all()


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_quantized_groups_survive_zeros_tiny_huge_and_outliers(name):
    w = torch.randn((64, 128), generator=torch.Generator().manual_seed(1))
    w *= torch.logspace(-30, 30, 64)[:, None]
    w[5], w[6, 32:64], w[7, 3] = 0.0, 0.0, 1e4
    encode, decode = getattr(formats, f"encode_{name}"), getattr(formats, f"decode_{name}")
    back = decode(*encode(w))
    assert back.isfinite().all() and (back[5] == 0).all() and (back[6, 32:64] == 0).all()
    error = (back - w).unflatten(-1, (-1, 32)).norm(dim=-1)
    size = w.unflatten(-1, (-1, 32)).norm(dim=-1)
    # uniform rounding at amax/127 (amax/7): at most half a step per value, bf16 scale included
    assert (error <= size * {"int8": 0.6 / 127, "int4": 0.6 / 7}[name] * 32**0.5 + 1e-30).all()


def test_int8_keeps_what_fits_a_power_of_two_grid():
    w = torch.randint(-64, 65, (8, 64), generator=torch.Generator().manual_seed(2)).float() * 2.0**-9
    assert torch.equal(formats.decode_int8(*formats.encode_int8(w)), w)


def test_fp8_is_decoded_as_torch_does():
    codes = torch.arange(256, dtype=torch.uint8).repeat(2, 1).view(torch.float8_e4m3fn)
    scale = torch.tensor([[0.5, 4.0]])
    want = codes.float() * scale.repeat_interleave(128, 1)
    torch.testing.assert_close(formats.decode_fp8(codes, scale), want, rtol=0, atol=0, equal_nan=True)


def matrix(folder, values, form):
    """A BF16 matrix on disk, and the part that quantizes it."""
    rows, cols = values.shape
    path, part = folder / "source", Part("part")
    path.write_bytes(values.bfloat16().view(torch.uint8).numpy().tobytes())
    codes = TensorSpec("I8", (rows, cols)) if form == "int8" else TensorSpec("U8", (rows, cols // 2))
    part.add("x.weight", codes, form, "x.weight", 64)
    part.add("x.scale", TensorSpec("BF16", (rows, cols // 32)), form, "x.weight", 64)
    return {"x.weight": TensorPlace(path, 0, TensorSpec("BF16", (rows, cols)))}, part


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(form, value, tmp_path):
    values = torch.randn((300, 64), generator=torch.Generator().manual_seed(4))
    values[299, 63] = value
    places, part = matrix(tmp_path, values, form)
    with pytest.raises(ModelError, match=r"tensor x\.weight holds values that are not finite"):
        convert_part(part, places, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_trouble_in_the_writing_thread_reaches_the_caller(tmp_path):
    places, part = matrix(tmp_path, torch.zeros(300, 64), "int8")
    problem = OSError(errno.ENOSPC, "full")

    def fail(n):
        raise problem

    with pytest.raises(OSError) as caught:
        convert_part(part, places, tmp_path / "out", on_bytes=fail)
    assert caught.value is problem
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_source_that_ends_too_soon_is_refused(tmp_path):
    places, part = matrix(tmp_path, torch.zeros(300, 64), "int8")
    os.truncate(tmp_path / "source", 299 * 128 + 5)
    with pytest.raises(ModelError, match="ends too soon"):
        convert_part(part, places, tmp_path / "out")


def test_layout_is_repacked_from_an_older_store(source, made, tmp_path):
    """Another order of tensors is another layout; the parts are made from it by copying, byte for byte."""
    opened = Store.open(made)
    places = {}
    for part in opened.parts.values():
        old = Part(part.name)
        for name in reversed([n for n, t in part.tensors.items() if t.format != "pad"]):
            old.add(name, part.tensors[name].spec, "keep", name, 1)
        convert_part(old, opened.places, tmp_path / old.file)
        places |= read_header(tmp_path / old.file)
    for part in opened.parts.values():
        record = convert_part(part, places, tmp_path / "again")
        assert record["sha256"] == opened.manifest.files[part.file]["sha256"]


def test_flash_and_pro_stores_keep_every_expert_byte(golden):
    """Sizes of spec 2.3: routed experts are untouched, one expert is 13,369,344 and 35,094,528 bytes."""
    for file, expert, experts in (("v4_flash", 13_369_344, 147_169_738_752), ("v4_pro", 35_094_528, 822_054_223_872)):
        config = V4Config.load(golden / "configs" / f"{file}.json")
        parts = layout(config, "native", True)
        trunk = [p for p in parts.values() if p.name.startswith("layer") and p.name.endswith("-experts")]
        assert sum(p.end for p in trunk) == experts
        assert trunk[0].end == expert * config.n_routed_experts
        assert not any(name.startswith("pad.") for name in trunk[0].tensors)


def test_random_damage_never_crashes_the_loader(made, tmp_path):
    """200 mutations of manifest, config and part headers: a V4Error or a store that opens, never anything else."""
    rng = random.Random(7)
    names = [MANIFEST, "config.json", "layer-001.safetensors", "head.safetensors"]
    originals = {name: (made / name).read_bytes() for name in names}
    work = shutil.copytree(made, tmp_path / "work")
    refused = 0
    for _ in range(200):
        name = rng.choice(names)
        data = bytearray(originals[name])
        kind = rng.random()
        if kind < 0.5:
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(min(len(data), 6000))] = rng.randrange(256)
        elif kind < 0.7:
            del data[rng.randrange(len(data)) :]
        elif name == MANIFEST:
            tree = json.loads(data)
            key = rng.choice(list(tree))
            tree[key] = rng.choice((None, [], {}, -1, "x", 1e300, {"a": []}, True))
            data = json.dumps(tree).encode()
        else:
            data += rng.randbytes(rng.randint(1, 50))
        (work / name).write_bytes(data)
        try:
            Store.open(work)
        except V4Error as error:
            assert "\n" not in str(error)
            refused += 1
        (work / name).write_bytes(originals[name])
    assert refused > 120
