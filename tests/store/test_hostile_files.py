"""Model folders that are small and claim everything: refused at once, whatever is asked of them."""

import json
import os
import shutil
import signal
import time

import pytest

from v4cli import jsonfile
from v4cli.chat.turn import Chat
from v4cli.cli.models import describe
from v4cli.engine.engine import Engine
from v4cli.errors import ModelError
from v4cli.model.config import DSPARK_FIELDS, V4Config
from v4cli.model.known import known_config
from v4cli.paths import NANO
from v4cli.pull.hub import FolderSource
from v4cli.pull.pull import plan_pull
from v4cli.store.checkpoint import INDEX
from v4cli.store.library import entries

SHARD = "model-00001-of-00001.safetensors"
ASKED = {
    "show": lambda folder: describe(str(folder)),
    "run": Chat.open,
    "score": lambda folder: Engine.open(folder, "reference"),
    "pull --dry-run": lambda folder: plan_pull(FolderSource(folder), folder / "none", reporter=None),
}


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(NANO, tmp_path / "models" / "m")


def configured(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(asked, folder, words):
    start = time.process_time()
    with pytest.raises(ModelError) as caught:
        ASKED[asked](folder)
    assert words in str(caught.value) and len(str(caught.value)) < 1000
    assert time.process_time() - start < 5, "no names are made of it"


CONFIGS = {
    "n_routed_experts: 9 blocks": {"n_routed_experts": 65_536},
    "n_routed_experts": {"n_routed_experts": 8192},
    "more than 1024 blocks": {"num_nextn_predict_layers": (1 << 24) - 1} | dict.fromkeys(DSPARK_FIELDS),
    "than 1024 blocks": {"num_hidden_layers": 4000, "compress_ratios": [0] * 4096},
    "vocab_size must be": {"vocab_size": 1 << 31},
    "num_attention_heads must be": {"num_attention_heads": 1 << 40},
    "sliding_window or index_topk": {"index_topk": 1 << 23},
    "sliding_window": {"sliding_window": (1 << 24) - 1},
    "rope_theta": {"compress_rope_theta": 1.0},
    "rms_norm_eps must be": {"rms_norm_eps": 5e-324},
    "hidden_size must be": {"hidden_size": "4096" * 200_000},
    "model_type is": {"model_type": [[[]] * 100] * 100},
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("words", CONFIGS)
def test_config_is_bounded_before_anything_is_made_of_it(folder, asked, words):
    configured(folder, **CONFIGS[words])
    refused(asked, folder, words)


def test_deep_values_are_shown_short(folder):
    deep = "[" * 900 + "]" * 900
    text = (folder / "config.json").read_text().replace('"silu"', deep)
    (folder / "config.json").write_text(text)
    refused("show", folder, "config.json")


def test_releases_are_within_the_bounds():
    for name in ("flash", "pro", "flash-preview", "pro-preview"):
        assert V4Config.from_dict(known_config(name).to_dict()) == known_config(name)


def replaced(path, kind):
    path.unlink(missing_ok=True)
    if kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        with path.open("wb") as file:
            file.write(b'{"a": ')
            file.truncate(1 << 40)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("kind", ["zeros", "pipe", "folder", "loop", "sparse"])
@pytest.mark.parametrize("name", ["config.json", INDEX, SHARD])
def test_what_is_no_file_is_not_waited_for(folder, asked, kind, name):
    replaced(folder / name, kind)
    start = time.monotonic()
    if asked == "pull --dry-run" and name == SHARD and kind == "sparse":
        return  # its header is read when it is converted
    with pytest.raises(ModelError) as caught:
        ASKED[asked](folder)
    assert time.monotonic() - start < 20 and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["zeros", "pipe", "folder", "loop", "sparse"])
@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_small_files_too(folder, kind, name):
    replaced(folder / name, kind)
    with pytest.raises(ModelError, match=name):
        Chat.open(folder)


@pytest.mark.parametrize("kind", ["zeros", "pipe", "folder", "loop", "sparse"])
def test_one_bad_manifest_does_not_keep_others_from_being_listed(folder, kind):
    replaced(folder / "manifest.json", kind)
    (folder / "manifest.copy.json").write_text("{}")
    (entry,) = entries(folder.parent)
    assert entry.state.startswith("damaged: manifest.json")


def test_a_key_that_appears_twice_in_a_large_object_is_found_quickly():
    text = "{" + ", ".join(f'"k{i}": 1' for i in range(200_000)) + ', "k199999": 2}'
    start = time.process_time()
    with pytest.raises(ModelError, match="'k199999' appears twice"):
        jsonfile.parse(text, "x")
    assert time.process_time() - start < 5


def test_text_with_many_values_is_bounded_and_its_reading_heeds_signals():
    """A handler runs while values are read: the library's decoder would keep it waiting to the end."""
    interrupted = set()
    before = signal.signal(signal.SIGALRM, lambda number, frame: interrupted.add(frame.f_code.co_name))
    text = "[" + "[]," * jsonfile.MANY + "[]]"
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        assert len(jsonfile.parse(text, "x")) == jsonfile.MANY + 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert "JSONArray" in interrupted
    assert jsonfile.loads(json.dumps([text + '\\"'] * 9)) == [text + '\\"'] * 9, "what stands in texts does not count"
    with pytest.raises(ModelError, match=r"x: .*more than 1,000,000 values"):
        jsonfile.parse(text, "x", most=1_000_000)
