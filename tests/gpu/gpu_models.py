"""One model for both backends: on the CPU, and on a device whose kernels run in the PTX machine. Import behind
`pytest.importorskip("triton")`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
from emulated import Emulated
from v4kernels.api import Span
from v4kernels.cpu import Buffer, CpuOps
from v4kernels.cpu.bound import PackedTree
from v4kernels.cpu.state import Timeline
from v4kernels.triton import memory
from v4kernels.triton.device import Recorded
from v4kernels.triton.ops import TritonOps

from v4cli.model.config import V4Config
from v4cli.model.state import State
from v4cli.model.v4 import V4
from v4cli.model.weights import build
from v4cli.store.sources import PackedSource
from v4cli.store.store import open_model

MOST_TOKENS = 2048  # of a timeline: work memory of few rows is for all of them


class Recorder(Emulated):
    """Counts what it records."""

    recordings = 0

    def graph(self) -> Recorded:
        self.recordings += 1
        return super().graph()


@dataclass
class Both:
    """The model `cpu`, and `gpu` on `device`."""

    config: V4Config
    cpu: V4
    gpu: V4
    device: Recorder

    def states(self) -> tuple[State, State]:
        """An empty timeline of each."""
        return self.cpu.new_state(), self.gpu.new_state()

    def same(self, feeds: Sequence[tuple[Sequence[int], tuple[State, State]]]) -> np.ndarray:
        """Feed tokens to timelines of both: logits (rows, vocab), which are the same to the bit."""
        cpu = self.cpu.forward([(ids, states[0]) for ids, states in feeds])
        want = self.cpu.logits(cpu)
        gpu = self.gpu.forward([(ids, states[1]) for ids, states in feeds])
        got = self.gpu.logits(gpu)
        assert np.array_equal(cpu.array().view(np.uint32), self.gpu.ops.dense.values(gpu).view(np.uint32))
        assert np.array_equal(want.view(np.uint32), got.view(np.uint32))
        return got


def both(config: V4Config, tree: PackedTree, **options: int) -> Both:
    device = Recorder()
    gpu = V4(config, TritonOps(tree, device, MOST_TOKENS, **options))
    device.freeze()
    return Both(config, V4(config, CpuOps(tree)), gpu, device)


NANO = Path(str(resources.files("v4cli.nano").joinpath("checkpoint")))


def opened(folder: Path) -> tuple[V4Config, PackedTree]:
    checkpoint = open_model(folder)
    return checkpoint.config, build(checkpoint.config, PackedSource(checkpoint, check=True))


def nano() -> tuple[V4Config, PackedTree]:
    """nano as it comes with the package; its indexers choose 16 entries, so that they have to choose early."""
    config, tree = opened(NANO)
    layers = []
    for layer in tree.layers:
        if layer.attn.indexer is not None:
            layer = replace(layer, attn=replace(layer.attn, indexer=replace(layer.attn.indexer, top_k=16)))
        layers.append(layer)
    return config, replace(tree, layers=layers)


def fed(model: Both, layer: int, states: tuple, start: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the attention of one layer gives on both sides for rows x (n, D) at positions from `start` on."""
    (cpu, gpu), ops, n = states, model.gpu.ops, len(x)
    gpu.layers[layer].reserve(start + n)
    batch = ops.batch([Span([0] * n, gpu, start)])
    batch.record.start()
    block = ops.memory.put(x)
    out = ops.window_attention(layer, memory.Buffer(block.at, *x.shape), batch)
    return fed_cpu(model, layer, cpu, start, x), ops.dense.values(out)


def fed_cpu(model: Both, layer: int, state: Timeline, start: int, x: np.ndarray) -> np.ndarray:
    """The same on the CPU alone."""
    state.layers[layer].reserve(start + len(x))
    batch = model.cpu.ops.batch([Span([0] * len(x), state, start)])
    return model.cpu.ops.window_attention(layer, Buffer.of(x), batch).array().copy()
