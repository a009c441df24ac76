"""What the tests of pulling share: a listener, checkpoints cut as the official ones are, real `v4` processes."""

import json
import os
import subprocess
import sys
from collections import namedtuple

from safetensors.torch import load_file, save_file
from tiny import STORE_LIKE

from v4cli.engine.engine import Engine
from v4cli.model.config import V4Config
from v4cli.store.checkpoint import INDEX
from v4cli.store.parts import layout
from v4cli.store.store import MANIFEST_COPY, Manifest

REPO = "org/model"
V4 = [sys.executable, "-m", "v4cli"]
Usage = namedtuple("Usage", "total used free")
LITTLE = STORE_LIKE | {
    "num_hidden_layers": 3, "compress_ratios": [0, 4, 128], "num_hash_layers": 1, "n_routed_experts": 4,
}  # fmt: skip
IDS = [(37 * i + i * i) % 384 for i in range(180)]


def logits(path):
    """Those of IDS by a model."""
    return Engine.open(path).session().feed(IDS, all_logits=True)


class Listener:
    """A reporter that remembers, and may interfere."""

    def __init__(self, on_finish=lambda name: None):
        self.lines, self.plans, self.sizes, self.done, self.on_finish = [], [], {}, {}, on_finish

    def say(self, text):
        self.lines.append(text)

    def plan(self, plan):
        self.plans.append(plan)

    def start(self, name, n_bytes, fetching):
        self.sizes[name], self.done[name] = n_bytes, 0

    def advance(self, name, n_bytes):
        self.done[name] += n_bytes

    def finish(self, name):
        self.on_finish(name)


def by_block(path):
    """Divide a checkpoint as the official ones are: embed, one shard per layer, the rest."""
    tensors = {name: value for shard in path.glob("*.safetensors") for name, value in load_file(shard).items()}
    for shard in path.glob("*.safetensors"):
        shard.unlink()
    groups = {}
    for part in layout(V4Config.load(path), "native", False).values():
        groups.setdefault(part.name.removesuffix("-experts"), []).extend(part.sources)
    weight_map = {}
    for i, names in enumerate(groups.values(), 1):
        file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: tensors[name] for name in names}, path / file)
        weight_map |= dict.fromkeys(names, file)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def contents(folder):
    """Every file of a store; of manifests all but where it came from."""
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and "manifest" not in p.name}
    manifest = Manifest.load(folder)
    assert manifest == Manifest.load(folder, MANIFEST_COPY)
    return files, manifest.files, manifest.quant, manifest.complete


def leftovers(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(".") or p.suffix == ".tmp"]


def command(hub, home, *args):
    """Arguments and environment of a real `v4` process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"} | hub.environment(home)
    return {"args": [*V4, *map(str, args)], "env": environment, "stdin": subprocess.DEVNULL}


def v4(hub, home, *args):
    return subprocess.run(**command(hub, home, *args), capture_output=True, text=True, timeout=120)
