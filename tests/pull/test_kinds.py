"""Checkpoints of other kinds: said in one line what they are, in every command alike, with what to do."""

import json
import os
import shutil

import pytest
from pulling import Listener
from tiny import STORE_LIKE, random_checkpoint

from v4cli.chat.turn import Chat
from v4cli.cli.models import Subject
from v4cli.errors import ModelError
from v4cli.pull.hub import FolderSource, HubSource, parse_target
from v4cli.pull.pull import pull
from v4cli.store import kinds, library
from v4cli.store.checkpoint import INDEX

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 130\n"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("good") / "m", STORE_LIKE)


def config(**changes):
    """A change of config.json; None removes a key."""

    def change(folder):
        values = json.loads((folder / "config.json").read_text()) | changes
        text = json.dumps({key: value for key, value in values.items() if value is not None})
        (folder / "config.json").write_text(text)

    return change


def quantized(method):
    return config(quantization_config={"quant_method": method, "bits": 4})


def tensors(rename):
    """A change of the index: names of tensors renamed, or dropped."""

    def change(folder):
        listed = json.loads((folder / INDEX).read_text())["weight_map"]
        renamed = {rename(name): shard for name, shard in listed.items() if rename(name)}
        (folder / INDEX).write_text(json.dumps({"weight_map": renamed}))

    return change


def only(**files):
    """Nothing but these files; _ stands for a dot, and config=True keeps config.json and tokenizer.json."""

    def change(folder):
        kept = ("config.json", "tokenizer.json") if files.get("config") else ()
        for path in folder.iterdir():
            if path.name not in kept:
                path.unlink()
        for name, text in files.items():
            if name != "config":
                (folder / name.replace("_DOT_", ".")).write_text(text)

    return change


def pointers(folder):
    for shard in folder.glob("*.safetensors"):
        shard.write_text(POINTER)


def unfinished(folder):
    shard = sorted(folder.glob("*.safetensors"))[-1]
    shard.rename(f"{shard}.incomplete")


def down(folder):
    inside = folder / "inner"
    inside.mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(inside / path.name)


