"""What a source lacks is found before anything is converted, or fetched in earnest; and nothing is left of it."""

import json
import shutil

import pytest
import torch
from hub_server import Fault
from pulling import REPO, Listener
from safetensors.torch import load_file, save_file
from tiny import STORE_LIKE, random_checkpoint

from v4cli.chat.turn import READERS
from v4cli.errors import Interrupted, ModelError, NetworkError, ResourceError, UsageError
from v4cli.model.schema import TensorSpec
from v4cli.pull.convert import convert_part
from v4cli.pull.hub import FolderSource, HubSource
from v4cli.pull.official import Official
from v4cli.pull.pull import plan_pull, pull
from v4cli.store.checkpoint import INDEX
from v4cli.store.header import TensorPlace
from v4cli.store.parts import Part


def change_last_shard(folder, change):
    """Write the last shard again with some tensors changed."""
    shard = sorted(folder.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard)


def truncate(folder):
    shard = sorted(folder.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-3])


def vocabulary_too_large(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary, n = tokenizer["model"]["vocab"], len(tokenizer["added_tokens"])
    for i in range(512):
        vocabulary.setdefault(chr(33 + i % 90) + chr(33 + i // 90), n + len(vocabulary))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


FAULTS = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    "empty tokenizer": (lambda f: (f / "tokenizer.json").write_text(""), "tokenizer.json: not valid JSON"),
    "tokenizer of something else": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json: not a"),
    "too large a vocabulary": (vocabulary_too_large, "more tokens than the model's vocabulary"),
    "hot": (lambda f: (f / "generation_config.json").write_text('{"temperature": "hot"}'), "temperature is"),
    "infinite": (lambda f: (f / "generation_config.json").write_text('{"temperature": 1e999}'), "temperature is"),
    "pointer": (lambda f: (f / "tokenizer.json").write_text("version https://git-lfs.x\n"), "git-lfs pointer"),
    "dtype": (lambda f: change_last_shard(f, lambda t: t.update({"norm.weight": t["norm.weight"].float()})),
              r"norm.weight is not what config and index say \(it is F32"),
    "shape": (lambda f: change_last_shard(f, lambda t: t.update({"norm.weight": t["norm.weight"][:-1].clone()})),
              "norm.weight is not what config and index say"),
    "absent": (lambda f: change_last_shard(f, lambda t: t.pop("norm.weight")), "norm.weight is missing"),
    "truncated": (truncate, "its header describes"),
    "no header": (lambda f: sorted(f.glob("*.safetensors"))[-1].write_bytes(b"x" * 5000), "not a safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["folder", "hub"])
def test_faults_are_found_first_and_leave_nothing(official, client, hub, tmp_path, fault, kind):
    harm, says = FAULTS[fault]
    broken = shutil.copytree(official, tmp_path / "broken")
    harm(broken)
    hub.add("org/broken", broken)
    source = FolderSource(broken) if kind == "folder" else HubSource("org/broken", endpoint=hub.url)
    for attempt in (plan_pull, pull):
        with pytest.raises(ModelError, match=says) as caught:
            attempt(source, tmp_path / "m", reporter=Listener(), readers=READERS)
        assert "\n" not in str(caught.value) and str(source.repo) in str(caught.value)
        assert not (tmp_path / "m").exists()
    assert not [name for name, _ in hub.asked if name.endswith(".safetensors")]


def test_only_headers_are_fetched_ahead(client, hub, tmp_path):
    source = client()
    official = Official(source, tmp_path)
    official.look_ahead(sorted(set(official.shard_of.values())), tmp_path, jobs=3)
    shards = [name for name in hub.repos[REPO].files if name.endswith(".safetensors")]
    assert sorted(hub.looked) == sorted(shards) and not [name for name, _ in hub.asked if name in shards]


def test_headers_longer_than_the_first_look_are_read_too(client, tmp_path, monkeypatch):
    monkeypatch.setattr("v4cli.pull.official.FIRST_BYTES", 100)
    official = Official(client(), tmp_path)
    official.look_ahead(sorted(set(official.shard_of.values())), tmp_path, jobs=1)


def test_a_pull_that_came_to_nothing_leaves_no_folder(client, official, hub, tmp_path, monkeypatch):
    dest = tmp_path / "m"
    last = sorted(name for name in hub.repos[REPO].files if name.endswith(".safetensors"))

    def interrupted(*_):
        raise KeyboardInterrupt

    def attempt(error, source=None):
        with pytest.raises(error):
            pull(source or client(), dest, reporter=Listener(), jobs=1)
        assert not dest.exists()

    hub.faults["config.json"] = [Fault("status", 404, times=99)]
    attempt(ModelError)
    hub.faults = {last[0]: [Fault("status", 503, times=99)]}
    attempt(NetworkError)
    attempt(ModelError, HubSource(REPO, "v9", endpoint=hub.url))
    attempt(NetworkError, HubSource(REPO, endpoint="http://127.0.0.1:9"))
    hub.faults.clear()
    with monkeypatch.context() as patch:
        patch.setattr("v4cli.pull.sizes.hardware.disk_free", lambda path: 1000)
        attempt(ResourceError)
    with monkeypatch.context() as patch:
        patch.setattr(Listener, "plan", interrupted)
        attempt(Interrupted)
    dest.mkdir()
    (dest / ".mine").touch()
    (official / "tokenizer.json").rename(official / "t")
    try:
        with pytest.raises(ModelError):
            pull(FolderSource(official), dest, reporter=Listener())
    finally:
        (official / "t").rename(official / "tokenizer.json")
    assert [path.name for path in dest.iterdir()] == [".mine"]  # a folder that was there stays


def test_what_a_pull_has_of_the_first_shard_stays(client, hub, reference, tmp_path):
    first = sorted(name for name in hub.repos[REPO].files if name.endswith(".safetensors"))[0]
    hub.faults[first] = [Fault("cut", 1000, times=99)]
    with pytest.raises(NetworkError):
        pull(client(), tmp_path / "m", reporter=Listener(), jobs=1)
    assert (tmp_path / "m" / ".source" / first).stat().st_size >= 1000


def test_a_small_file_added_to_a_folder_later_goes_into_the_store(official, reference, tmp_path):
    source = shutil.copytree(official, tmp_path / "source")
    text = (source / "generation_config.json").read_bytes()
    (source / "generation_config.json").unlink()
    pull(FolderSource(source), tmp_path / "m", reporter=Listener())
    with pytest.raises(ModelError, match="no generation_config"):
        pull(FolderSource(source), tmp_path / "m", reporter=Listener(), only="generation_config.json")
    (source / "generation_config.json").write_bytes(text)
    pull(FolderSource(source), tmp_path / "m", reporter=Listener(), only="generation_config.json")
    assert (tmp_path / "m" / "generation_config.json").read_bytes() == text
    shard = sorted(source.glob("*.safetensors"))[0]
    shard.touch()
    with pytest.raises(UsageError, match="was made from"):
        pull(FolderSource(source), tmp_path / "m", reporter=Listener(), only="layer-000")


def test_single_files_are_looked_at_too(tmp_path):
    folder = random_checkpoint(tmp_path / "single", STORE_LIKE, shards=1)
    (folder / INDEX).unlink()
    shard = next(folder.glob("*.safetensors")).rename(folder / "model.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ModelError, match="its header describes"):
        pull(FolderSource(folder), tmp_path / "m", reporter=Listener())


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("BF16", torch.tensor([[float("nan")]], dtype=torch.bfloat16)),
        ("BF16", torch.tensor([[float("-inf")]], dtype=torch.bfloat16)),
        ("F32", torch.tensor([[float("inf")]])),
        ("F8_E8M0", torch.tensor([[255]], dtype=torch.uint8)),
        ("F8_E4M3", torch.tensor([[255]], dtype=torch.uint8)),
    ],
)
def test_kept_values_that_are_not_finite_are_refused(dtype, value, tmp_path):
    (tmp_path / "source").write_bytes(value.view(torch.uint8).numpy().tobytes())
    spec, part = TensorSpec(dtype, (1, 1)), Part("part")
    part.add("x", spec, "keep", "x", 64)
    with pytest.raises(ModelError, match="tensor x holds values that are not finite"):
        convert_part(part, {"x": TensorPlace(tmp_path / "source", 0, spec)}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
