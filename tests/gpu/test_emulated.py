"""What the device in the PTX machine is told apart by: it finds what a GPU would not."""

import numpy as np
import ptx
import pytest

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import small_kernels
from emulated import Emulated

N = 128


@pytest.fixture
def device():
    return Emulated()


def add(device, a, b, out):
    device.launch(small_kernels.add, (1,), (a, b, out, N), {"BLOCK": N})


def test_what_is_frozen_is_read_only_to_kernels(device):
    a, b = device.alloc(4 * N), device.alloc(4 * N)
    device.freeze()
    out = device.alloc(4 * N)
    add(device, a, b, out)
    device.write(a, np.ones(N, np.float32))
    with pytest.raises(ptx.OutOfBounds, match="read-only"):
        add(device, a, out, b)


def test_an_address_that_was_given_back_leads_nowhere(device):
    rows = [device.alloc(4 * N) for _ in range(3)]
    table, out = device.alloc(8 * 3), device.alloc(4 * 3 * N)
    device.write(table, np.array(rows, np.int64))
    device.free(rows[1])
    with pytest.raises(ptx.OutOfBounds, match="block 1"):
        device.launch(small_kernels.gather, (3,), (table, out), {"N": N})
    with pytest.raises(ptx.OutOfBounds):
        device.read(rows[1], 1)
    with pytest.raises(ptx.OutOfBounds, match="which has"):
        device.write(rows[0], np.zeros(N + 1, np.float32))


def test_threads_that_store_what_others_read_are_told_of(device):
    """Two threads have each number of 64: one may read what the other has stored already."""
    a, out = device.alloc(4 * 64), device.alloc(4 * 64)
    device.write(a, np.ones(64, np.float32))
    with pytest.raises(ptx.Race, match="another thread used"):
        device.launch(small_kernels.add, (1,), (a, out, out, 64), {"BLOCK": 64})


def test_a_copy_is_not_there_before_its_ticket_is_completed():
    device = Emulated(late=True)
    at = device.alloc(8)
    ticket = device.copy([(at, np.arange(8, dtype=np.uint8))])
    assert not device.completed(ticket) and not (device.read(at, 8) == np.arange(8)).any()
    device.arrive()
    assert device.completed(ticket) and np.array_equal(device.read(at, 8), np.arange(8))


def test_memory_ends_and_comes_back():
    device = Emulated(room=1024)
    a = device.alloc(1000)
    with pytest.raises(MemoryError):
        device.alloc(100)
    device.free(a)
    device.alloc(1000)
    assert device.nbytes == 1000


def test_a_move_does_not_overlap(device):
    at = device.alloc(64)
    device.move(at, at + 32, 32)
    with pytest.raises(ValueError, match="overlap"):
        device.move(at, at + 8, 16)
