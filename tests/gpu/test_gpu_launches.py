"""How many kernels a step of few rows launches. Nothing is run."""

import numpy as np
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import gpu_models
from emulated import Emulated
from v4kernels.api import Span
from v4kernels.cpu.serve import Told
from v4kernels.tree import Kind
from v4kernels.triton.device import Launch, Node
from v4kernels.triton.ops import TritonOps
from v4kernels.triton.slots import Room
from v4kernels.triton.weights import SlotKind

from v4cli.bench.synthetic import shape
from v4cli.model.v4 import V4
from v4cli.plan import speed

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")


class Counting(Emulated):
    """Launches are counted instead; `kernels` are those that would be compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: set[tuple] = set()

    def prepare(self, node: Node) -> None: ...

    def run(self, node: Node) -> None:
        if isinstance(node, Launch):
            self.launches += 1
            self.kernels.add((node.kernel.fn.__name__, *sorted(node.constants.items()), node.warps, node.stages))


class Posting:
    """A bank whose experts partly lie elsewhere: it posts and waits in every layer."""

    repeatable = True

    def __init__(self, ops: TritonOps):
        experts = ops.tree.layers[0].ffn.experts
        room = Room(SlotKind.of(experts[0]), ops.device.alloc(1 << 20))
        self.step = ops.step_experts([room], np.zeros((len(ops.tree.layers), len(experts)), np.int8))

    def begin_step(self, batch) -> None:
        self.step.begin_step(np.full(self.step.handoff.shape, -1, np.int16), batch.rows)

    def foresee(self, layer, streams) -> None: ...

    def begin(self, layer, x, routing, streams):
        return self.step.begin(layer, x, routing)

    def end_step(self, rows) -> Told:
        return self.step.end_step()


def launches(most_tokens: int, rows: int = 1, posting: bool = False) -> tuple[list[int], list[Kind], int]:
    """Of every layer of nano, their kinds, and how many entries an indexer chooses; contexts have up to most_tokens."""
    config, tree = gpu_models.opened(gpu_models.NANO)
    device = Counting()
    ops = TritonOps(tree, device, most_tokens)
    model, seen = V4(config, ops, Posting(ops) if posting else None), []
    model.forward([([1] * rows, model.new_state())], lambda name, streams: seen.append(device.launches))
    of_layers = np.diff(np.array(seen)[::2]).tolist()
    return of_layers, model.kinds, config.index_topk


def test_a_long_prompt_asks_for_no_kernel_that_a_short_one_does_not():
    """Engine.warm has a step of one row and one of nine, at the begin of a context."""
    config, tree = gpu_models.opened(gpu_models.NANO)
    device = Counting()
    ops = TritonOps(tree, device, 1 << 20)
    model = V4(config, ops)
    for rows in (1, 9):
        model.forward([([1] * rows, model.new_state())])
    warm, x = set(device.kernels), ops.dense.take("x", 70, config.hidden_size)
    assert len(warm) > 40
    for layer, kind in enumerate(model.kinds):
        for start in (2050, 300_000, (1 << 20) - 70) if kind is not Kind.WINDOW else (2050,):
            timeline = ops.new_state(1 << 20)
            timeline.layers[layer].reserve(start + 70)
            ops.window_attention(layer, x, ops.batch([Span([1] * 70, timeline, start)]))
    assert device.kernels == warm


@pytest.mark.parametrize("most_tokens, rows", [(4096, 1), (4096, 8), (1 << 20, 1)])
def test_a_layer_launches_as_many_kernels_as_its_kind_has(most_tokens, rows):
    found, kinds, top = launches(most_tokens, rows)
    of_choice = speed.choices(most_tokens // 4, top)
    assert found == [speed.NODES[kind] + (of_choice if kind is Kind.CSA else 0) for kind in kinds]
    assert set(kinds) == set(Kind) and of_choice == (1 if most_tokens == 4096 else 3)


def test_a_hand_off_takes_two_more():
    alone, _, _ = launches(4096)
    assert launches(4096, posting=True)[0] == [count + 2 for count in alone]


def test_a_step_of_flash_launches_half_as_many_as_it_did():
    """1,830 before what reads the same or follows at once was made one launch."""
    flash = shape("flash")
    assert [speed.launches(flash, n) for n in (4096, 131_072, 1 << 20)] == [859, 880, 901]
