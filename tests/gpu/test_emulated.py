"""The device that tests have instead of a GPU: its memory stays, kernels follow pointers, graphs replay."""

import numpy as np
import ptx
import pytest

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import small_kernels
from emulated import Emulated

RNG = np.random.default_rng(5)
N = 128  # threads of a block: each has a number of its own


@pytest.fixture
def device():
    return Emulated()


def floats(device, values) -> int:
    address = device.alloc(4 * len(values))
    device.write(address, np.asarray(values, np.float32))
    return address


def add(device, a, b, out, n=N):
    device.launch(small_kernels.add, (1,), (a, b, out, n), {"BLOCK": N})


def test_memory_is_zero_aligned_and_stays_from_launch_to_launch(device):
    a, b, out = floats(device, np.arange(N)), floats(device, np.full(N, 2)), device.alloc(4 * N)
    assert not device.read(out, 4 * N).any() and not any(address % 256 for address in (a, b, out))
    add(device, a, b, out)
    add(device, out, b, a)
    assert np.array_equal(device.read(a, 4 * N).view(np.float32), np.arange(N) + 4)


def test_a_table_of_addresses_leads_kernels_to_memory_that_no_argument_names(device):
    rows = [floats(device, RNG.random(N)) for _ in range(3)]
    table, out = device.alloc(8 * 3), device.alloc(4 * 3 * N)
    device.write(table, np.array(rows, np.int64))
    device.launch(small_kernels.gather, (3,), (table, out), {"N": N})
    want = np.concatenate([device.read(row, 4 * N) for row in rows])
    assert np.array_equal(device.read(out, 4 * 3 * N), want)
    device.free(rows[1])
    with pytest.raises(ptx.OutOfBounds, match="block 1"):
        device.launch(small_kernels.gather, (3,), (table, out), {"N": N})


def test_what_is_frozen_is_read_only_to_kernels(device):
    a, b = floats(device, np.arange(N)), floats(device, np.arange(N))
    device.freeze()
    out = device.alloc(4 * N)
    add(device, a, b, out)
    with pytest.raises(ptx.OutOfBounds, match="read-only"):
        add(device, a, out, b)


def test_a_launch_takes_what_fits_the_kernel(device):
    a, out = device.alloc(4 * N), device.alloc(4 * N)
    with pytest.raises(TypeError, match="add takes 4 arguments, not 3"):
        device.launch(small_kernels.add, (1,), (a, a, out), {"BLOCK": N})
    with pytest.raises(TypeError, match="constants BLOCK"):
        device.launch(small_kernels.add, (1,), (a, a, out, N), {})
    with pytest.raises(ValueError, match=r"out at 0x[0-9a-f]+, no multiple of 16"):
        add(device, a, a, out + 4)


def test_a_graph_runs_what_was_recorded_whenever_it_is_replayed(device):
    a, b, out = floats(device, np.arange(N)), floats(device, np.ones(N)), device.alloc(4 * N)
    host, at = device.mapped(4 * N)
    with device.record() as graph:
        device.move(a, at, 4 * N)
        add(device, a, b, out)
        add(device, out, b, out)
    assert not device.read(out, 4 * N).any()
    for first in (5, 7):
        host.view(np.float32)[:] = np.arange(N) + first
        graph.replay()
        assert np.array_equal(device.read(out, 4 * N).view(np.float32), np.arange(N) + first + 2)


def test_nothing_but_launches_and_moves_is_recorded(device):
    a = device.alloc(4 * N)
    with device.record() as graph:
        pass
    for forbidden in (
        lambda: device.read(a, 4),
        lambda: device.write(a, np.zeros(1, np.float32)),
        lambda: device.alloc(4),
        lambda: device.mapped(4),
        lambda: device.free(a),
        lambda: device.copy([]),
        lambda: device.completed(None),
        device.synchronize,
        graph.replay,
        lambda: device.record().__enter__(),
    ):
        with pytest.raises(RuntimeError, match="while launches are recorded"), device.record():
            forbidden()
    device.read(a, 4)


def test_a_copy_is_there_when_its_ticket_is_completed_and_not_before():
    device = Emulated(late=True)
    at, data = device.alloc(8), np.arange(8, dtype=np.uint8)
    ticket = device.copy([(at, data[:4]), (at + 4, data[4:])])
    want = data.copy()
    data[:] = 9
    assert not device.completed(ticket) and not (device.read(at, 8) == want).any()
    device.arrive()
    assert device.completed(ticket) and np.array_equal(device.read(at, 8), want)


def test_memory_ends_and_comes_back():
    device = Emulated(room=1024)
    a = device.alloc(1000)
    with pytest.raises(MemoryError):
        device.alloc(100)
    device.free(a)
    device.alloc(1000)
    with pytest.raises(ValueError, match="nothing was allocated"):
        device.free(a)
    with pytest.raises(ptx.OutOfBounds):
        device.read(a, 1)


def test_a_move_does_not_overlap(device):
    at = device.alloc(64)
    device.move(at, at + 32, 32)
    with pytest.raises(ValueError, match="overlap"):
        device.move(at, at + 8, 16)