KINDS = {
    "gguf": (only(V4_DOT_gguf="GGUF"), "GGUF", "v4 pull"),
    "gguf and config": (only(config=True, V4_DOT_gguf="GGUF"), "GGUF", "v4 pull"),
    "transformers": (tensors(lambda name: "model." + name), "as in transformers", "official"),
    "no scales": (tensors(lambda name: "" if name.endswith(".scale") else name), "without scales", "official"),
    "no quantization": (config(quantization_config=None), "without scales", "official"),
    "vllm": (tensors(lambda name: name.replace(".scale", ".weight_scale_inv")), "another program", "official"),
    "pickles": (only(config=True, pytorch_model_DOT_bin="x"), "pickle", "v4 pull"),
    "pth": (only(consolidated_DOT_00_DOT_pth="x"), "pickle", "v4 pull"),
    "onnx": (only(model_DOT_onnx="x"), "another program", "v4 pull"),
    "llama": (config(model_type="llama"), "type llama", "v4 pull"),
    "v3": (config(model_type="deepseek_v3"), "DeepSeek-V3,", "v4 pull"),
    "v3.2": (config(model_type="deepseek_v32"), "DeepSeek-V3.2", "v4 pull"),
    "v4.1": (config(model_type="deepseek_v41"), "DeepSeek-V4.1", "v4 pull"),
    "awq": (quantized("awq"), "awq", "official"),
    "gptq": (quantized("gptq"), "gptq", "official"),
    "nvfp4": (quantized("modelopt"), "modelopt", "official"),
    "mxfp4": (quantized("mxfp4"), "mxfp4", "official"),
    "bnb": (quantized("bitsandbytes"), "bitsandbytes", "official"),
    "mlx": (config(quantization={"group_size": 64, "bits": 4}, quantization_config=None), "MLX", "official"),
    "adapter": (only(adapter_config_DOT_json="{}", adapter_model_DOT_safetensors="x"), "LoRA", "v4 pull"),
    "empty": (only(), "an empty folder", "v4 pull"),
    "pointers": (pointers, "git-lfs pointer", "git lfs pull"),
    "unfinished": (unfinished, "not finished", "finish it"),
    "mp8": (only(config=True, **{"model0-mp8_DOT_safetensors": "x"}), "inference code", "checkpoint"),
    "inference config": (lambda folder: (folder / "config.json").write_text('{"dim": 4096, "n_layers": 43}'),
                         "inference code", "official weights"),
    "one level up": (down, "one folder further down", "inner"),
    "parts without manifest": (only(embed_DOT_safetensors="", **{"layer-000_DOT_safetensors": "x"}), "a store", "pull"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_says_what_it_is_and_what_to_do(good, tmp_path, kind):
    change, says, hint = KINDS[kind]
    folder = shutil.copytree(good, tmp_path / "m")
    change(folder)
    commands = {
        "run, chat": lambda: Chat.open(folder),
        "show, plan": lambda: Subject.find(str(folder)),
        "pull, quantize": lambda: pull(FolderSource(folder), tmp_path / "out", reporter=Listener()),
    }
    for command, act in commands.items():
        with pytest.raises(ModelError) as caught:
            act()
        assert says in str(caught.value) and hint in caught.value.hint, command
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_same_of_repositories(hub, client, good, tmp_path):
    for kind in ("gguf", "transformers", "llama", "awq", "adapter", "mp8", "pickles", "no scales"):
        change, says, _ = KINDS[kind]
        folder = shutil.copytree(good, tmp_path / kind)
        change(folder)
        hub.add("org/other", folder)
        with pytest.raises(ModelError, match=says) as caught:
            pull(HubSource("org/other", endpoint=hub.url), tmp_path / "out", reporter=Listener())
        assert str(caught.value).startswith("org/other: ") and not (tmp_path / "out").exists()
    assert not [name for name, _ in hub.asked if name.endswith((".safetensors", ".gguf", ".bin"))]


def test_official_weights_with_other_files_beside_them_are_official(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "m")
    for name in ("V4-Q2.gguf", "training_args.bin", "model.onnx", "adapter_config.json"):
        (folder / name).write_text("x")
    assert Subject.find(str(folder)).config
    shard = sorted(folder.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ModelError, match="truncated"):
        Subject.find(str(folder))


def test_files_in_place_of_folders(good, tmp_path):
    (tmp_path / "a.gguf").write_text("GGUF")
    shard = next(good.glob("*.safetensors"))
    for path, says, hint in ((shard, "a model is a folder", str(good)), (tmp_path / "a.gguf", "GGUF", "v4 pull")):
        for act in (library.model_folder, FolderSource, *([parse_target] if path == shard else [])):
            with pytest.raises(ModelError, match=says) as caught:
                act(str(path))
            assert hint in caught.value.hint
    assert parse_target(str(tmp_path / "a.gguf")).place == tmp_path / "a.gguf"


@pytest.fixture
def cached(good, tmp_path):
    """A repository in a Hugging Face cache: links to blobs."""
    folder = tmp_path / "hub" / "models--org--little"
    for commit in ("a" * 40, "b" * 40):
        (folder / "snapshots" / commit).mkdir(parents=True)
        for path in good.iterdir():
            os.symlink(path, folder / "snapshots" / commit / path.name)
    (folder / "refs").mkdir()
    return folder


def test_a_folder_of_the_hugging_face_cache_is_the_snapshot_of_main(cached, tmp_path, monkeypatch):
    (cached / "refs" / "main").write_text("b" * 40)
    snapshot = cached / "snapshots" / ("b" * 40)
    for folder in (cached, cached / "snapshots", snapshot):
        assert library.model_folder(str(folder)) == snapshot
        assert parse_target(str(folder)).name == "little" and FolderSource(folder).path == snapshot.resolve()
    monkeypatch.chdir(cached)
    assert library.model_folder(".") == snapshot
    pull(FolderSource(cached), tmp_path / "out", reporter=Listener())
    (cached / "refs" / "main").write_text("c" * 40)
    with pytest.raises(ModelError, match="2 snapshots") as caught:
        library.model_folder(str(cached))
    assert str(cached / "snapshots" / ("a" * 40)) in caught.value.hint
    (cached / "refs" / "main").unlink()
    os.mkfifo(cached / "refs" / "main")
    with pytest.raises(ModelError, match="2 snapshots"):
        library.model_folder(str(cached))
    shutil.rmtree(snapshot)
    assert library.model_folder(str(cached)) == cached / "snapshots" / ("a" * 40)
    shutil.rmtree(cached / "snapshots" / ("a" * 40))
    with pytest.raises(ModelError, match="no snapshot") as caught:
        library.model_folder(str(cached))
    assert caught.value.hint == "v4 pull org/little"


def test_the_cache_itself_names_what_is_in_it(cached):
    with pytest.raises(ModelError, match="one folder further down") as caught:
        Subject.find(str(cached.parent))
    assert str(cached) in caught.value.hint
    shutil.copytree(cached, cached.parent / "models--org--other", symlinks=True)
    with pytest.raises(ModelError, match="holds 2 models") as caught:
        Subject.find(str(cached.parent))
    assert str(cached) in caught.value.hint
    assert kinds.of_folder(cached / "nowhere") is not None
