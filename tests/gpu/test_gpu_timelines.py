"""What a timeline remembers in device memory: the bytes of the CPU's, wherever they lie and however they grow."""

import gc

import numpy as np
import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import gpu_models
from emulated import Emulated
from v4kernels.cpu.state import Timeline
from v4kernels.triton.memory import Memory
from v4kernels.triton.state import LEAST_ROOM, DeviceTimeline

from v4cli.errors import ResourceError
from v4cli.model.state import State

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
RNG = np.random.default_rng(7)
MOST = 8192
PLACES = (0, 3, 127, 128, 129, 300, 1024, 5000)


@pytest.fixture(scope="module")
def attentions():
    return [layer.attn for layer in gpu_models.nano()[1].layers]


def filled(attentions, n_tokens: int) -> State:
    """A timeline of the CPU at n_tokens, of random bytes."""
    state = State(lambda: Timeline(attentions, MOST))
    random = {name: RNG.integers(0, 256, a.shape, np.uint8) for name, a in state.entries(0, n_tokens).items()}
    state.put(0, n_tokens, random)
    for layer in state.layers:
        mark = {name: _random(array) for name, array in layer.mark(n_tokens).items()}
        layer.restore(mark, n_tokens)
    state.n_tokens = n_tokens
    return state


def _random(array: np.ndarray) -> np.ndarray:
    return RNG.integers(0, 128, array.nbytes, np.uint8).view(array.dtype).reshape(array.shape)


def on_device(attentions, device=None, hosted=False) -> State:
    memory = Memory(device or Emulated())
    return State(lambda: DeviceTimeline(attentions, MOST, memory, hosted))


def same(a: State, b: State, n_tokens: int) -> bool:
    """Whether both remember the same at n_tokens."""
    pairs = [(state.entries(0, n_tokens), state.checkpoint().arrays) for state in (a, b)]
    return all(
        one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
        for one, other in zip(*pairs)
    )


@pytest.mark.parametrize("hosted", [False, True])
def test_a_timeline_goes_from_either_backend_to_the_other(attentions, hosted):
    for n in PLACES:
        there, here, back = filled(attentions, n), on_device(attentions, hosted=hosted), filled(attentions, 0)
        for source, to in ((there, here), (here, back)):
            to.put(0, n, source.entries(0, n))
            to.restore(source.checkpoint())
            assert same(there, to, n)
        assert same(here.fork(), there, n)


def test_memory_of_the_host_keeps_what_a_token_chooses_from_and_nothing_that_it_reads_all_of(attentions):
    device = Emulated()
    here = on_device(attentions, device, hosted=True)
    here.reserve(1024)
    hosted = {buffer.address for buffer in device.memory.buffers if buffer.hosted}
    parts = [part for layer in here.layers for part in layer.parts.items()]
    kept = {block.at for name, part in parts for block in part.rows.values() if name == "main" and part.ratio == 4}
    assert hosted == kept and len(kept) == sum(attn.indexer is not None for attn in attentions)
    assert {part.ratio for _, part in parts} == {4, 128}


def test_growth_moves_what_is_there_and_tells_the_table(attentions):
    device = Emulated()
    there, here = filled(attentions, 1024), on_device(attentions, device)
    for first in range(0, 1024, 128):
        before = here.timeline.layers[1].parts["main"].rows
        here.put(first, first + 128, there.entries(first, first + 128))
        assert np.array_equal(device.read(here.timeline.table.at, 6 * 64).view(np.int64).reshape(6, 8)[1, 1:2],
                              [here.timeline.layers[1].parts["main"].rows["entries"].at])  # fmt: skip
        grown = here.timeline.layers[1].parts["main"].rows is not before
        assert grown == (first // 4 in (0, LEAST_ROOM, LEAST_ROOM * 3 // 2, 128, 192))
    here.restore(there.checkpoint())
    assert same(there, here, 1024)


def test_what_was_marked_comes_back_after_other_tokens(attentions):
    here, other = on_device(attentions), filled(attentions, 700)
    there = filled(attentions, 300)
    here.put(0, 300, there.entries(0, 300))
    here.restore(there.checkpoint())
    point = here.checkpoint()
    here.put(256, 640, other.entries(256, 640))
    here.put(256, 300, there.entries(256, 300))
    here.restore(point)
    assert same(there, here, 300)


def test_arrays_of_another_place_are_refused(attentions):
    here, there = on_device(attentions), filled(attentions, 300)
    with pytest.raises(ValueError, match="another shape"):
        here.layers[1].put(0, 256, there.layers[1].entries(0, 128))
    with pytest.raises(ValueError, match="another shape"):
        here.layers[1].restore(there.layers[1].mark(299), 300)
    with pytest.raises(ValueError, match="another shape"):
        here.layers[1].restore(there.layers[0].mark(300), 300)


def test_a_full_device_says_so_and_nothing_is_lost(attentions):
    device = Emulated()
    here, there = on_device(attentions, device), filled(attentions, 256)
    here.put(0, 256, there.entries(0, 256))
    here.restore(there.checkpoint())
    device.room = device.nbytes + 1000
    with pytest.raises(ResourceError):
        here.reserve(8192)
    assert same(there, here, 256)
    device.room = 1 << 32
    here.reserve(8192)
    assert same(there, here, 256)
    with pytest.raises(ResourceError, match="the context is full"):
        here.reserve(MOST + 128)


def test_memory_of_a_timeline_is_what_it_says_and_is_given_back(attentions):
    device = Emulated()
    memory = Memory(device)
    first = DeviceTimeline(attentions, MOST, memory)
    for layer in first.layers:
        layer.reserve(1000)
    memory.settle()
    said, blocks = sum(layer.nbytes for layer in first.layers), len(device.memory.buffers)
    assert 0 <= said - (device.nbytes - 6 * 64) < 256 * blocks
    del first, layer
    gc.collect()
    memory.settle()
    assert not device.memory.buffers
