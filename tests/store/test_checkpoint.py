"""Reading and writing checkpoints: formats, validation, hostile files."""

import json
import random
import shutil
import struct

import pytest
import torch
from ml_values import E2M1
from tiny import SMALL, random_checkpoint

from v4cli.errors import ModelError
from v4cli.model.config import V4Config
from v4cli.store import formats
from v4cli.store.checkpoint import INDEX, Checkpoint

SHAPE = SMALL | {
    "head_dim": 128, "num_hidden_layers": 2, "compress_ratios": [0, 4], "n_routed_experts": 2, "hidden_size": 128,
    "num_hash_layers": 1, "vocab_size": 64, "q_lora_rank": 64, "o_lora_rank": 32, "index_n_heads": 2,
    "moe_intermediate_size": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("good"), SHAPE)


@pytest.fixture
def copy(good, tmp_path):
    return shutil.copytree(good, tmp_path / "copy")


def test_fp4_codes_follow_the_table_low_nibble_first():
    packed = torch.arange(256, dtype=torch.uint8).view(torch.int8).repeat(1, 1)[:, :16]
    scale = torch.full((1, 1), 2.0).to(torch.float8_e8m0fnu)
    got = formats.decode_fp4(packed, scale)[0].tolist()
    assert got == [2 * E2M1[code] for byte in range(16) for code in (byte & 15, byte >> 4)]


@pytest.mark.parametrize("kind", ["fp4", "fp8"])
def test_encoding_and_simulation_agree_and_encoding_twice_changes_nothing(kind):
    w = torch.randn((200, 192), generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 3, 200)[:, None]
    w[3] = 0.0
    encode, decode = getattr(formats, f"encode_{kind}"), getattr(formats, f"decode_{kind}")
    once = decode(*encode(w))
    assert torch.equal(once, getattr(formats, f"fake_{kind}")(w))
    assert torch.equal(decode(*encode(once)), once)
    assert (once - w).norm() / w.norm() < (0.2 if kind == "fp4" else 0.04)


def test_checkpoint_opens_and_keeps_values(good):
    checkpoint = Checkpoint.open(good)
    assert checkpoint.config == V4Config.from_dict(SHAPE)
    assert checkpoint.tensor("layers.0.ffn.gate.tid2eid").dtype == torch.int64
    assert checkpoint.dense("layers.1.attn.wq_a.weight").shape == (64, 128)


def test_golden_tiny_tensors_and_draft_blocks_are_recognised(golden, tmp_path):
    from tiny import golden_tiny

    folder = golden_tiny(golden, tmp_path)
    assert len(Checkpoint.open(folder).places) > 300


def header_of(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_shard(path, header, payload):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)


def first_shard(folder):
    return next(iter(sorted(folder.glob("*.safetensors"))))


def rename(header, index, name):
    header["layers.0.bogus"] = header.pop(name)
    index["weight_map"]["layers.0.bogus"] = index["weight_map"].pop(name)


DAMAGE = {
    "missing tensor": lambda h, i, n: (h.pop(n), i["weight_map"].pop(n)),
    "extra tensor": rename,
    "wrong dtype": lambda h, i, n: h[n].update(dtype="I8" if h[n]["dtype"] != "I8" else "F8_E4M3"),
    "wrong shape": lambda h, i, n: h[n].update(shape=[*h[n]["shape"], 1]),
    "offsets beyond the file": lambda h, i, n: h[n].update(data_offsets=[10**9, 10**9 + 1]),
    "index lists what no shard has": lambda h, i, n: i["weight_map"].update(ghost=next(iter(i["weight_map"].values()))),
    "index forgets a tensor": lambda h, i, n: i["weight_map"].pop(n),
    "path traversal": lambda h, i, n: i["weight_map"].update({n: "../x.safetensors"}),
    "missing shard": lambda h, i, n: i["weight_map"].update({n: "gone.safetensors"}),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_error_that_names_file_or_tensor(copy, kind):
    shard = first_shard(copy)
    header, payload = header_of(shard)
    index = json.loads((copy / INDEX).read_text())
    name = (
        "layers.0.attn.wq_a.weight"
        if "layers.0.attn.wq_a.weight" in header
        else next(iter(set(header) - {"__metadata__"}))
    )
    DAMAGE[kind](header, index, name)
    write_shard(shard, header, payload)
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError) as caught:
        Checkpoint.open(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


def test_values_that_are_not_finite_are_refused_by_name(copy):
    for shard in copy.glob("*.safetensors"):
        header, payload = header_of(shard)
        if "norm.weight" in header:
            begin, _ = header["norm.weight"]["data_offsets"]
            payload = payload[:begin] + b"\xff\xff" + payload[begin + 2 :]
            write_shard(shard, header, payload)
    with pytest.raises(ModelError, match=r"tensor norm\.weight"):
        Checkpoint.open(copy).dense("norm.weight")


def test_mutated_checkpoints_open_unchanged_or_fail_cleanly(good, tmp_path):
    rng = random.Random(11)
    refused = 0
    for i in range(180):
        folder = tmp_path / str(i)
        shutil.copytree(good, folder)
        path = rng.choice([first_shard(folder), folder / INDEX, folder / "config.json"])
        data = bytearray(path.read_bytes())
        reach = struct.unpack("<Q", data[:8])[0] + 8 if path.suffix == ".safetensors" else len(data)
        kind = rng.random()
        if kind < 0.3:
            del data[rng.randrange(len(data)) :]
        elif kind < 0.4:
            data += b"x" * rng.randint(1, 99)
        else:
            for _ in range(rng.randint(1, 5)):
                data[rng.randrange(reach)] = rng.choice(b'0129"{}[],:-eXN\x00\xff')
        path.write_bytes(data)
        try:
            Checkpoint.open(folder)
        except ModelError:
            refused += 1
        shutil.rmtree(folder)
    assert refused > 120


def test_mutated_configs_load_valid_or_fail_cleanly(golden):
    rng = random.Random(5)
    base = json.loads((golden / "configs" / "v4_flash_0731.json").read_text())
    values = [None, -1, 0, 1, 1e400, float("nan"), "x", [], {}, True, 10**18, 0.5, [1] * 50, "\ud800"]
    refused = 0
    for _ in range(200):
        data = json.loads(json.dumps(base))
        for _ in range(rng.randint(1, 3)):
            key = rng.choice(list(data))
            target = data
            if isinstance(data[key], dict) and rng.random() < 0.7:
                target, key = data[key], rng.choice(list(data[key]))
            if rng.random() < 0.2:
                target.pop(key)
            else:
                target[key] = rng.choice(values)
        try:
            V4Config.from_dict(data)
        except ModelError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a":1,"a":2}', '{"a":NaN}', "[" * 100_000, "\ufeff{}", "\x00"])
def test_hostile_config_files_are_refused(copy, text):
    (copy / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        Checkpoint.open(copy)
